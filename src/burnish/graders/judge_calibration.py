"""A judge against labels that people gave: how often it is right, and a map from what it says to what they would.

A graded value is mapped in one of two ways. Isotonic: the non-decreasing step function nearest to the labels (pool
adjacent violators; Barlow et al. 1972), read off with straight lines between its points. Threshold: the cut with the
largest balanced accuracy (Youden 1950, Cancer 3:32). Values that are only ever 0 or 1 need no map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from burnish.core.errors import ConfigError
from burnish.graders.agreement import Scale, cohen_kappa
from burnish.stats.intervals import Estimate, wilson

MIN_LABELS = 20
"""Fewer give no map: it would be noise."""
FOLDS = 5
PERMUTATIONS = 2000


class Mapped(StrEnum):
    """How a graded value is mapped."""

    ISOTONIC = "isotonic"
    THRESHOLD = "threshold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said of one criterion of one labelled case.

    `Judgement(case="m1", judge="openai:x", criterion="cites", value=1.0, label=1.0, position=3)`

    value: in [0, 1], None where it gave none (then `cause`).  label: in [0, 1], None without one.  position: of the
    criterion in its batch, from 0.
    """

    case: str
    judge: str
    criterion: str
    value: float | None
    label: float | None
    position: int = 0
    order: int = 0
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How right a judge is; met means at least one half.

    n: judged and labelled.  missing: labelled and not judged.  sensitivity: share of the met that it finds;
    specificity: share of the unmet; None where the labels have none of them.  threshold: the best cut of a graded value
    with its balanced accuracy over held-out folds; None where values are 0 or 1 or labels are few.
    """

    n: int
    missing: int
    sensitivity: Estimate | None
    specificity: Estimate | None
    kappa: float | None
    threshold: float | None = None
    threshold_accuracy: float | None = None

    @property
    def balanced(self) -> float | None:
        """Mean of sensitivity and specificity."""
        if self.sensitivity is None or self.specificity is None:
            return None
        return (self.sensitivity.mean + self.specificity.mean) / 2

    def to_json(self) -> dict[str, Any]:
        """For printing and files."""
        parts = {"sensitivity": self.sensitivity, "specificity": self.specificity}
        spread = {
            name: None if part is None else {"mean": part.mean, "low": part.low, "high": part.high, "n": part.n}
            for name, part in parts.items()
        }
        return {
            "n": self.n,
            "missing": self.missing,
            "balanced_accuracy": self.balanced,
            **spread,
            "kappa": self.kappa,
            "threshold": self.threshold,
            "threshold_balanced_accuracy": self.threshold_accuracy,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A non-decreasing map of [0, 1] into itself: straight lines between points, flat outside.

    >>> Curve(x=(0.0, 1.0), y=(0.2, 0.8)).apply(0.5)
    0.5
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip(self.x, self.x[1:], strict=False))
        grows = all(a <= b for a, b in zip(self.y, self.y[1:], strict=False))
        inside = all(0.0 <= value <= 1.0 for value in (*self.x, *self.y))
        if not (self.x and len(self.x) == len(self.y) and rises and grows and inside):
            raise ConfigError(f"a curve has rising x and non-decreasing y in [0, 1], got x={self.x}, y={self.y}")

    def apply(self, value: float) -> float:
        return float(np.interp(value, self.x, self.y))


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Curves by judge and criterion; what has none stays as it is.

    `Calibration(rubric="9313f08c", curves={"openai:x": {"cites": Curve(x=(0.0, 1.0), y=(0.1, 0.9))}})`
    """

    rubric: str
    curves: Mapping[str, Mapping[str, Curve]]

    def apply(self, judge: str, criterion: str, value: float) -> float:
        """What people would say where this judge says `value`."""
        curve = self.curves.get(judge, {}).get(criterion)
        return value if curve is None else curve.apply(value)

    def to_json(self) -> dict[str, Any]:
        """`calibration_from_json` is its inverse."""
        return {
            "rubric": self.rubric,
            "curves": {
                judge: {criterion: {"x": list(curve.x), "y": list(curve.y)} for criterion, curve in curves.items()}
                for judge, curves in self.curves.items()
            },
        }


