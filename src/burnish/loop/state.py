"""Everything mutable about a run except weights and optimizer: what a checkpoint stores as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from burnish.core.errors import InvariantViolation


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


@dataclass(slots=True, kw_only=True)
class LoopState:
    """The cursor of a run.

    version: optimizer steps taken so far, in all phases.  sft_pending: scalars of the SFT steps since the last commit.
    next_group, under_way: the next group of an asynchronous run, and (number, task) of those that had been started and
    not been trained on; a resumed run starts these again.
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

    def to_json(self) -> dict[str, Any]:
        """The form a checkpoint stores."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> LoopState:
        """Inverse of `to_json`."""
        values = dict(data)
        values["ledger"] = Ledger(**values["ledger"])
        values["under_way"] = [(int(number), int(task)) for number, task in values["under_way"]]
        values["recent"] = [(int(failed), int(total)) for failed, total in values["recent"]]
        return LoopState(**values)
