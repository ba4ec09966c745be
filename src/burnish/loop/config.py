"""The recipe: every setting of a run, with its default and the reason for it.

A recipe is a TOML file with these sections; `section.key=value` on the command line overrides it.  Unknown keys are
errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from burnish.loop.config_episodes import (
    EnvironmentSection,
    LimitsSection,
    ModelSection,
    RolloutSection,
    SamplerSection,
    Section,
)

ENVIRONMENTS: Mapping[str, tuple[str, str]] = {
    "calculator": ("burnish.environments.calculator", "Calculator"),
    "repair": ("burnish.environments.repair", "Repair"),
    "scan_report": ("burnish.environments.scan_report", "ScanReport"),
    "scenes": ("burnish.environments.scenes", "Scenes"),
    "shop": ("burnish.environments.shop", "Shop"),
    "shop_dialogue": ("burnish.environments.shop_dialogue", "ShopDialogue"),
}
"""Built-in environments by name: module and class."""

REASONING_GYM = "reasoning-gym"


class RunSection(Section):
    """Where a run lives and how it is spread over the machine."""

    name: str = Field("", description="folder under root; default: recipe, environment and a number")
    root: str = Field("runs", description="folder that holds all runs")
    seed: int = Field(0, ge=0, description="everything random in the run derives from it")
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="worker processes, each with a shard of the groups; 0: as many as cores, at least 2, on a CPU (the "
        "conductor waits while they work), 1 on a GPU."
        "  Stored with the run: resume uses the same number, since sums are taken in shard order",
    )
    in_process: bool = Field(False, description="run the shards one after another in this process (debugging, replay)")
    threads: int = Field(1, ge=1, description="torch threads in each process; more than there are free cores is slow")


class WarmStartSection(Section):
    """Supervised fine-tuning before RL, on the environment's expert or on a chat JSONL file."""

    steps: int = Field(0, ge=0, description="0: no warm start")
    traces: int = Field(12_000, ge=1, description="expert traces to generate")
    data: str = Field("", description='chat JSONL, one {"messages": [...]} a line, for expert traces; with images too')
    mistakes: dict[str, float] = Field(
        default_factory=dict, description="share of traces with each of the expert's named mistakes (a noisy expert)"
    )
    keep: Literal["all", "correct"] = Field(
        "all", description="correct: drop traces that an evaluation would not call a success"
    )
    batch_size: int = Field(64, ge=1)
    lr: float = Field(3e-3, gt=0, description="tiny models from scratch want 3e-3; pretrained ones 1e-5 to 5e-5")
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(20, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.95, gt=0, lt=1, description="of AdamW; a short memory suits a short phase")


