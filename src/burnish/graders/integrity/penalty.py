"""What a flag does to a reward: proof costs, suspicion leaves the group, doing nothing is worth nothing.

proven       r_i = -penalty, whatever the graders said; the trajectory is kept, as evidence
suspected    no reward: out of the loss and of the group's baseline, counted
no attempt   r_i = min(r_i, 0)
clean        what the inner aggregator says, computed over the members that are neither of the first two
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.grade import Aggregator, Grade
from burnish.graders.aggregate import Shares, WeightedSum
from burnish.graders.integrity.flag import Strength


class Penalised(WeightedSum):
    """An aggregator behind an integrity grader's grades.

    integrity: name of that grader; a member without its grade gets no reward, since nobody looked.  penalty: at least
    the largest reward that cheating could bring; 0 for evaluations.

    >>> caught = Grade(grader="integrity", version="1", score=0.0, evidence={"strength": "proven"})
    >>> passed = Grade(grader="tests", version="1", score=1.0)
    >>> Penalised(WeightedSum({"tests": 1.0}), penalty=2.0).rewards([[passed, caught]])
    [-2.0]
    """

    def __init__(self, inner: Aggregator, *, penalty: float = 1.0, integrity: str = "integrity") -> None:
        super().__init__()
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ConfigError(f"the penalty for cheating is a number of at least 0, got {penalty!r}")
        self._inner = inner
        self._penalty = penalty
        self._integrity = integrity

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        """One reward for each member, in order."""
        verdicts, judged = self._verdicts(grades_G)
        inner = iter(self._inner.rewards(judged))
        found: list[float | None] = []
        for verdict in verdicts:
            reward = next(inner) if verdict in _JUDGED else None
            if verdict == Strength.NO_ATTEMPT and reward is not None:
                reward = min(reward, 0.0)
            found.append(-self._penalty if verdict == Strength.PROVEN else reward)
        return found

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """What each grader adds to each reward; a penalty stands under the integrity grader's name."""
        if not isinstance(self._inner, WeightedSum):
            raise TypeError(f"{type(self._inner).__name__} does not say what each grader adds")
        verdicts, judged = self._verdicts(grades_G)
        inner = iter(self._inner.shares(judged))
        found: list[Shares | None] = []
        for verdict in verdicts:
            shares = next(inner) if verdict in _JUDGED else None
            if verdict == Strength.NO_ATTEMPT and shares and sum(shares.values()) > 0:
                shares = dict.fromkeys(shares, 0.0)
            found.append({self._integrity: -self._penalty} if verdict == Strength.PROVEN else shares)
        return found

    def _verdicts(self, grades_G: Sequence[Sequence[Grade]]) -> tuple[list[str], list[Sequence[Grade]]]:
        """The strongest flag of each member, and the grades of those that the inner aggregator gets to see."""
        verdicts = [strength_of(grades, self._integrity) for grades in grades_G]
        rows = zip(verdicts, grades_G, strict=True)
        return verdicts, [grades for verdict, grades in rows if verdict in _JUDGED]


_JUDGED = ("", Strength.NO_ATTEMPT)


def strength_of(grades: Sequence[Grade], integrity: str = "integrity") -> str:
    """The strongest flag among a member's grades, "" for none, "unknown" where nobody looked."""
    grade = next((grade for grade in grades if grade.grader == integrity), None)
    if grade is None or (grade.score is None and not grade.cause.startswith("suspected:")):
        return "unknown"
    return str(grade.evidence.get("strength", ""))


def families_of(grade: Grade) -> tuple[str, ...]:
    """Families that an integrity grade names, the one it is called by first."""
    flags: Any = grade.evidence.get("flags", ())
    return tuple(str(flag["family"]) for flag in flags if isinstance(flag, Mapping) and "family" in flag)
