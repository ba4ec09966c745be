"""From the grades of a group to its rewards: what a grader graph ends in.

With s_ig the score of grader g for member i and w_g its weight, over the members that have a reward:

    weighted_sum     r_i = sum_g w_g s_ig
    normalised_sum   r_i = sum_g w_g (s_ig - mean_g) / sd_g       sd_g of the group; 0 where all scores are equal
    relative_rank    r_i = sum_g w_g rank_ig                      rank in [0, 1] within the group, ties share theirs
    lexicographic    r_i = sum of w_g over the leading graders passed, plus w_g s_ig of the first one that is not

Why normalise first: in a plain sum the grader with the widest scores drowns the others, whatever its weight (GDPO, Liu
et al. 2026, arXiv:2601.05242, which normalises each reward in the group before summing; its second normalisation, over
the batch, is the optimizer's scale and left out).  Why ranks: an early policy passes no grader outright, and an order
among failures is still a signal.  Why lexicographic: no amount of style makes up for wrong code.

What counts: a score as it is; a grade that a closed gate skipped as 0 (else closing a gate would be an escape); any
other grade without a score leaves the member out of its group (failed is not zero), unless its weight is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.hints import did_you_mean

Shares = dict[str, float]
"""What each grader adds to one reward."""


class Terminal(Protocol):
    """An aggregator that can say what each grader adds; the rewards are the sums."""

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]: ...

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]: ...


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
        return [None if found is None else sum(found.values(), 0.0) for found in self.shares(grades_G)]

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """What each grader adds to each reward; None for members without one."""
        return [self._weighed(scores) for scores in self._counted(grades_G)]

    def _counted(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """Scores by grader, of those with a weight; None where one is missing, or where there are no grades at all."""
        return [self._member(grades) if grades else None for grades in grades_G]

    def _member(self, grades: Sequence[Grade]) -> Shares | None:
        by_name = {grade.grader: grade for grade in grades}
        scores: Shares = {}
        for name, weight in self._weights_of(by_name).items():
            if weight == 0.0:
                continue
            score = counted_score(by_name[name])
            if score is None:
                return None
            scores[name] = score
        return scores

    def _weighed(self, scores: Shares | None) -> Shares | None:
        if scores is None:
            return None
        weights = self._weights
        return {name: (1.0 / len(scores) if weights is None else weights[name]) * x for name, x in scores.items()}

    def _weights_of(self, by_name: Mapping[str, Grade]) -> Mapping[str, float]:
        if self._weights is None:
            return dict.fromkeys(by_name, 1.0 / len(by_name))
        for name in self._weights:
            if name not in by_name:
                hint = did_you_mean(name, by_name, f"there are {', '.join(by_name) or 'none'}")
                raise ConfigError(f"a weight names the grader {name!r}, which gave no grade; {hint}")
        return self._weights


class NormalisedSum(WeightedSum):
    """Each grader's scores are centred and scaled within the group before they are weighed and summed.

    >>> a, b = (Grade(grader="tests", version="1", score=score) for score in (0.2, 0.4))
    >>> [round(reward, 6) for reward in NormalisedSum({"tests": 1.0}).rewards([[a], [b]])]
    [-1.0, 1.0]
    """

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """What each grader adds to each reward; None for members without one."""
        return [self._weighed(scores) for scores in _columnwise(self._counted(grades_G), _normalised)]


class RelativeRank(WeightedSum):
    """Each grader's scores are replaced by their rank within the group before they are weighed and summed.

    >>> rows = [[Grade(grader="tests", version="1", score=score)] for score in (0.0, 0.1, 0.1)]
    >>> RelativeRank({"tests": 1.0}).rewards(rows)
    [0.0, 0.75, 0.75]
    """

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """What each grader adds to each reward; None for members without one."""
        return [self._weighed(scores) for scores in _columnwise(self._counted(grades_G), _ranks)]


class LexicographicGate(WeightedSum):
    """Graders in order of importance: each counts only where all before it are passed.

    tiers: name and the score from which on it is passed, most important first.  weights: above 0.  A member that passes
    more tiers always gets more, whatever the scores after the first one it fails.

    >>> tests = Grade(grader="tests", version="1", score=0.5)
    >>> style = Grade(grader="style", version="1", score=1.0)
    >>> LexicographicGate([("tests", 1.0), ("style", 1.0)], {"tests": 1.0, "style": 0.5}).rewards([[tests, style]])
    [0.5]
    """

    def __init__(self, tiers: Sequence[tuple[str, float]], weights: Mapping[str, float] | None = None) -> None:
        super().__init__(weights or dict.fromkeys((name for name, _ in tiers), 1.0))
        self._tiers = tuple(tiers)
        for name, passed_at in self._tiers:
            if name not in (self._weights or {}):
                raise ConfigError(f"the lexicographic tier {name!r} has no weight")
            if not 0.0 < passed_at <= 1.0:
                raise ConfigError(f"the tier {name!r} is passed from a score in (0, 1] on, got {passed_at!r}")
        if extra := set(self._weights or {}) - {name for name, _ in self._tiers}:
            raise ConfigError(f"weights of graders that are no tier: {', '.join(sorted(extra))}")
        if negative := [name for name, weight in (self._weights or {}).items() if weight < 0]:
            raise ConfigError(f"weights of lexicographic tiers are 0 or more; {negative[0]!r} has a negative one")

    def _member(self, grades: Sequence[Grade]) -> Shares | None:
        by_name = {grade.grader: grade for grade in grades}
        weights = self._weights_of(by_name)
        scores: Shares = {}
        is_passed = True
        for name, passed_at in self._tiers:
            if weights[name] == 0.0:
                continue
            score = counted_score(by_name[name]) if is_passed else 0.0
            if score is None:
                return None
            scores[name] = 1.0 if is_passed and score >= passed_at else score
            is_passed = is_passed and score >= passed_at
        return scores


class ShareOfBest(WeightedSum):
    """Weighted sum over the largest possible one, cut to [0, 1]: for evaluations, where members do not compete."""

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        """One reward for each member, in order."""
        weights = self._weights
        best = 1.0 if weights is None else sum(weight for weight in weights.values() if weight > 0) or 1.0
        return [None if r is None else min(1.0, max(0.0, r / best)) for r in super().rewards(grades_G)]


def counted_score(grade: Grade) -> float | None:
    """The score that a reward is made of: 0 behind a closed gate, None where nobody knows."""
    return 0.0 if grade.is_skipped else grade.score


def advantage_streams(aggregator: Terminal, grades_G: Sequence[Sequence[Grade]]) -> dict[str, list[float | None]]:
    """Per grader, what it adds to the advantage of each member: its share of the reward minus the group's mean share.

    The streams of a member add up to its reward minus the mean reward of its group.  None for members without one.

    >>> rows = [[Grade(grader=name, version="1", score=score) for name, score in member]
    ...         for member in ((("a", 1.0), ("b", 0.0)), (("a", 0.0), ("b", 0.0)))]
    >>> advantage_streams(WeightedSum({"a": 1.0, "b": 1.0}), rows)
    {'a': [0.5, -0.5], 'b': [0.0, 0.0]}
    """
    centred = _columnwise(aggregator.shares(grades_G), _centred)
    names = dict.fromkeys(name for member in centred if member is not None for name in member)
    return {name: [None if member is None else member[name] for member in centred] for name in names}


def _columnwise(rows: Sequence[Shares | None], change: Column) -> list[Shares | None]:
    """Apply `change` to the values of each grader over the members that have a reward."""
    known = [row for row in rows if row is not None]
    names = list(dict.fromkeys(name for row in known for name in row))
    changed = {name: change([row.get(name, 0.0) for row in known]) for name in names}
    position = iter(range(len(known)))
    return [None if row is None else _pick(changed, next(position)) for row in rows]


def _pick(columns: Mapping[str, Sequence[float]], index: int) -> Shares:
    return {name: values[index] for name, values in columns.items()}


class Column(Protocol):
    """Turns the values of one grader over a group into others."""

    def __call__(self, values: Sequence[float], /) -> list[float]: ...


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _normalised(values: Sequence[float]) -> list[float]:
    centred = _centred(values)
    deviation = math.sqrt(math.fsum(value * value for value in centred) / len(values))
    return [value / deviation if deviation > 1e-9 else 0.0 for value in centred]


def _ranks(values: Sequence[float]) -> list[float]:
    others = max(1, len(values) - 1)
    return [
        (sum(other < value for other in values) + 0.5 * (sum(other == value for other in values) - 1)) / others
        for value in values
    ]
