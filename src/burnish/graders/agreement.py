"""How far raters agree beyond chance: Cohen's kappa for two, Krippendorff's alpha for any number with gaps.

Formulas: Cohen 1960 (Educational and Psychological Measurement 20:37), with weights 1968 (Psychological Bulletin
70:213); Krippendorff 2011, "Computing Krippendorff's alpha-reliability".  Both are 1 for perfect agreement, 0 for
chance, and undefined (None) where nothing varies.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Scale(StrEnum):
    """What differences of values mean."""

    NOMINAL = "nominal"
    ORDINAL = "ordinal"
    INTERVAL = "interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A coefficient with its bootstrap interval over units.  `Agreement(value=0.74, low=0.5, high=0.9, n=12)`

    value: None where nothing varies; then low and high are None too.  n: units with at least two ratings.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def cohen_kappa(a: Sequence[float], b: Sequence[float], scale: Scale = Scale.NOMINAL) -> float | None:
    """Cohen's kappa of two raters over the same units; weights are linear in rank for ordinal, squared for interval.

    kappa = 1 - sum(w o) / sum(w e), with o the observed and e the expected table and w the disagreement.
    Raises ValueError for unequal lengths or none.

    >>> round(cohen_kappa([1] * 20 + [1] * 5 + [0] * 10 + [0] * 15, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15), 3)
    0.4
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"kappa needs two equally long lists of ratings, got {len(a)} and {len(b)}")
    values, codes = np.unique(np.asarray([*a, *b], dtype=np.float64), return_inverse=True)
    observed = np.zeros((len(values), len(values)))
    np.add.at(observed, (codes[: len(a)], codes[len(a) :]), 1.0 / len(a))
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    if scale is Scale.NOMINAL:
        weights = 1.0 - np.eye(len(values))
    elif scale is Scale.ORDINAL:
        ranks = np.arange(len(values), dtype=np.float64)
        weights = np.abs(ranks[:, None] - ranks[None, :])
    else:
        weights = (values[:, None] - values[None, :]) ** 2
    chance = float((weights * expected).sum())
    return None if chance <= 0.0 else 1.0 - float((weights * observed).sum()) / chance


def krippendorff_alpha(ratings: Sequence[Sequence[float | None]], scale: Scale = Scale.NOMINAL) -> float | None:
    """Krippendorff's alpha; ratings[r][u] is what rater r says of unit u, None where nothing.

    alpha = 1 - D_o / D_e over the coincidences of values within units; units with one rating say nothing.

    >>> krippendorff_alpha([[0, 1, 1, 0, None], [0, 1, 1, 0, 1]])
    1.0
    """
    values, counts = _counts(ratings)
    return _alpha(values, counts, scale)


def _counts(ratings: Sequence[Sequence[float | None]]) -> tuple[Floats, Floats]:
    """The distinct values of V, and how often each was given to each unit: (U, V), units with one rating left out."""
    lengths = {len(row) for row in ratings}
    if len(lengths) > 1:
        raise ValueError(f"every rater has a rating or None for each unit, got lengths {sorted(lengths)}")
    table = np.array([[np.nan if x is None else float(x) for x in row] for row in ratings], dtype=np.float64)
    if table.size == 0:
        return np.zeros(0), np.zeros((0, 0))
    values = np.unique(table[~np.isnan(table)])
    counts = (table.T[:, :, None] == values[None, None, :]).sum(axis=1).astype(np.float64)
    return values, counts[counts.sum(axis=1) >= 2]


def _alpha(values: Floats, counts: Floats, scale: Scale) -> float | None:
    if counts.size == 0:
        return None
    per_unit = counts.sum(axis=1)
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(counts.shape[1])
    pairs[:, diagonal, diagonal] -= counts
    coincidences = (pairs / (per_unit - 1)[:, None, None]).sum(axis=0)
    totals = coincidences.sum(axis=1)
    n = float(totals.sum())
    difference = _difference(values, totals, scale)
    chance = float((np.outer(totals, totals) * difference).sum())
    return None if chance <= 0.0 else 1.0 - (n - 1) * float((coincidences * difference).sum()) / chance


def _difference(values: Floats, totals: Floats, scale: Scale) -> Floats:
    """Squared differences of values, (V, V)."""
    if scale is Scale.NOMINAL:
        return 1.0 - np.eye(len(values))
    if scale is Scale.INTERVAL:
        return np.asarray((values[:, None] - values[None, :]) ** 2, dtype=np.float64)
    # Ordinal: how many ratings lie between, the halves of both ends included.
    middle = np.cumsum(totals) - totals / 2
    return np.asarray((middle[:, None] - middle[None, :]) ** 2, dtype=np.float64)


def alpha_interval(
    ratings: Sequence[Sequence[float | None]],
    rng: np.random.Generator,
    scale: Scale = Scale.NOMINAL,
    *,
    level: float = 0.95,
    resamples: int = 1000,
) -> Agreement:
    """Alpha with a percentile bootstrap over units; resamples in which nothing varies are left out."""
    values, counts = _counts(ratings)
    value = _alpha(values, counts, scale)
    n = len(counts)
    if value is None:
        return Agreement(value=None, low=None, high=None, n=n)
    drawn = [_alpha(values, counts[rng.integers(0, n, size=n)], scale) for _ in range(resamples)]
    usable = [x for x in drawn if x is not None]
    low, high = np.quantile(usable, [0.5 - level / 2, 0.5 + level / 2]) if usable else (value, value)
    return Agreement(value=value, low=float(low), high=float(high), n=n)


def rating_table(
    rows: Sequence[tuple[Hashable, str, float]],
) -> tuple[list[str], list[list[float | None]]]:
    """Raters, sorted, and their ratings by unit, from rows of unit, rater and value; the last of a pair counts.

    >>> rating_table([("u1", "ann", 1.0), ("u2", "ann", 0.0), ("u2", "bob", 0.0)])
    (['ann', 'bob'], [[1.0, 0.0], [None, 0.0]])
    """
    units = list(dict.fromkeys(unit for unit, _, _ in rows))
    raters = sorted({rater for _, rater, _ in rows})
    known: Mapping[tuple[Hashable, str], float] = {(unit, rater): value for unit, rater, value in rows}
    return raters, [[known.get((unit, rater)) for unit in units] for rater in raters]
