"""The recipe: every setting of a run, with its default and the reason for it.

A recipe is a TOML file with these sections; `section.key=value` on the command line overrides it.  Unknown keys are
errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ENVIRONMENTS: Mapping[str, tuple[str, str]] = {
    "calculator": ("burnish.environments.calculator", "Calculator"),
    "shop": ("burnish.environments.shop", "Shop"),
}
"""Built-in environments by name: module and class."""

REASONING_GYM = "reasoning-gym"


class Section(BaseModel):
    """Base of all sections: immutable; an unknown key, NaN and infinity are errors.

    A number where text belongs is taken as text, since `run.name=2024` cannot say which it is.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


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


class EnvironmentSection(Section):
    """The world to train in."""

    name: str = Field(
        "shop",
        description="shop, calculator, reasoning-gym:DATASET, a Python file (file.py or file.py:Class) or a JSONL file",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the environment")
    seed: int = Field(0, ge=0, description="of the generated tasks; runs that share it can be compared")
    isolation: Literal["auto", "process", "none"] = Field(
        "auto",
        description="process: episodes live in host processes, so that a tool that blocks or crashes is ended at its "
        "limit and takes no worker with it; none: in the workers themselves (.2 ms a call faster); auto: process for "
        "your own files, none for what is built in",
    )
    hosts: int = Field(1, ge=1, description="host processes of each worker, where there are any")
    program: str = Field(
        "",
        description="your own agent loop in place of the environment's: file.py:function, or a command line; it asks "
        "the policy through any OpenAI client at the address that it is given, and brings its own tools",
    )
    grader_timeout_s: float = Field(30.0, gt=0, description="a grader that runs longer gives no grade")


class TinySection(Section):
    """A small model built from a transformers config; used where model.path is empty."""

    family: Literal["qwen3", "llama", "mistral", "gemma", "gpt2"] = "qwen3"
    hidden_size: int = Field(128, ge=8)
    layers: int = Field(3, ge=1)
    heads: int = Field(8, ge=1)
    kv_heads: int = Field(0, ge=0, description="0: as many as heads; fewer share keys and values, which copies worse")
    intermediate_size: int = Field(256, ge=8)
    max_positions: int = Field(2048, ge=64)
    vocab_size: int = Field(640, ge=300, description="of the tokenizer trained on the environment's own traces")


class LoraSection(Section):
    """Low-rank adapters instead of full weights."""

    rank: int = Field(0, ge=0, description="0 trains all weights")
    alpha: float = Field(32.0, gt=0)
    targets: str = Field("all-linear", description="all-linear, or comma-separated module names")


class ModelSection(Section):
    """The policy."""

    path: str = Field("", description="a folder or hub id that AutoModelForCausalLM loads; empty: build a tiny model")
    tiny: TinySection = TinySection()
    device: str = Field("auto", description="auto, cpu, cuda")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    lora: LoraSection = LoraSection()
    show_tools: Literal["full", "none", "auto"] = Field(
        "auto",
        description="put tool schemas into the prompt; auto: yes, except for tiny models, which learn them by SFT",
    )


class LimitsSection(Section):
    """What one episode may spend; an unset key keeps what the task or environment says."""

    max_turns: int | None = Field(None, ge=1)
    max_turn_tokens: int | None = Field(None, ge=1)
    max_episode_tokens: int | None = Field(None, ge=1)
    max_context_tokens: int | None = Field(None, ge=8)
    timeout_s: float | None = Field(None, ge=0)
    max_tool_result_chars: int | None = Field(None, ge=16)
    max_malformed_calls: int | None = Field(None, ge=1)


class WarmStartSection(Section):
    """Supervised fine-tuning before RL, on the environment's expert or on a chat JSONL file."""

    steps: int = Field(0, ge=0, description="0: no warm start")
    traces: int = Field(12_000, ge=1, description="expert traces to generate")
    data: str = Field("", description='chat JSONL, one {"messages": [...]} a line, instead of expert traces')
    mistakes: dict[str, float] = Field(
        default_factory=dict, description="share of traces with each of the expert's named mistakes (a noisy expert)"
    )
    keep: Literal["all", "correct"] = Field("all", description="correct: drop traces that the graders score below 1")
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
        description="importance weight of tokens that an older policy drew; auto: none in a synchronous run, else "
        "token_truncate, which bounds the variance at little bias",
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
    filter_zero_signal: bool = Field(
        True, description="leave out groups whose rewards are all equal; counted either way"
    )
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1, description="below 1 the kept sets are stored and the learner uses them too")
    top_k: int = Field(0, ge=0, description="0: all; see top_p")
    shuffle_rewards: bool = Field(
        False, description="control experiment: permute the rewards of a step over its members"
    )


class RolloutSection(Section):
    """How episodes are run beside the learner."""

    mode: Literal["sync", "async"] = Field(
        "sync",
        description="sync: a step waits for its own episodes (exact, resumes bit for bit); async: episodes run on "
        "while the learner steps, which pays where tools are slow or lengths uneven",
    )
    max_staleness: int = Field(
        4, ge=0, description="async: most steps between the oldest token of a group and the step that trains on it"
    )
    weights: Literal["in_flight", "episode"] = Field(
        "in_flight",
        description="async: new weights take effect for the next token (an episode may span versions), or episodes "
        "under way finish on the old ones first",
    )
    max_running: int = Field(0, ge=0, description="async: episodes at a time on each worker; 0: all that pacing allows")
    surplus: int = Field(
        0,
        ge=0,
        description="async: members started beyond group_size, cancelled once group_size have finished; shortens long "
        "tails and prefers short episodes",
    )
    straggler_s: float = Field(
        0.0,
        ge=0,
        description="async: give up groups that a step has waited for so long (dropped, counted); 0: wait",
    )


class SamplerSection(Section):
    """Where the policy is sampled; docs/servers.md."""

    url: str = Field("", description="a vLLM server that follows the learner's weights; empty: Burnish's own engine")
    name: str = Field("policy", description="what the server calls the model (--served-model-name)")
    folder: str = Field("", description="weights go through it, seen by the server too; empty: in the run's folder")
    max_in_flight: int = Field(256, ge=1, description="requests at a time")


class EvaluationSection(Section):
    """Held-out success."""

    every: int = Field(10, ge=0, description="RL steps between quick greedy evaluations; 0: only at the ends")
    quick_tasks: int = Field(100, ge=1)
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

    every: int = Field(10, ge=1, description="steps between micro-batch invariance checks (the others run every step)")
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


class Recipe(Section):
    """All settings of a run."""

    run: RunSection = RunSection()
    environment: EnvironmentSection = EnvironmentSection()
    model: ModelSection = ModelSection()
    limits: LimitsSection = LimitsSection()
    warm_start: WarmStartSection = WarmStartSection()
    rl: RLSection = RLSection()
    rollout: RolloutSection = RolloutSection()
    sampler: SamplerSection = SamplerSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    checks: ChecksSection = ChecksSection()
    stop: StopSection = StopSection()


FORKABLE_SECTIONS = (
    "run",
    "environment",
    "limits",
    "rl",
    "rollout",
    "sampler",
    "evaluation",
    "checkpoint",
    "checks",
    "stop",
)
"""Sections that `fork` may change; the model and the warm start are part of the weights that it starts from."""
