"""Everything mutable about a run except weights and optimizer: what a checkpoint stores as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from burnish.core.errors import InvariantViolation
from burnish.loop.knobs import Knobs


@dataclass(slots=True, kw_only=True)
class Ledger:
    """Where every dispatched episode went.

    After any step: dispatched = trained + filtered + dropped + failed + pending, where pending are the episodes of the
    groups that are under way beside the learner: none in a synchronous run, none at the end of any.
    `Ledger(dispatched=256, trained=200, filtered=48, dropped=0, failed=8)`
    """

    dispatched: int = 0
    trained: int = 0
    filtered: int = 0
    dropped: int = 0
    failed: int = 0

    @property
    def pending(self) -> int:
        """Episodes dispatched and not yet accounted for."""
        return self.dispatched - self.trained - self.filtered - self.dropped - self.failed

    def check(self, under_way: int = 0) -> None:
        """Raises InvariantViolation where an episode is unaccounted for."""
        if self.pending != under_way:
            lost = self.pending - under_way
            raise InvariantViolation("accounting", f"{lost} episodes unaccounted for: {asdict(self)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A held-out evaluation that control has not heard of yet: RL steps taken, success in [0, 1], episodes graded.

    `Evaluated(step=40, success=0.6, episodes=100)`
    """

    step: int
    success: float
    episodes: int


@dataclass(slots=True, kw_only=True)
class Mark:
    """A checkpoint of the RL phase that was due.  verified: held-out success was looked at there, and all was well.

    `Mark(name="rl-000040", step=40, verified=True)`
    """

    name: str
    step: int
    verified: bool = False


WAYS_BACK = 6
"""Verified checkpoints that a rollback may go to: a fault is noticed some steps after it began."""


@dataclass(slots=True, kw_only=True)
class LoopState:
    """The cursor of a run.

    version: optimizer steps taken so far, in all phases.  sft_pending: scalars of the SFT steps since the last commit.
    next_group, under_way: the next group of an asynchronous run, and (number, task) of those that had been started and
    not been trained on; a resumed run starts these again.  health, control, reservoir: what `Oversight` goes on from,
    None before its first step.  knobs: what control has turned.  marks: the RL checkpoints so far.
    normaliser: what the weights of trajectories were learnt from.  teachable: what the curriculum saw of each kind of
    task.  evaluated: the newest evaluation, until the next
    step has told control of it.  first_entropies, entropy: nats per trained token in the first steps and in the newest,
    where `rl.entropy_floor` is on.  canaries: what `Canaries` goes on from.
    """

    phase: str = "start"
    sft_step: int = 0
    rl_step: int = 0
    evaluations: int = 0
    version: int = 0
    task_cursor: dict[str, Any] | None = None
    sample_cursor: dict[str, Any] | None = None
    sft_pending: list[dict[str, float]] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    recent: list[tuple[int, int]] = field(default_factory=list)
    next_group: int = 0
    under_way: list[tuple[int, int]] = field(default_factory=list)
    groups_seen: int = 0
    groups_with_signal: int = 0
    success: float | None = None
    health: dict[str, Any] | None = None
    control: dict[str, Any] | None = None
    reservoir: list[dict[str, Any]] | None = None
    normaliser: dict[str, Any] | None = None
    teachable: dict[str, Any] | None = None
    first_entropies: list[float] = field(default_factory=list)
    entropy: float | None = None
    knobs: Knobs = field(default_factory=Knobs)
    marks: list[Mark] = field(default_factory=list)
    evaluated: Evaluated | None = None
    canaries: dict[str, Any] = field(default_factory=dict)

    def ways_back(self) -> list[Mark]:
        """The newest verified checkpoints.  Not looked up on disk, so that it does not depend on interruptions."""
        return [mark for mark in self.marks if mark.verified][-WAYS_BACK:]

    def to_json(self) -> dict[str, Any]:
        """The form a checkpoint stores."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> LoopState:
        """Inverse of `to_json`."""
        values = dict(data)
        values["ledger"] = Ledger(**values["ledger"])
        values["knobs"] = Knobs.from_json(values["knobs"])
        values["marks"] = [Mark(**mark) for mark in values["marks"]]
        values["evaluated"] = None if values["evaluated"] is None else Evaluated(**values["evaluated"])
        values["under_way"] = [(int(number), int(task)) for number, task in values["under_way"]]
        values["recent"] = [(int(failed), int(total)) for failed, total in values["recent"]]
        return LoopState(**values)
