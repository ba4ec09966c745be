"""Gated aggregation: bonuses for evidence count behind a right answer, and only there.

With A the answer's score, F the form's, s_k the other components with weights w_k (importance times the teacher's
reliability, constants of the task), tau the passing score, Lambda the bonus and w_f the weight of the form:

    S = sum_k w_k s_k / sum_k w_k          over the components k that apply to the task; 0 where none does
    R = w_f F + 1 + Lambda S               where A >= tau
    R = w_f F + A (1 - w_f - m) / tau      else; m a margin

Source: our reconstruction of the gate that Argos describes (Microsoft Research, arXiv:2512.03438); its own weights and
formula are not public.  For an answer that is right (1) or wrong (0) this is w_f F + A + 1[A >= tau] Lambda S.  For a
graded one the two branches keep what the plain sum loses: a wrong answer stays below 1 - m however near it comes to
tau, and right ones differ by their evidence alone, so that evidence never makes up for a worse answer.

What follows: a right answer outranks a wrong one whatever the teachers say; with a teacher of false-positive rate a and
false-negative rate b the expected order inside right answers stands while a + b < 1; an all-right group gets a signal
from S; an all-wrong one gets none from any teacher.  In a group of equal answers do not divide by the standard
deviation without a floor: it blows any teacher noise up to unit size.

A component that could not be scored for one member is left out for the whole group, for weights that depend on the
response let a dominated one win.  A member whose answer could not be judged leaves the group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.graders.aggregate import Shares, WeightedSum, counted_score

NOT_APPLICABLE = "not_applicable"
"""Cause of a grade without a score that the task does not ask for."""

MARGIN = 0.05
"""By how much a right answer outranks any wrong one, at least."""

Parts = Mapping[str, tuple[float | None, float]]
"""Score and weight of each component by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """The constants.  `GateSpec(tau=1.0, bonus=0.5, w_format=0.1)`

    tau in (0, 1]; bonus above 0 or 0; w_format in [0, 1 - margin), so that form never makes up for an answer.
    """

    tau: float = 1.0
    bonus: float = 0.5
    w_format: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.tau <= 1.0:
            raise ConfigError(f"tau of the gate lies in (0, 1], got {self.tau!r}")
        if not (math.isfinite(self.bonus) and self.bonus >= 0.0):
            raise ConfigError(f"bonus of the gate is a finite number of at least 0, got {self.bonus!r}")
        if not 0.0 <= self.w_format < 1.0 - MARGIN:
            raise ConfigError(f"w_format of the gate lies in [0, {1 - MARGIN}), got {self.w_format!r}")

    def largest(self, has_parts: bool = True) -> float:
        """The largest reward there is."""
        return self.w_format + 1.0 + (self.bonus if has_parts else 0.0)


def grounded_share(parts: Parts) -> float:
    """S: the weighted mean of the components that have a score, 0 where none has.

    >>> grounded_share({"spatial": (0.8, 1.0), "temporal": (None, 1.0)})
    0.8
    """
    live = [(score, weight) for score, weight in parts.values() if score is not None and weight > 0.0]
    total = sum(weight for _, weight in live)
    return sum(score * weight for score, weight in live) / total if total else 0.0


def gated_reward(answer: float, form: float, parts: Parts, spec: GateSpec | None = None) -> tuple[float, bool]:
    """The reward, and whether the gate is open.

    >>> gated_reward(1.0, 1.0, {"spatial": (0.8, 1.0), "temporal": (None, 1.0)})
    (1.5, True)
    >>> gated_reward(0.0, 1.0, {"spatial": (1.0, 1.0)})
    (0.1, False)
    """
    spec = spec or GateSpec()
    shares, is_open = _shares(answer, form, parts, spec)
    return sum(shares.values()), is_open