def calibration_from_json(data: Any) -> Calibration:
    """Inverse of `Calibration.to_json`.  Raises ConfigError for anything else."""
    try:
        curves = {
            str(judge): {
                str(name): Curve(x=tuple(float(x) for x in curve["x"]), y=tuple(float(y) for y in curve["y"]))
                for name, curve in by_criterion.items()
            }
            for judge, by_criterion in data["curves"].items()
        }
        return Calibration(rubric=str(data["rubric"]), curves=curves)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"not a calibration as `burnish judge calibrate --out` writes it: {error!r}") from error


def load_calibration(path: Path | str) -> Calibration:
    """The calibration in a JSON file; a file of `burnish judge calibrate --json` does too."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"calibration {path} cannot be read: {error}") from error
    return calibration_from_json(data.get("calibration", data) if isinstance(data, dict) else data)


def accuracy(judgements: Sequence[Judgement]) -> Accuracy:
    """How right these judgements are, taken together.

    >>> def said(value, label):
    ...     return Judgement(case="c", judge="j", criterion="a", value=value, label=label)
    >>> accuracy([said(1.0, 1.0), said(0.0, 1.0), said(0.0, 0.0)]).balanced
    0.75
    """
    labelled = [row for row in judgements if row.label is not None]
    pairs = [(row.value, row.label) for row in labelled if row.value is not None and row.label is not None]
    met = [value >= 0.5 for value, label in pairs if label >= 0.5]
    unmet = [value < 0.5 for value, label in pairs if label < 0.5]
    threshold, held_out = _threshold(pairs)
    return Accuracy(
        n=len(pairs),
        missing=len(labelled) - len(pairs),
        sensitivity=wilson(sum(met), len(met)) if met else None,
        specificity=wilson(sum(unmet), len(unmet)) if unmet else None,
        kappa=_kappa(pairs),
        threshold=threshold,
        threshold_accuracy=held_out,
    )


def _kappa(pairs: Sequence[tuple[float, float]]) -> float | None:
    if not pairs:
        return None
    return cohen_kappa([v for v, _ in pairs], [label for _, label in pairs], Scale.INTERVAL)


def _is_graded(pairs: Sequence[tuple[float, float]]) -> bool:
    return len(pairs) >= MIN_LABELS and any(value not in (0.0, 1.0) for value, _ in pairs)


def _threshold(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    """The best cut over all pairs, and the balanced accuracy of cuts chosen without the fold that they are tried on."""
    if not _is_graded(pairs):
        return None, None
    values = np.array([value for value, _ in pairs])
    labels = np.array([label >= 0.5 for _, label in pairs])
    if labels.all() or not labels.any():
        return None, None
    predicted = np.zeros(len(pairs), dtype=bool)
    fold = _folds(labels)
    for index in range(FOLDS):
        rest = fold != index
        if labels[rest].all() or not labels[rest].any():
            return best_threshold(values, labels), None
        predicted[~rest] = values[~rest] >= best_threshold(values[rest], labels[rest])
    held_out = (predicted[labels].mean() + (~predicted[~labels]).mean()) / 2
    return best_threshold(values, labels), float(held_out)


def _folds(labels: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Folds with equal shares of both labels, in the order of the examples."""
    fold = np.zeros(len(labels), dtype=np.int64)
    for label in (True, False):
        where = np.flatnonzero(labels == label)
        fold[where] = np.arange(len(where)) % FOLDS
    return fold


