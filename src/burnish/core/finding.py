"""What a monitor noticed, and what control does about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something noticed in a run, with its evidence; control decides what to do about it.

    monitor: which one, such as "post_tool/log_ratio_behaviour_p95".  step: where it fired.  onset_step: estimated start
    of the change, -1 where none can be given.  kind: what the change means, such as "tail_growth" (see docs/health.md).
    slice_name: the tokens it is about, "" for all.  severity: "warning" or "alarm".  false_alarms_per_1000: the rate
    that the monitor's threshold was calibrated for, None for a hard rule.  evidence: JSON-able figures.

    `Finding(monitor="logprob_drift", step=12, summary="sampler and learner differ by 3e-3", evidence={"max": 3e-3})`
    """

    monitor: str
    step: int
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    trajectory_ids: tuple[str, ...] = ()
    onset_step: int = -1
    kind: str = ""
    slice_name: str = ""
    severity: str = "alarm"
    false_alarms_per_1000: float | None = None


class Act(StrEnum):
    """What control can ask of the loop; each is one knob, and the loop owns all of them.

    mask_tail: leave the tokens out of the loss that lie beyond a second-moment budget in one slice
    (values: slice, moment_cap).  verified_reward: train on what the verifiable graders alone say.  learning_rate:
    multiply the recipe's by `factor`.  kl_weight: set to `weight`.
    post_tool_cap: scale the weight of post-tool tokens so that their share is at most `share`.
    near_misses: add `count` groups from the reservoir to the next batch.  curriculum: `probabilities` by source.
    rollback: go back to checkpoint `checkpoint`, quarantine `group_ids`, and apply `knobs`.  stop: end the run.
    """

    MASK_TAIL = "mask_tail"
    VERIFIED_REWARD = "verified_reward"
    LEARNING_RATE = "learning_rate"
    KL_WEIGHT = "kl_weight"
    POST_TOOL_CAP = "post_tool_cap"
    NEAR_MISSES = "near_misses"
    CURRICULUM = "curriculum"
    ROLLBACK = "rollback"
    STOP = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One action of control, as a value: written down in any case, carried out by the loop unless `dry_run`.

    release: the knob goes back to what the recipe says.  reason: for people.  findings: monitors that led to it.

    `Decision(act=Act.LEARNING_RATE, step=40, values={"factor": 0.7}, reason="sequence ESS is at 49% of its reference")`
    """

    act: Act
    step: int
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()
    release: bool = False
    dry_run: bool = True
