"""What graders say, and how a group's grades become rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from burnish.core.outcome import Ending, Outcome
from burnish.core.pickling import quickly_pickled
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory

SKIPPED_BY_GATE = "skipped:gate"
"""Cause of a grade without a score that nobody failed to give: the gate that its grader hangs on is closed."""


@quickly_pickled
@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A grader's verdict on one trajectory.  `Grade(grader="exact", version="1", score=1.0)`

    score in [0, 1], or None where the grader could not judge (then `cause` says why); a failure is never 0.
    evidence is JSON-able.  cost_s: wall seconds; cost_tokens: tokens of a judge.
    """

    grader: str
    version: str
    score: float | None
    cause: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    cost_s: float = 0.0
    cost_tokens: int = 0

    def __post_init__(self) -> None:
        if self.score is None:
            if not self.cause:
                raise ValueError(f"grader {self.grader}: a grade without a score needs a cause")
        elif not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise ValueError(f"grader {self.grader}: a score lies in [0, 1], got {self.score!r}")

    @property
    def is_skipped(self) -> bool:
        """A closed gate skipped this grader: no failure, and its share of a reward is 0, or closing it would be an
        escape."""
        return self.score is None and self.cause == SKIPPED_BY_GATE


def unanswered(outcome: Outcome) -> tuple[float | None, str] | None:
    """Score and cause of what ended before there was an answer to judge, None where it came to one.

    No score for what may carry no reward (`excluded:`), 0 for what stopped otherwise (`not_completed:`).
    """
    if not outcome.may_carry_reward:
        return None, f"excluded:{outcome.label}"
    if outcome.ending is not Ending.COMPLETED:
        return 0.0, f"not_completed:{outcome.label}"
    return None


class Grader(Protocol):
    """Judges one trajectory; total and deterministic unless it is a judge."""

    name: str
    version: str

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade: ...


class Aggregator(Protocol):
    """Turns the grades of a group into rewards, one for each member in order; None leaves the member out."""

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> Sequence[float | None]: ...