class RLSection(Section):
    """Group-relative policy optimisation."""

    steps: int = Field(40, ge=0)
    groups: int = Field(32, ge=1, description="tasks per step")
    group_size: int = Field(8, ge=2, description="trajectories per task; they share a baseline")
    updates: int = Field(1, ge=1, description="optimizer steps on each batch of groups")
    lr: float = Field(3e-4, gt=0, description="3e-4 for tiny models (1e-3 collapsed); 1e-6 to 1e-5 for pretrained ones")
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1, description="of AdamW")
    loss: str = Field(
        "grpo",
        description="trust region: by token (grpo), by sequence (gspo), none but a cap (cispo), by the second "
        "moment of the ratios (m2po); docs/off_policy.md",
    )
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["none", "std"] = Field("std", description="divide by the group's standard deviation (GRPO) or not")
    normalise: Literal["none", "variance", "vl"] = Field(
        "none",
        description="weight of a trajectory: 1; 1 / (noise of its source * length^e), both learnt (variance); or "
        "length^-vl_exponent, unbiased (vl)",
    )
    vl_exponent: float = Field(1.0, ge=0, le=1, description="vl alone: how the variance of a trajectory grows")
    balance_skills: bool = Field(False, description="bring the advantages of every skill (tag) to one scale")
    aggregation: Literal["token", "sequence", "constant"] | None = Field(
        None,
        description="mean over all trained tokens (DAPO), over sequences (GRPO), or a constant length (Dr. GRPO); "
        "unset: token, for gspo sequence",
    )
    clip_low: float | None = Field(None, gt=0, le=1, description="unset: the loss's own, .2 for grpo")
    clip_high: float | None = Field(
        None,
        gt=0,
        description="unset: the loss's own, .28 for grpo: wider above than below keeps exploration alive (DAPO)",
    )
    moment_cap: float | None = Field(None, gt=0, description="m2po alone; unset: .04")
    correction: Literal["auto", "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = Field(
        "auto",
        description="importance weight of tokens that an older policy drew; auto: none, whose trust region is around "
        "the policy that drew them, but token_truncate for gspo in an asynchronous run",
    )
    correction_cap: float | None = Field(None, gt=0, description="largest weight; unset: the correction's own")
    correction_floor: float | None = Field(None, gt=0, description="smallest weight that a mask keeps")
    token_cost: float = Field(
        0.0, ge=0, description="reward that 1000 sampled tokens of a success cost; wants rl.scale=none"
    )
    token_cost_free: int = Field(0, ge=0, description="sampled tokens of each episode that cost nothing")
    token_cost_mode: Literal["scaled_success", "success", "always"] = Field(
        "scaled_success",
        description="who pays: successes in proportion to their group's solved share, all successes, or every episode "
        "(teaches giving up early)",
    )
    kl_weight: float = Field(
        0.0, ge=0, description="weight of the KL to the policy at the start of RL; 0: no reference"
    )
    entropy_floor: float = Field(
        0.0,
        ge=0,
        description="weight of a KL to the policy at the start of RL that is there only while the entropy of trained "
        "tokens is below a floor; 0: no floor",
    )
    entropy_floor_share: float = Field(
        0.5, gt=0, lt=1, description="the floor: this share of the mean entropy of the first steps"
    )
    entropy_floor_steps: int = Field(10, ge=1, description="those first steps")
    entropy_floor_ramp: float = Field(
        0.2, gt=0, le=1, description="part of the floor over which the weight grows to its full size"
    )
    filter_zero_signal: bool = Field(
        True, description="leave out groups whose rewards are all equal; counted either way"
    )
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="below 1 the kept sets are stored and the learner uses them too")
    top_k: int = Field(0, ge=0, description="0: all; see top_p")
    shuffle_rewards: bool = Field(
        False, description="control experiment: permute the rewards of a step over its members"
    )


class CurriculumSection(Section):
    """Which kinds of tasks are drawn more often than others."""

    draw: Literal["even", "failures", "diagnosis"] = Field(
        "even",
        description="even: all tasks in shuffled epochs; failures: kinds that fail more; diagnosis: kinds whose "
        "failures are the agent's own, the more the nearer it came, and less where others spoil them (under "
        "a millisecond for a short failure)",
    )
    tag: str = Field("skill", description="the tag of the tasks that tells their kind; 2 to 64 values")
    floor: float = Field(0.1, gt=0, le=1, description="smallest weight of a kind, as a share of the largest one")
    memory_steps: float = Field(5.0, gt=0, description="steps after which what was seen counts half")
    policy: str = Field(
        "", description="rules for the diagnosis: .toml, or retail, shop, ...; empty: the built-in world's own, or none"
    )


class GradersSection(Section):
    """What the run is judged by, where that is not what the environment brings."""

    file: str = Field(
        "", description="a grader graph (.toml) in place of the environment's own graders; docs/graders.md"
    )
    penalty: float | None = Field(
        None, ge=0, description="what proven cheating costs; unset: what the graph says (docs/integrity.md)"
    )
    quarantine_steps: int = Field(
        0, ge=0, description="how long a task is not drawn on which a proven cheat earned something; 0: it stays"
    )


