"""From the grades of a group to its rewards."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade


class WeightedSum:
    """Reward = sum of weight x score; a member whose needed score is None gets None and leaves the group.

    weights: by grader name, any real numbers; None for equal shares that add up to 1.  Grades of weight 0, or
    without a weight, are recorded but do not count.

    >>> good = Grade(grader="exact", version="1", score=1.0)
    >>> short = Grade(grader="short", version="1", score=0.5)
    >>> WeightedSum({"exact": 1.0, "short": 0.2}).rewards([[good, short]])
    [1.1]
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        for name, weight in (weights or {}).items():
            if not math.isfinite(weight):
                raise ConfigError(f"the weight of grader {name!r} must be finite, got {weight!r}")
        self._weights = None if weights is None else dict(weights)

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        """One reward for each member, in order.  Raises ConfigError where a weight names no grader."""
        return [self._reward(grades) for grades in grades_G]

    def _reward(self, grades: Sequence[Grade]) -> float | None:
        by_name = {grade.grader: grade for grade in grades}
        weights = self._weights
        if weights is None:
            weights = {name: 1.0 / len(by_name) for name in by_name}
        total = 0.0
        for name, weight in weights.items():
            if name not in by_name:
                close = difflib.get_close_matches(name, by_name, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(by_name) or 'none'}"
                raise ConfigError(f"a weight names the grader {name!r}, which gave no grade; {hint}")
            if weight == 0.0:
                continue
            score = by_name[name].score
            if score is None:
                return None
            total += weight * score
        return total if by_name else None
