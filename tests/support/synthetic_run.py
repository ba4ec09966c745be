"""A run directory as training would leave it, made in a moment: written through RunWriter, no model involved."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from burnish.core.cost import EpisodeCost
from burnish.core.grade import Grade
from burnish.core.message import ImagePart, Message, Role, TextPart, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.trajectory import Node, Trajectory
from burnish.reports.vocabulary import _BYTES
from burnish.rollout.cost import cost_scalars
from burnish.store.rows import EvaluationRow, Event, Fate, StepRecord, StoredTrajectory
from burnish.store.writer import RunWriter

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><!-- \u2028 \x1b]0;owned\x07"
    "\x1b[31m \u202eevil \"'`{{title}} ${1} &lt;b&gt; [red]"
)
"""What a hostile model or tool might write: ends of scripts, handlers, terminal escapes, reversed text, templates."""

GROUPS, GROUP_SIZE, HELD_OUT = 6, 4, 12
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
CALL = '{"name":"get_order","arguments":'
WORDS = ("What", " is", " the", " status", " of", " order", "user\n", "tool\n", "assistant\n", CALL)
_SPELLED = {byte: character for character, byte in _BYTES.items()}
_IDS = {word: len(SPECIAL) + 256 + index for index, word in enumerate(WORDS)}


def tokenizer_json() -> dict[str, Any]:
    """A byte-level vocabulary: special tokens, 256 bytes, some words."""
    spelled = {word: "".join(_SPELLED[byte] for byte in word.encode()) for word in WORDS}
    vocabulary = {_SPELLED[byte]: len(SPECIAL) + byte for byte in range(256)}
    vocabulary |= {spelled[word]: token for word, token in _IDS.items()}
    added = [{"id": index, "content": text, "special": True} for index, text in enumerate(SPECIAL)]
    return {"added_tokens": added, "model": {"type": "BPE", "vocab": vocabulary}, "decoder": {"type": "ByteLevel"}}


def encode(text: str) -> list[int]:
    """Ids of a text: special tokens and known words whole, other characters byte by byte."""
    known = {word: index for index, word in enumerate(SPECIAL)} | _IDS
    ids = []
    while text:
        word = next((word for word in known if text.startswith(word)), "")
        ids += [known[word]] if word else [len(SPECIAL) + byte for byte in text[0].encode()]
        text = text[len(word) or 1 :]
    return ids


def node(
    parent: int,
    text: str,
    messages: tuple[Message, ...],
    *,
    version: int = -1,
    rng: Random | None = None,
    fork: str = "",
) -> Node:
    """A node of the tokens of `text`; with a version its tokens are sampled."""
    ids = encode(text)
    is_action = version >= 0
    logprobs = [-(rng.expovariate(2.0) ** 2) if rng and is_action else math.nan for _ in ids]
    return Node(
        parent=parent,
        messages=messages,
        token_ids=array("i", ids),
        action_mask=array("b", [int(is_action)] * len(ids)),
        logprobs=array("f", logprobs),
        versions=array("i", [version] * len(ids)),
        is_action=is_action,
        fork=fork,
        duration_s=0.01 * len(ids),
    )


def trajectory(
    name: str,
    rng: Random,
    *,
    right: bool = True,
    outcome: Outcome = COMPLETED,
    version: int = 3,
    spoil: str = "",
    extra_tokens: int = 0,
) -> Trajectory:
    """An episode with one good tool call, one that fails, and an answer; `spoil` is put into every text, and the answer
    is `extra_tokens` longer."""
    group, _, sample = name.rpartition("/")
    order = rng.randint(100, 999)
    call = ToolCall(id="call_0", name=f"get_order{spoil}", arguments={"order_id": order, "note": spoil or "urgent"})
    broken = ToolCall(id="call_1", name="get_order", error=f"invalid JSON: expecting value{spoil}")
    answer = f"It is {'shipped' if right else 'lost'}.{spoil}"
    question = Message(
        role=Role.USER,
        parts=(
            TextPart(text=f"What is the status of order {order}?{spoil}"),
            ImagePart(sha256="ab" * 32, media_type="image/png", width_px=64, height_px=48),
        ),
    )
    result = f'{{"status":"shipped","customer":"Zoë 🙂"}}{spoil}'
    asked = f"<|im_start|>user\nWhat is the status of order {order}?<|im_end|>"
    sampled: dict[str, Any] = {"version": version, "rng": rng}
    nodes = (
        node(-1, asked, (Message.system("You run a shop."), question)),
        node(0, f"<tool_call>{CALL}", (Message.assistant("", (call,)),), **sampled),
        node(1, f"<|im_start|>tool\n{result}", (Message.tool(result, call=call),)),
        node(2, '<tool_call>{"name"', (Message.assistant(f"Again.{spoil}", (broken,)),), **sampled),
        node(3, "Error", (Message.tool(f"Error: unreadable call{spoil}", call=broken, is_error=True),)),
        node(
            -1,
            f"{' of' * extra_tokens}{answer}<|im_end|>",
            (Message.assistant(answer),),
            fork="template drops thinking",
            **sampled,
        ),
    )
    return Trajectory(
        id=name,
        task_id=f"orders-{order}",
        task_hash="ab" * 8,
        group_id=group,
        sample_index=int(sample),
        seed=2**62 + int(sample),
        nodes=nodes,
        outcome=outcome,
        answer=answer,
        final_state={"changes": [{"table": f"orders{spoil}", "after": {"id": order}}]},
        counters={"tool_calls": 2, "tool_errors": 1, "malformed_calls": 1, "forks": 1},
        tags={"level": "1", "template": f"status{spoil}"},
        tool_s=0.002,
        total_s=0.31,
    )


def stored(
    name: str, phase: str, step: int, rng: Random, *, reward: float | None, fate: Fate, **more: Any
) -> StoredTrajectory:
    """A row; an episode without a reward failed in the environment."""
    spoil = more.get("spoil", "")
    if reward is None:
        detail = f"get_order raised OSError: disk{spoil}"
        more["outcome"] = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="tool_raised", detail=detail)
    cause = "" if reward is not None else "excluded:error:environment"
    grade = Grade(
        grader="shop", version="1", score=reward, cause=cause, evidence={"expected": "shipped", "note": spoil}
    )
    return StoredTrajectory(
        trajectory=trajectory(name, rng, right=bool(reward), **more),
        phase=phase,
        step=step,
        policy_version=step,
        fate=fate,
        grades=(grade,),
        reward=reward,
        advantage=None if fate is not Fate.TRAINED or reward is None else reward - 0.5,
    )


def rl_rows(step: int, skill: float, *, spoil: str = "", is_asynchronous: bool = False) -> list[StoredTrajectory]:
    """A step's groups: some without signal, now and then one member that failed or ran out of turns.

    Asynchronous: members are up to 4 versions old, one group was dropped, and answers get shorter from step to step.
    """
    rng = Random(step)
    aside = Random(-step)
    rows = []
    for group in range(GROUPS):
        rewards: list[float | None] = [float(rng.random() < skill) for _ in range(GROUP_SIZE)]
        if group == 0:
            rewards[-1] = None
        fate = Fate.TRAINED if len({value for value in rewards if value is not None}) > 1 else Fate.FILTERED
        for sample, reward in enumerate(rewards):
            name = f"rl/{step:06d}/{group:04d}/{sample:02d}"
            late = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS) if rng.random() < 0.1 else COMPLETED
            given = Fate.FAILED if reward is None else fate
            more: dict[str, Any] = {}
            if is_asynchronous:
                given = Fate.DROPPED if group == GROUPS - 1 else given
                wordy = max(0, 60 - 2 * step) + aside.randint(0, 12) + (0 if reward else 12)
                more = {"version": max(0, step - 1 - aside.randint(0, 4)), "extra_tokens": wordy}
            rows.append(stored(name, "rl", step, rng, reward=reward, fate=given, outcome=late, spoil=spoil, **more))
    return rows


def rl_scalars(step: int, rows: Sequence[StoredTrajectory]) -> dict[str, float]:
    """The scalars that a training step stores, of these rows."""
    rng = Random(step)
    rewards = [row.reward for row in rows if row.reward is not None]
    mean = sum(rewards) / len(rewards)
    fates = [row.fate for row in rows]
    costs = [EpisodeCost.of(row.trajectory) for row in rows]
    tokens = sum(cost.action_tokens for cost in costs)
    scalars = {
        "reward/mean": mean,
        "reward/std": math.sqrt(mean * (1 - mean)),
        "groups/dispatched": float(GROUPS),
        "groups/signal": float(len({row.trajectory.group_id for row in rows if row.fate is Fate.TRAINED})),
        "episodes/dispatched": float(len(rows)),
        "episodes/turns": sum(cost.turns for cost in costs) / len(rows),
        "tokens/sampled": float(tokens),
        "tokens/per_episode": tokens / len(rows),
        "loss": rng.gauss(0.0, 0.1),
        "entropy_nats_mean": 0.6 * 0.97**step,
        "grad_norm": 1 + rng.random(),
        "clipped_low_mean": 0.01 * rng.random(),
        "clipped_high_mean": 0.02 * rng.random(),
        "log_ratio_behaviour_abs_nats_mean": 2e-6 * rng.random(),
        "log_ratio_behaviour_abs_nats_max": 2e-5 * rng.random(),
        "check/canary_nats": 1e-6 * rng.random(),
        "check/ratio_nats": 2e-5 * rng.random(),
        "time/step_s": 1.2,
        "time/rollout_s": 0.7 + 0.1 * rng.random(),
        "time/learn_s": 0.3,
        "rate/sampled_tokens_per_s": 9000 + 1000 * rng.random(),
        "count/tool_calls": 2.0 * len(rows),
        "count/tool_errors": 1.0 * len(rows),
    }
    if step % 10 == 1:
        scalars["check/micro_batch"] = 4e-7
    for fate in (Fate.TRAINED, Fate.FILTERED, Fate.DROPPED, Fate.FAILED):
        scalars[f"episodes/{fate}"] = float(fates.count(fate))
    scalars |= cost_scalars(costs) | {"reward/charged_mean": 0.0}
    for row in rows:
        key = f"outcome/{row.trajectory.outcome.label}"
        scalars[key] = scalars.get(key, 0.0) + 1
    return scalars


def asynchronous_scalars(step: int, rows: Sequence[StoredTrajectory]) -> dict[str, float]:
    """What a run whose episodes and optimizer steps overlap stores beside the rest."""
    rng = Random(step)
    ages = [step - 1 - max(row.trajectory.nodes[1].versions) for row in rows if row.fate is Fate.TRAINED]
    dropped = sum(row.fate is Fate.DROPPED for row in rows)
    return {
        "staleness/mean": sum(ages) / max(1, len(ages)),
        "staleness/max": float(max(ages, default=0)),
        "staleness/share_stale": sum(age > 0 for age in ages) / max(1, len(ages)),
        "pool/depth_steps": 1.0 + min(3, step // 4),
        "pool/in_flight": 40.0 + rng.randint(0, 8),
        "pool/ready": float(rng.randint(0, 9)),
        "pool/waited_s": 0.3 * rng.random(),
        "pool/requeued": float(step % 7 == 3),
        "workers/replaced": float(step % 7 == 3),
        "time/wait_s": 0.3 * rng.random(),
        "time/pause_s": 0.05,
        "episodes/pending": 44.0,
        "dropped/stale": float(dropped),
        "dropped/surplus": 0.0,
        "dropped/cancelled": float(step % 5 == 0),
        "reward/charged_mean": 0.04,
        "ratio_behaviour_mean": 1 + 0.02 * rng.gauss(0, 1),
        "ratio_proximal_mean": 1 + 0.002 * rng.gauss(0, 1),
        "log_ratio_behaviour_squared_mean": 0.02 + 0.01 * rng.random(),
        "log_ratio_proximal_squared_mean": 0.002 * rng.random(),
        "correction_ess_token": 0.95 - 0.02 * rng.random(),
        "correction_above_mean": 0.01 * rng.random(),
        "masked_mean": 0.004 * rng.random(),
        "ratio_behaviour_ess_raw_token": 0.9 - 0.1 * rng.random(),
        "ratio_behaviour_ess_raw_sequence": 0.6 - 0.2 * rng.random(),
    }


class SyntheticRun:
    """A run that can go on: `commit_rl_step` adds a step, as training would."""

    def __init__(
        self,
        folder: Path,
        *,
        spoil: str = "",
        manifest: Mapping[str, Any] | None = None,
        is_asynchronous: bool = False,
    ) -> None:
        self.folder = folder
        self.spoil = spoil
        self.is_asynchronous = is_asynchronous
        self.writer = RunWriter.create(folder, manifest or example_manifest(spoil))
        self.writer.layout.model.mkdir(exist_ok=True)
        (self.writer.layout.model / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
        self.rl_step = self._evaluations = 0

    def commit_sft(self, steps: int = 100) -> None:
        """Demonstrations, a falling loss, evaluations on both sides."""
        rng = Random(0)
        self.evaluate("before", "sft", 0, 0.0)
        rows = [
            stored(f"sft/000000/{n:04d}/00", "sft", 0, rng, reward=1.0, fate=Fate.DEMONSTRATION, spoil=self.spoil)
            for n in range(20)
        ]
        self.writer.commit_step(StepRecord(phase="sft", step=0, rows=rows, scalars={"demonstrations/kept": 20.0}))
        for step in range(10, steps + 1, 10):
            loss = 0.1 + 3 * 0.7 ** (step / 10)
            scalars = {"loss": loss, "nll_nats_mean": loss, "grad_norm": loss, "tokens": 800.0, "time/step_s": 0.05}
            self.writer.commit_step(StepRecord(phase="sft", step=step, scalars=scalars))
        self.evaluate("after_sft", "sft", steps, 0.4, splits=("heldout", "unseen"))

    def commit_rl_step(self, skill: float = 0.5, *, charge: float = 0.0, **fields: Any) -> None:
        """The next RL step; `charge` is taken from the reward of every success, as a token cost would."""
        self.rl_step += 1
        rows = rl_rows(self.rl_step, skill, spoil=self.spoil, is_asynchronous=self.is_asynchronous)
        rows = [replace(row, reward=row.reward - charge) if row.reward else row for row in rows]
        scalars = rl_scalars(self.rl_step, rows) | ({f"count/{self.spoil}": 1.0} if self.spoil else {})
        if self.is_asynchronous:
            scalars |= asynchronous_scalars(self.rl_step, rows)
            fields = {"policy_version": self.rl_step, **fields}
        self.writer.commit_step(StepRecord(phase="rl", step=self.rl_step, rows=rows, scalars=scalars, **fields))

    def evaluate(self, label: str, phase: str, step: int, share: float, splits: Sequence[str] = ("heldout",)) -> None:
        """Greedy on each split, and sampled on the first."""
        for split, mode in [(split, "greedy") for split in splits] + [(splits[0], "sampled")]:
            self._evaluations += 1
            rate = max(0.0, share - 0.1 * (mode == "sampled") - 0.15 * (split == "unseen"))
            successes = round(rate * HELD_OUT)
            rows = [
                stored(f"eval/{label}/{split}/{mode}/{n:05d}/00", "eval", self._evaluations, Random(n),
                       reward=float(n < successes), fate=Fate.HELD_OUT, spoil=self.spoil)
                for n in range(HELD_OUT)
            ]  # fmt: skip
            row = EvaluationRow(
                label=label, split=split, mode=mode, phase=phase, step=step, n=HELD_OUT, successes=successes,
                mean=successes / HELD_OUT, low=max(0.0, rate - 0.12), high=min(1.0, rate + 0.12),
                details={"excluded": 0, "outcomes": {"completed": HELD_OUT}, "tasks": [{"id": "t"}] * 3},
            )  # fmt: skip
            record = StepRecord(
                phase="eval", step=self._evaluations, rows=rows, scalars={"success": rate}, evaluations=[row]
            )
            self.writer.commit_step(record)


def example_manifest(spoil: str = "") -> dict[str, Any]:
    """A manifest of the form that a run writes."""
    return {
        "recipe": {
            "environment": {"name": f"shop{spoil}", "options": {"level": 1}},
            "model": {"path": "", "dtype": "auto", "tiny": {"family": "qwen3", "layers": 3, "hidden_size": 128}},
            "warm_start": {"steps": 100},
            "rl": {"steps": 30, "groups": GROUPS, "group_size": GROUP_SIZE, "loss": "grpo"},
            "checks": {"logprob_tolerance": None, "micro_batch_tolerance": None},
        },
        "recipe_hash": "6b4e1b95481f8028",
        "seed": 7,
        "versions": {"burnish": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "git": {"commit": "0123abc", "changed_files": "0"},
        "hardware": {
            "machine": "x86_64",
            "system": "Linux",
            "cores": 4,
            "memory_bytes": 16e9,
            "workers": 2,
            "threads": 1,
        },
    }


def finished_run(folder: Path, *, rl_steps: int = 30, spoil: str = "", is_asynchronous: bool = False) -> SyntheticRun:
    """A whole run up to its last step; its writer is still open."""
    run = SyntheticRun(folder, spoil=spoil, is_asynchronous=is_asynchronous)
    run.commit_sft()
    for step in range(1, rl_steps + 1):
        skill = min(0.95, 0.35 + 0.7 * step / rl_steps)
        findings = (
            [Event(kind="finding", detail=f"entropy fell{spoil}", data={"nats": 0.1})] if step == rl_steps else []
        )
        run.commit_rl_step(skill, events=findings)
        if step % 10 == 0 and step < rl_steps:
            run.evaluate(f"rl-{step:06d}", "rl", step, skill)
    run.evaluate("after_rl", "rl", rl_steps, 0.95, splits=("heldout", "unseen"))
    run.writer.event("resumed", f"from rl-000010{spoil}")
    return run