class CanariesSection(Section):
    """What is measured beside the steps and never trained on; docs/integrity.md."""

    impossible: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="impossible twins of training tasks that are played with each step, as a share of its groups; any "
        "success is a finding",
    )
    impossible_grader: str = Field("", description="whose full score is such a success; empty: held-out success")
    honeyfile: bool = Field(
        False, description="lay a file into every world that no honest episode reads; wants an integrity grader"
    )
    judge_every: int = Field(0, ge=0, description="RL steps between checks of the graph's judges; 0: never")
    judge_cases: str = Field("", description="labelled examples (.jsonl, at least 9) that they judge in every check")
    judge_grader: str = Field("", description="the rubric whose judges are checked; empty: the graph's only one")


class StagedSection(Section):
    """Weights of the environment's graders, and preference graders that come in later than verifiable ones.

    The short form of a grader graph; not beside graders.file.
    """

    weights: dict[str, float] = Field(
        default_factory=dict, description="final weight by grader; empty: equal shares of all, all the time"
    )
    preference: tuple[str, ...] = Field((), description="graders that wait; held-out success leaves them out")
    start: float = Field(0.3, ge=0, lt=1, description="share of the RL steps before the first of them counts")
    end: float | None = Field(
        None, gt=0, le=1, description="share at which they have their full weight; the ramp between is linear"
    )


class HealthSection(Section):
    """What is watched in every RL step, and how strictly; docs/health.md."""

    on: bool = Field(True, description="token streams, their scalars and monitors; costs 1 to 3% of a short step")
    softmax_every: int = Field(
        10,
        ge=0,
        description="steps between those that compute squared score norms (the size of each update); 0: never",
    )
    baseline_steps: int = Field(50, ge=10, description="first steps, which the frozen baselines are made of")
    false_alarms_per_1000: float = Field(
        0.5, gt=0, description="false alarms in 1000 healthy steps that the monitors are calibrated for, all together"
    )
    cooldown_steps: int = Field(20, ge=0, description="how long a monitor is silent after a finding")
    keep_streams: bool = Field(
        False, description="store the token streams of every step too (streams/*.parquet), to look at them anew later"
    )


class ControlSection(Section):
    """What is done about findings; defaults and their reasons in docs/control.md."""

    mode: Literal["off", "dry_run", "act"] = Field(
        "dry_run", description="dry_run: decisions are written down and change nothing; act: they are carried out"
    )
    rungs: tuple[
        Literal[
            "mask_tail",
            "verified_reward",
            "learning_rate",
            "kl_weight",
            "post_tool_cap",
            "near_misses",
            "curriculum",
            "rollback",
            "stop",
        ],
        ...,
    ] = Field((), description="those that may act; empty: all")
    keep_reference: bool = Field(
        False,
        description="keep the policy at the start of RL even where rl.kl_weight is 0, so that the KL weight can be "
        "raised and the drift be seen; one more forward pass",
    )
    quarantine_steps: int = Field(50, ge=0, description="how long tasks of groups that led to a rollback are not drawn")
    reservoir_groups: int = Field(64, ge=1, description="near-miss groups that are remembered")
    baseline_steps: int = Field(30, ge=1, description="first steps, which control's own baselines are made of")
    cooldown_steps: int = Field(8, ge=1, description="steps between two knobs that are turned or let go")
    release_steps: int = Field(12, ge=1, description="steps of health before a knob is let go")
    moment_cap: float = Field(0.04, gt=0, description="mask_tail: largest second moment of a slice, nats squared")
    progress_from: Literal["graders", "diagnosis"] = Field(
        "graders",
        description="how near a failed episode came to success: what graders say in their evidence, or, where they say "
        "nothing, the turns before the critical step that a diagnosis finds (some milliseconds an episode)",
    )
    learning_rate_floor: float = Field(0.1, gt=0, le=1, description="smallest factor on the learning rate")
    ess_low: float = Field(0.5, gt=0, description="normalised ESS under which near-misses may come")
    ess_recovered: float = Field(0.8, gt=0, description="normalised ESS above which knobs are let go")
    kl_weight_cap: float = Field(0.2, gt=0, description="largest KL weight")
    near_miss_share: float = Field(0.15, gt=0, le=1, description="part of a batch that near-misses may take")
    heldout_margin: float = Field(0.05, gt=0, description="drop of held-out success that counts as damage")
    max_rollbacks: int = Field(2, ge=0)
    rollback_learning_rate: float = Field(0.25, gt=0, le=1, description="factor on the learning rate after a rollback")
    rollback_hold_steps: int = Field(50, ge=1, description="how long it stays")
    stop_evaluations: int = Field(3, ge=1, description="evaluations in a row that must show damage before a stop")