def best_threshold(values: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    """The cut between two values (met: at least the cut) with the largest balanced accuracy; the middle one of equals.

    >>> best_threshold(np.array([0.1, 0.2, 0.6, 0.9]), np.array([False, False, True, True]))
    0.4
    """
    distinct = np.unique(values)
    cuts = np.array([distinct[0], *((distinct[1:] + distinct[:-1]) / 2)])
    found = values[None, :] >= cuts[:, None]
    scores = found[:, labels].mean(axis=1) + (~found[:, ~labels]).mean(axis=1)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return float(round(cuts[best[len(best) // 2]], 12))


def fit_curve(pairs: Sequence[tuple[float, float]], how: Mapped) -> Curve | None:
    """The map from values to labels, each in [0, 1]; None where values are only 0 or 1, or labels are few.

    One example of (0, 0) and one of (1, 1) are added, so that few labels do not make an end certain the wrong way.
    """
    if not _is_graded(pairs):
        return None
    if how is Mapped.THRESHOLD:
        cut = _threshold(pairs)[0]
        if cut is None:
            return None
        below = math.nextafter(cut, 0.0)
        return Curve(x=(0.0, 1.0), y=(1.0, 1.0)) if below <= 0.0 else Curve(x=(0.0, below, cut), y=(0.0, 0.0, 1.0))
    values = np.array([0.0, *(value for value, _ in pairs), 1.0])
    labels = np.array([0.0, *(label for _, label in pairs), 1.0])
    x, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.bincount(codes, weights=labels) / counts
    y = isotonic_regression(means, weights=counts.astype(np.float64)).x
    return Curve(x=tuple(x.tolist()), y=tuple(np.clip(y, 0.0, 1.0).tolist()))


def calibrate(judgements: Sequence[Judgement], rubric: str, how: Mapped = Mapped.ISOTONIC) -> Calibration:
    """Curves for every judge and criterion that has enough labels.  rubric: its version."""
    pairs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in judgements:
        if row.value is not None and row.label is not None:
            pairs.setdefault(row.judge, {}).setdefault(row.criterion, []).append((row.value, row.label))
    curves: dict[str, dict[str, Curve]] = {}
    for judge, by_criterion in pairs.items():
        for criterion, found in by_criterion.items():
            curve = fit_curve(found, how)
            if curve is not None:
                curves.setdefault(judge, {})[criterion] = curve
    return Calibration(rubric=rubric, curves=curves)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionBias:
    """Whether values depend on where in the batch a criterion stood.

    slope: change of a value for each place further down.  p_value: that chance alone gives as much.  n: case and
    criterion pairs that were seen at more than one place.
    """

    slope: float
    p_value: float
    n: int


def position_bias(judgements: Sequence[Judgement], rng: np.random.Generator) -> PositionBias | None:
    """A permutation test: the same case and criterion at different places should get the same values.

    Values are shuffled within each case, judge and criterion, so that nothing is assumed of their spread; the p value
    is (1 + extreme) / (1 + 2000).  None where nothing was judged at two places: judge in several orders.
    """
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for row in judgements:
        if row.value is not None:
            groups.setdefault((row.case, row.judge, row.criterion), []).append(row)
    kept = [rows for rows in groups.values() if len({row.position for row in rows}) > 1]
    if not kept:
        return None
    places, values = [], []
    for rows in kept:
        place = np.array([row.position for row in rows], dtype=np.float64)
        value = np.array([row.value for row in rows], dtype=np.float64)
        places.append(place - place.mean())
        values.append(value - value.mean())
    observed = sum(float(place @ value) for place, value in zip(places, values, strict=True))
    spread = sum(float(place @ place) for place in places)
    drawn = np.zeros(PERMUTATIONS)
    for place, value in zip(places, values, strict=True):
        if value.any():
            drawn += rng.permuted(np.tile(value, (PERMUTATIONS, 1)), axis=1) @ place
    extreme = int((np.abs(drawn) >= abs(observed) - 1e-9).sum())
    return PositionBias(slope=observed / spread, p_value=(1 + extreme) / (1 + PERMUTATIONS), n=len(kept))
