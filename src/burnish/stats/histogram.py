"""Histograms of signed numbers on a logarithmic scale, which add up: counts of two machines are one histogram.

A magnitude falls into one of 100 bins: exactly zero, underflow (below 1e-4), 96 bins of 16 to the decade up to 1e2,
overflow, and not finite.  A signed number has 200 codes, the second hundred for negative ones; zero and NaN count as
positive. The 97 edges are 10^(k/16) cut to bfloat16 (8 significant bits), so that the upper 16 bits of a float32
decide its bin: one table look-up, exact at every edge and the same on every machine.  An edge lies at most 0.8%
below 10^(k/16).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BINS_PER_DECADE = 16
LOWEST, HIGHEST = 1e-4, 1e2
ZERO, UNDERFLOW, FIRST, OVERFLOW, NONFINITE = 0, 1, 2, 98, 99
MAGNITUDES = 100
CODES = 2 * MAGNITUDES
MIN_TAIL = 32
"""Fewer tokens in a tail than this have no tail index."""

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


def _bfloat16_floor(values: Floats) -> npt.NDArray[np.float32]:
    """The largest bfloat16 at most each positive value."""
    single = values.astype(np.float32)
    bits = single.view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


# the factor keeps 1 and 100, which bfloat16 holds exactly, where they are: powers come out to within half a unit
EDGES: Floats = _bfloat16_floor(
    np.power(10.0, np.arange(97) / BINS_PER_DECADE + math.log10(LOWEST)) * (1 + 1e-7)
).astype(np.float64)
"""The 97 edges of the 96 bins in the middle; `EDGES[0]` is just below 1e-4, `EDGES[96]` is 1e2."""


def _table() -> npt.NDArray[np.int64]:
    """Code of each value of the upper 16 bits of a float32."""
    with np.errstate(invalid="ignore"):  # some of these patterns are signalling NaNs
        magnitude = (np.arange(0x8000, dtype=np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    bins = np.searchsorted(EDGES, magnitude, side="right") + 1
    bins[magnitude == 0] = ZERO
    bins[~np.isfinite(magnitude)] = NONFINITE
    negative = bins + MAGNITUDES
    negative[0] = ZERO
    negative[np.isnan(magnitude)] = NONFINITE
    return np.concatenate([bins, negative]).astype(np.int64)


_CODE_OF = _table()
_BIN_LOWER = np.concatenate([[0.0, 0.0], EDGES])
_BIN_UPPER = np.concatenate([[0.0], EDGES, [EDGES[-1]]])


def codes(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Code in [0, 200) of each float32 of a contiguous array.

    >>> codes(np.array([0.0, 1e-5, 1.0, -1.0, 500.0, np.nan, -np.inf], dtype=np.float32)).tolist()
    [0, 1, 66, 166, 98, 99, 199]
    """
    found: npt.NDArray[np.int64] = _CODE_OF.take(values.view(np.uint32) >> np.uint32(16))
    return found


def magnitudes(counts: Counts) -> Counts:
    """Counts of |x|, shape [..., 100], from counts of codes, shape [..., 200]."""
    return counts[..., :MAGNITUDES] + counts[..., MAGNITUDES:]


def quantiles(counts: Counts, levels: Sequence[float]) -> Floats:
    """Quantiles of |x| from counts of magnitudes [..., 100]; shape [..., Q], NaN where nothing was counted.

    Inside a bin the mass is spread evenly over the logarithm, so that a quantile is within the bin's width (15.5%) of
    the exact one, mostly far closer.  Numbers that are not finite are left out, those beyond 1e2 count as 1e2.

    >>> one = np.bincount(codes(np.full(4, 0.5, dtype=np.float32)), minlength=200)
    >>> bool(abs(quantiles(magnitudes(one), [0.5])[0] / 0.5 - 1) < 0.08)
    True
    """
    finite = counts[..., :NONFINITE]
    cumulative = np.cumsum(finite, axis=-1)
    total = cumulative[..., -1:]
    target = np.asarray(levels, dtype=np.float64) * total
    at = np.minimum((cumulative[..., None, :] < target[..., :, None]).sum(axis=-1), OVERFLOW)
    row = np.indices(at.shape, sparse=True)[:-1]
    inside = finite[(*row, at)]
    before = cumulative[(*row, at)] - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip((target - before) / inside, 0.0, 1.0)
        low, high = _BIN_LOWER[at], _BIN_UPPER[at]
        value = np.where(low > 0, low * (high / low) ** share, high * share)
    return np.where(total > 0, value, np.nan)


def distances(counts: Counts, reference: Counts) -> tuple[Floats, Floats]:
    """Kolmogorov-Smirnov and Wasserstein-1 distance of two distributions of |x|, each given as counts [..., 100].

    KS is the largest difference of the two cumulative distributions at an edge.  W1 is the area between them over
    log10 |x|, in decades: 0.3 means that mass moved by a factor of two on average; everything below 1e-4 (zero too)
    stands at 1e-4, everything beyond 1e2 at 1e2.  NaN where either side is empty.

    >>> a = np.bincount(codes(np.full(9, 0.01, dtype=np.float32)), minlength=200)
    >>> b = np.bincount(codes(np.full(9, 0.1, dtype=np.float32)), minlength=200)
    >>> ks, w1 = distances(magnitudes(a), magnitudes(b))
    >>> float(ks), round(float(w1), 2)
    (1.0, 1.0)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (
            np.cumsum(side[..., :NONFINITE], axis=-1) / side[..., :NONFINITE].sum(axis=-1, keepdims=True)
            for side in (counts, reference)
        )
    gap = np.abs(first - second)
    # a difference at an upper edge lasts over the next bin; the bins of the middle are one sixteenth of a decade wide
    return gap.max(axis=-1), gap[..., UNDERFLOW:OVERFLOW].sum(axis=-1) / BINS_PER_DECADE


def tail_indices(counts: Counts, *, share: float = 0.05) -> Floats:
    """Hill's tail index of |x| from counts of magnitudes [..., 100]: P(|X| > x) falls like x^-index; small is heavy.

    The tail is the highest bins that together hold at least `share` of the finite numbers.  On bins of equal width
    D = ln(10)/16 a Pareto tail is geometric, so its maximum-likelihood index is ln(1 + 1/m) / D, with m the mean
    number of bins above the lowest of the tail (Hill 1975, Ann. Stat. 3:1163, for grouped numbers).  NaN for fewer
    than 32 numbers in the tail, for a tail in one bin, and where the tail reaches down to 1e-4.
    """
    finite = counts[..., :NONFINITE].astype(np.float64)
    above = np.cumsum(finite[..., ::-1], axis=-1)[..., ::-1]
    start = (above >= share * above[..., :1]).sum(axis=-1, keepdims=True) - 1
    n = above[(*np.indices(start.shape, sparse=True)[:-1], start)][..., 0]
    offset = np.arange(NONFINITE) - start
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (finite * np.where(offset > 0, offset, 0)).sum(axis=-1) / n
        index = np.log1p(1 / mean) * BINS_PER_DECADE / math.log(10)
    usable = (n >= MIN_TAIL) & (start[..., 0] >= FIRST) & (mean > 0)
    return np.where(usable, index, np.nan)
