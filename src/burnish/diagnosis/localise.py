"""From hypotheses to a ranking with probabilities: a log-linear model whose weights start from a stated prior.

    p(h) = exp(w . f(h)) / (exp(b) + sum over h' of exp(w . f(h')))       (McFadden 1974, conditional logit)

The first term of the denominator stands for "nothing went wrong that can be named".  b and w are fitted by maximum a
posteriori with a normal prior around `PRIOR`: with few labels they stay where judgement put them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from burnish.diagnosis.hypotheses import Hypothesis
from burnish.diagnosis.taxonomy import Category, Fault

PRIOR: Mapping[str, float] = {
    "role:user": -1.0,
    "role:task": -4.0,
    "role:tool": -3.0,
    "role:talk": -1.0,
    "role:call": -1.5,
    "role:write": 0.5,
    "late": 0.5,
    "severity": 2.0,
    "strong": 3.0,
    "lift": 0.6,
    "first_strong": 1.0,
    "from:claim": 1.0,
    "from:policy": 0.0,
    "diff:write": 2.5,
    "diff:user_named_right": 1.0,
    "diff:user_named_neither": 1.0,
    "diff:not_agreed": 1.5,
    "diff:agent_chose": 0.5,
    "diff:request": 2.0,
    "diff:never_named": 1.0,
    "diff:asked_for_wrong": 1.0,
    "diff:unconfirmed": -1.5,
    "diff:first_asked_for_wrong": 1.0,
    "diff:agent_said_first": 1.5,
    "diff:declined_before": 1.5,
    "diff:blocked": 2.5,
    "diff:blocked_by_own": 3.5,
    "diff:asked_too_late": 3.5,
    "diff:declined": 2.0,
    "diff:declined_wanted": 1.5,
    "diff:error_instead": 2.5,
    "diff:refused": 2.0,
    "diff:handed_over": 1.5,
    "diff:never_asked": 2.0,
    "diff:left_out": 1.5,
    "diff:cut_off": 3.0,
    "diff:told_another": 3.0,
    "diff:told_amounts": 1.0,
    "diff:never_asked_to_tell": 1.0,
    "none": 4.5,
    "none:same_as_reference": 4.0,
    "none:departs": -4.0,
}
"""Set by judgement before any fit.  none: nothing to name, per trajectory; the others add to a hypothesis."""
SPREAD = 0.5
"""Standard deviation of the prior of each weight; small, since a few dozen labels are all that is ever there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A message with the chance that it is the critical one.

    `Suspect(position=19, index=20, p=0.41, category=Category.UNDERSPECIFIED, owner=Fault.USER, why=("...",))`
    category and owner: the likeliest for this message.  agent: the member of a team who speaks there, "" without one.
    """

    position: int
    index: int
    p: float
    category: Category
    owner: Fault
    why: tuple[str, ...] = ()
    agent: str = ""
    by_judge: bool = False

    @property
    def party(self) -> str:
        """The owner with the member of a team.  `"agent (WebSurfer)"`"""
        return f"{self.owner} ({self.agent})" if self.agent else str(self.owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Suspects, likeliest first; their chances and `p_none` add up to 1."""

    suspects: tuple[Suspect, ...]
    p_none: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights by feature; a feature without one weighs nothing.  `Weights(values={"none": 4.5})`"""

    values: Mapping[str, float] = field(default_factory=lambda: dict(PRIOR))


def none_features(compared: bool, clean: bool) -> dict[str, float]:
    """Features of "nothing to name": whether a reference was there and agreed."""
    if not compared:
        return {"none": 1.0}
    return {"none": 1.0, "none:same_as_reference" if clean else "none:departs": 1.0}


def _score(features: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(value * weights.get(name, 0.0) for name, value in features.items())


def rank(found: Sequence[Hypothesis], none: Mapping[str, float], weights: Weights, indices: Sequence[int]) -> Ranking:
    """Steps by the sum of the chances of their hypotheses.  indices: the source's number of each message."""
    scores = [_score(h.features, weights.values) for h in found]
    base = _score(none, weights.values)
    top = max([base, *scores])
    exps = [math.exp(score - top) for score in scores]
    total = sum(exps) + math.exp(base - top)
    # a label counts steps: where several messages share a number, their chances are those of one step
    by_index: dict[int, list[tuple[float, Hypothesis]]] = {}
    for value, hypothesis in zip(exps, found, strict=True):
        by_index.setdefault(indices[hypothesis.position], []).append((value / total, hypothesis))
    suspects = []
    for index, rows in by_index.items():
        rows.sort(key=lambda row: -row[0])
        best = rows[0][1]
        why = tuple(dict.fromkeys(text for _, hypothesis in rows for text in hypothesis.why))[:8]
        suspects.append(
            Suspect(
                position=best.position,
                index=index,
                p=sum(p for p, _ in rows),
                category=best.category,
                owner=best.owner,
                why=why,
            )
        )
    suspects.sort(key=lambda suspect: (-suspect.p, suspect.position))
    return Ranking(suspects=tuple(suspects), p_none=math.exp(base - top) / total)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A labelled trajectory for fitting.  target: position of the critical message, -1 where nothing failed."""

    hypotheses: tuple[Hypothesis, ...]
    none: Mapping[str, float]
    target: int
    category: Category | None = None


def fit(examples: Sequence[Example], *, prior: Mapping[str, float] = PRIOR, spread: float = SPREAD) -> Weights:
    """Weights by maximum a posteriori: sum of log p(target) - sum of (w - prior)^2 / (2 spread^2).

    The target of a failed run is its message, and half as much its message with its category.  Deterministic.
    """
    names = sorted({*prior, *(n for e in examples for h in e.hypotheses for n in h.features)})
    centre = np.array([prior.get(name, 0.0) for name in names])
    usable = [e for e in examples if e.target < 0 or any(h.position == e.target for h in e.hypotheses)]
    if not usable:
        return Weights(values=dict(prior))
    stack = _Stack.of(usable, {name: number for number, name in enumerate(names)})

    def loss(w: Vector) -> tuple[float, Vector]:
        value, slope = stack.loss(w)
        return value + float(((w - centre) ** 2).sum()) / (2 * spread**2), slope + (w - centre) / spread**2

    best = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return Weights(values={name: round(float(value), 4) for name, value in zip(names, best.x, strict=True)})


Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stack:
    """All hypotheses of all examples under each other: N rows, K features, E examples.

    features_NK; starts_E: first row of each example; lengths_E; masks: rows that are right with the weight of being so.
    """

    features_NK: Vector
    starts_E: npt.NDArray[np.intp]
    lengths_E: npt.NDArray[np.intp]
    masks: tuple[tuple[Vector, float], ...]

    @staticmethod
    def of(examples: Sequence[Example], column: Mapping[str, int]) -> _Stack:
        rows, here, exact, lengths = [], [], [], []
        for example in examples:
            for h in example.hypotheses:
                rows.append(h.features)
                here.append(float(h.position == example.target))
                exact.append(here[-1] * (h.category is example.category))
            rows.append(dict(example.none))
            here.append(float(example.target < 0))
            exact.append(0.0)
            lengths.append(len(example.hypotheses) + 1)
        features = np.zeros((len(rows), len(column)))
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name in column:
                    features[number, column[name]] = value
        sizes = np.array(lengths, dtype=np.intp)
        return _Stack(
            features_NK=features,
            starts_E=np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp),
            lengths_E=sizes,
            masks=((np.array(here), 1.0), (np.array(exact), 0.5)),
        )

    def loss(self, w: Vector) -> tuple[float, Vector]:
        """Negative log-likelihood and its slope."""
        scores = self.features_NK @ w
        scores -= np.repeat(np.maximum.reduceat(scores, self.starts_E), self.lengths_E)
        p = np.exp(scores)
        p /= np.repeat(np.add.reduceat(p, self.starts_E), self.lengths_E)
        value, residual = 0.0, np.zeros_like(p)
        for mask, share in self.masks:
            inside = p * mask
            mass = np.add.reduceat(inside, self.starts_E)
            counted = mass > 0
            value -= share * float(np.log(np.maximum(mass[counted], 1e-300)).sum())
            scale = np.where(counted, 1.0 / np.maximum(mass, 1e-300), 0.0)
            residual -= share * (inside * np.repeat(scale, self.lengths_E) - p * np.repeat(counted, self.lengths_E))
        return value, self.features_NK.T @ residual
