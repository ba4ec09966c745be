"""What a run directory holds, as values: the rows that the writer takes and the reader gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from burnish.core.grade import Grade
from burnish.core.streams import TokenStream
from burnish.core.trajectory import Trajectory

PHASES = ("sft", "rl", "eval")
"""The phases in the order in which a run goes through them; a step is named by (phase, step)."""


def step_order(phase: str, step: int) -> tuple[int, int]:
    """Sort key of a step; raises ValueError for a phase that is none of `PHASES`.

    >>> step_order("sft", 40) < step_order("rl", 1)
    True
    """
    if phase not in PHASES:
        raise ValueError(f"a phase is one of {', '.join(PHASES)}, got {phase!r}")
    return PHASES.index(phase), step


class Fate(StrEnum):
    """What became of a trajectory: dispatched = trained + filtered + dropped + failed + pending.

    filtered: its group carried no signal.  dropped: not used for another stated reason (stale, over budget).
    failed: its outcome may carry no reward, or no grader could judge it.  held_out and demonstration are outside
    that sum: evaluation episodes and warm-start traces.
    """

    TRAINED = "trained"
    FILTERED = "filtered"
    DROPPED = "dropped"
    FAILED = "failed"
    HELD_OUT = "held_out"
    DEMONSTRATION = "demonstration"


class RunState(StrEnum):
    """Where a run stands.

    interrupted is never written: a reader derives it where a run says "running" and no process writes to it (killed).
    stopped: ended early for a stated reason (Ctrl-C, no signal).  failed: ended by an error.
    """

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTrajectory:
    """A trajectory with everything that was decided about it.

    `StoredTrajectory(trajectory=t, phase="rl", step=12, policy_version=52, grades=(Grade(grader="exact", version="1",
    score=1.0),), reward=1.0, advantage=0.5, fate=Fate.TRAINED)`

    policy_version: count of optimizer steps when its episode began.  reward and advantage: None where it has none.
    attempt: which pass over this step wrote it; the writer sets it, 0 before any resume.
    """

    trajectory: Trajectory
    phase: str
    step: int
    policy_version: int
    fate: Fate
    grades: tuple[Grade, ...] = ()
    reward: float | None = None
    advantage: float | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, for people and for counts.

    `Event(kind="finding", detail="sampler and learner differ by 3e-3", data={"max": 3e-3})`.  data is JSON-able.
    """

    kind: str
    detail: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """The result of one held-out evaluation, with its interval.

    `EvaluationRow(label="after_sft", split="heldout", mode="greedy", phase="sft", step=40, n=300, successes=138.0,
    mean=0.46, low=0.40, high=0.52)`

    phase, step: the step whose resulting policy was evaluated.  mode: "sampled" or "greedy".  n: episodes that could
    be graded; successes: sum of their scores; mean, low, high: in [0, 1], a 95% interval.  details: JSON-able, such as
    the scores of each task or the counts of outcomes.
    """

    label: str
    split: str
    mode: str
    phase: str
    step: int
    n: int
    successes: float
    mean: float
    low: float
    high: float
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """Everything that becomes true with one step, committed together or not at all.

    `StepRecord(phase="rl", step=12, policy_version=53, rows=rows, scalars={"reward/mean": 0.41})`

    rows may be empty (then no segment is written).  scalars: any float; NaN is kept as NaN.  policy_version: after
    the step's update.  streams: token streams to keep beside the segment, for health to read again.
    """

    phase: str
    step: int
    policy_version: int = 0
    rows: Sequence[StoredTrajectory] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    events: Sequence[Event] = ()
    evaluations: Sequence[EvaluationRow] = ()
    streams: Sequence[TokenStream] = ()

    def __post_init__(self) -> None:
        step_order(self.phase, self.step)
        for row in self.rows:
            if (row.phase, row.step) != (self.phase, self.step):
                raise ValueError(
                    f"trajectory {row.trajectory.id} belongs to step {row.phase}/{row.step}, "
                    f"not to {self.phase}/{self.step}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """A committed step, without its rows.

    segment: name of its Parquet file, "" where the step has no trajectories.  n_tokens: of all its trajectories,
    shown and sampled.  committed_at_s: seconds since the epoch.  superseded: a resume from before this step has
    replaced it.

    `StepInfo(phase="rl", step=12, attempt=0, policy_version=53, segment="rl-000012.0.parquet", segment_sha256="9f...",
    n_trajectories=256, n_tokens=15360, committed_at_s=1.7e9, superseded=False)`
    """

    phase: str
    step: int
    attempt: int
    policy_version: int
    segment: str
    segment_sha256: str
    n_trajectories: int
    n_tokens: int
    committed_at_s: float
    superseded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event with when it happened; phase is "" and step -1 for an event outside a step.

    `StoredEvent(kind="resumed", detail="from rl/40", data={}, phase="", step=-1, attempt=1, at_s=1.7e9)`
    """

    kind: str
    detail: str
    data: Mapping[str, Any]
    phase: str
    step: int
    attempt: int
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A checkpoint that was complete on disk when this row was written.

    `CheckpointRow(name="rl-000040", phase="rl", step=40, sha256="9f...", at_s=1.7e9, superseded=False)`
    """

    name: str
    phase: str
    step: int
    sha256: str
    at_s: float
    superseded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run stands, as a reader sees it.

    live: a process holds the writer's lock.  Times are seconds since the epoch.

    `RunStatus(state=RunState.RUNNING, detail="", attempt=0, live=True, created_at_s=1.7e9, updated_at_s=1.7e9,
    heartbeat_at_s=1.7e9)`
    """

    state: RunState
    detail: str
    attempt: int
    live: bool
    created_at_s: float
    updated_at_s: float
    heartbeat_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectorySummary:
    """A trajectory without its messages and tokens, for lists.

    `TrajectorySummary(id="rl/000012/0003/05", phase="rl", step=12, group_id="rl/000012/0003", sample_index=5,
    task_id="orders-17", policy_version=52, outcome="completed", cause="", fate=Fate.TRAINED, reward=1.0, advantage=0.5,
    answer="41", n_nodes=4, n_tokens=96, action_tokens=31, tags={"level": "1"}, scores={"exact": 1.0}, total_s=0.02)`

    outcome: `Outcome.label`.  scores: of each grader, None where it could not judge.
    """

    id: str
    phase: str
    step: int
    group_id: str
    sample_index: int
    task_id: str
    policy_version: int
    outcome: str
    cause: str
    fate: Fate
    reward: float | None
    advantage: float | None
    answer: str
    n_nodes: int
    n_tokens: int
    action_tokens: int
    tags: Mapping[str, str]
    scores: Mapping[str, float | None]
    total_s: float