class EvaluationSection(Section):
    """Held-out success."""

    every: int = Field(10, ge=0, description="RL steps between quick evaluations; 0: only at the ends")
    quick_tasks: int = Field(100, ge=1)
    quick_mode: Literal["greedy", "sampled"] = Field(
        "greedy",
        description="sampled: as the policy acts in training, which moves before greedy success does; what control "
        "hears of held-out success is of this mode",
    )
    tasks: int = Field(300, ge=1, description="held-out tasks of the evaluations at the start, after SFT and after RL")
    modes: tuple[Literal["greedy", "sampled"], ...] = ("greedy", "sampled")
    before: bool = Field(True, description="also evaluate the untrained policy")


class CheckpointSection(Section):
    """When to save."""

    every: int = Field(10, ge=1, description="RL steps between checkpoints")
    every_sft: int = Field(100, ge=1, description="SFT steps between checkpoints")
    keep: int = Field(3, ge=1, description="newest kept; the last one of each phase is always kept")


class ChecksSection(Section):
    """Always-on invariants."""

    every: int = Field(10, ge=1, description="steps between checks of micro-batches and canary (others run every step)")
    logprob_tolerance: float | None = Field(
        None,
        gt=0,
        description="largest |learner - sampler| log-probability; default 1e-4 in float32, calibrated in bf16",
    )
    micro_batch_tolerance: float | None = Field(
        None, gt=0, description="relative; default 1e-4 in float32, .05 in bf16"
    )
    max_micro_batch_tokens: int = Field(4096, ge=16, description="padded tokens in a micro-batch of the learner")


class StopSection(Section):
    """When a run gives up, with an explanation."""

    max_excluded_share: float = Field(0.25, ge=0, le=1, description="share of episodes without a reward, last 4 steps")
    stall_s: float = Field(
        600.0,
        gt=0,
        description="a process that makes no progress for so long writes its stacks and is ended; above the longest "
        "tool call and the longest gradient",
    )
    no_signal_groups: int = Field(128, ge=0, description="stop when the first N groups all lack signal; 0: never")


class TrackSection(Section):
    """Trackers of experiments that follow the run; docs/health_reports.md."""

    to: tuple[Literal["wandb", "trackio", "mlflow"], ...] = Field(
        (),
        description="send scalars, findings and decisions of every step as it is stored; one that fails stops no run",
    )
    project: str = Field("burnish", min_length=1, description="of the tracker")


class Recipe(Section):
    """All settings of a run."""

    run: RunSection = RunSection()
    environment: EnvironmentSection = EnvironmentSection()
    model: ModelSection = ModelSection()
    limits: LimitsSection = LimitsSection()
    warm_start: WarmStartSection = WarmStartSection()
    rl: RLSection = RLSection()
    curriculum: CurriculumSection = CurriculumSection()
    graders: GradersSection = GradersSection()
    canaries: CanariesSection = CanariesSection()
    staged: StagedSection = StagedSection()
    rollout: RolloutSection = RolloutSection()
    sampler: SamplerSection = SamplerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    checks: ChecksSection = ChecksSection()
    stop: StopSection = StopSection()
    health: HealthSection = HealthSection()
    control: ControlSection = ControlSection()
    track: TrackSection = TrackSection()

    @property
    def keeps_reference(self) -> bool:
        """Whether the policy at the start of RL is kept, for a KL term or for watching the drift from it."""
        return self.rl.kl_weight > 0 or self.rl.entropy_floor > 0 or self.control.keep_reference


FORKABLE_SECTIONS = tuple(name for name in Recipe.model_fields if name not in ("model", "warm_start"))
"""Sections that `fork` may change; the model and the warm start are part of the weights that it starts from."""