def _shares(answer: float, form: float, parts: Parts, spec: GateSpec) -> tuple[Shares, bool]:
    """What the answer (""), the form (" ") and each part add."""
    if answer < spec.tau:
        return {"": answer * (1.0 - spec.w_format - MARGIN) / spec.tau, " ": spec.w_format * form}, False
    live = {name: (score, weight) for name, (score, weight) in parts.items() if score is not None and weight > 0.0}
    total = sum(weight for _, weight in live.values())
    bonus = {name: spec.bonus * score * weight / total for name, (score, weight) in live.items()}
    return {"": 1.0, " ": spec.w_format * form, **bonus}, True


@dataclass(frozen=True, slots=True, kw_only=True)
class GateNodes:
    """Which graders of a graph the gate is made of.  `GateNodes(answer="answer", form="format")`

    form: "" where no grader looks at the form.
    """

    answer: str
    form: str = ""
    spec: GateSpec = field(default_factory=GateSpec)


class GatedAggregator(WeightedSum):
    """The end of a grader graph: the answer's grade opens the gate, every other one with a weight above 0 (except the
    form's) is a component.

    weights: by grader name; those of answer and form are not used, for their places in the formula are fixed.

    >>> right = [Grade(grader="answer", version="1", score=1.0), Grade(grader="spatial", version="1", score=0.5)]
    >>> wrong = [Grade(grader="answer", version="1", score=0.0), Grade(grader="spatial", version="1", score=1.0)]
    >>> GatedAggregator({"spatial": 1.0}, GateNodes(answer="answer")).rewards([right, wrong])
    [1.25, 0.0]
    """

    def __init__(self, weights: Mapping[str, float], gate: GateNodes) -> None:
        super().__init__(weights)
        self.parts = {name: w for name, w in weights.items() if name not in (gate.answer, gate.form) and w != 0.0}
        for name, weight in self.parts.items():
            if weight < 0.0:
                raise ConfigError(f"weights behind a gate are above 0, got {weight!r} for {name!r}")
        self.gate = gate

    def shares(self, grades_G: Sequence[Sequence[Grade]]) -> list[Shares | None]:
        """What each grader adds to each reward."""
        rows = [{grade.grader: grade for grade in grades} for grades in grades_G]
        scores = [{name: self._score(row, name) for name in (self.gate.answer, *self.parts)} for row in rows]
        judged = [row for row in scores if row[self.gate.answer] is not None]
        live = [name for name in self.parts if all(row[name] is not None for row in judged)]
        return [self._of_member(row, found, live) for row, found in zip(rows, scores, strict=True)]

    def _score(self, row: Mapping[str, Grade], name: str) -> float | None:
        if not row:
            return None
        if name not in row:
            raise ConfigError(f"the gated aggregator needs a grade of {name!r}; there are {', '.join(row)}")
        return counted_score(row[name])

    def _of_member(
        self, row: Mapping[str, Grade], scores: Mapping[str, float | None], live: Sequence[str]
    ) -> Shares | None:
        answer = scores[self.gate.answer]
        if answer is None:
            return None
        form = (self._score(row, self.gate.form) or 0.0) if self.gate.form else 0.0
        found, _ = _shares(answer, form, {name: (scores[name], self.parts[name]) for name in live}, self.gate.spec)
        named = {self.gate.answer: found.pop("")}
        weighed_form = found.pop(" ")
        return named | ({self.gate.form: weighed_form} if self.gate.form else {}) | found


class GatedShare:
    """For evaluations: each episode by itself, over the largest reward of its task, in [0, 1]."""

    def __init__(self, aggregator: GatedAggregator) -> None:
        self._whole = aggregator

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> list[float | None]:
        """One number for each member, in order; the members do not compete and may be of different tasks."""
        return [self._share(grades) for grades in grades_G]

    def _share(self, grades: Sequence[Grade]) -> float | None:
        (reward,) = self._whole.rewards([grades])
        if reward is None:
            return None
        spec = self._whole.gate.spec
        form = spec.w_format if self._whole.gate.form else 0.0
        has_parts = any(g.score is not None and g.grader in self._whole.parts for g in grades)
        return min(1.0, reward / (1.0 + form + (spec.bonus if has_parts else 0.0)))
