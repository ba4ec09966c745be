"""How unevenly a total is spread: Gini, share of the largest, the lognormal yardstick, growth with length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.float64]


def gini(sizes: Floats) -> float:
    """Gini coefficient sum_i (2 i - n - 1) x_(i) / (n sum x), x ascending; 0 is even, 1 - 1/n is all in one.

    NaN for no sizes or a total of 0.  Raises ValueError for a negative size or one that is not finite.

    >>> gini(np.array([1.0, 1.0, 1.0, 1.0])), gini(np.array([0.0, 0.0, 0.0, 1.0]))
    (0.0, 0.75)
    """
    return concentration(sizes).gini


def top_share(sizes: Floats, share: float = 0.05) -> float:
    """Part of the total that the largest `share` of the sizes hold; a fraction of a size counts in proportion.

    NaN for no sizes or a total of 0.

    >>> round(top_share(np.array([1.0] * 19 + [81.0]), 0.05), 6), top_share(np.ones(10), 0.05)
    (0.81, 0.05)
    """
    return concentration(sizes, (share,)).top_shares[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Concentration:
    """`gini`, and `top_share` of each share asked for.  `Concentration(gini=0.75, top_shares=(0.81,))`"""

    gini: float
    top_shares: tuple[float, ...]


def concentration(sizes: Floats, shares: tuple[float, ...] = ()) -> Concentration:
    """Both figures from one look at the sizes; NaN and errors as theirs.

    >>> concentration(np.array([0.0, 0.0, 0.0, 1.0]), (0.25,))
    Concentration(gini=0.75, top_shares=(1.0,))
    """
    n, total = len(sizes), _total(sizes)
    if n == 0 or total == 0:
        return Concentration(gini=math.nan, top_shares=(math.nan,) * len(shares))
    ascending = np.sort(sizes)
    descending = ascending[::-1]
    found = []
    for share in shares:
        wanted = share * n
        whole = int(wanted + 1e-9)
        part = descending[whole] * (wanted - whole) if whole < n else 0.0
        found.append(float((descending[:whole].sum() + part) / total))
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return Concentration(gini=float((ranks * ascending).sum() / (n * total)), top_shares=tuple(found))


def lognormal_log_sd(gini_value: float) -> float:
    """Log-sd s of the lognormal distribution with this Gini coefficient: 2 Phi(s / sqrt 2) - 1 = Gini.

    >>> round(lognormal_log_sd(0.75), 3)
    1.627
    """
    return math.sqrt(2) * float(ndtri((gini_value + 1) / 2))


def lognormal_top_share(log_sd: float, share: float = 0.05) -> float:
    """Part of the total that the largest `share` holds for lognormal sizes: 1 - Phi(Phi^-1(1 - share) - s).

    >>> round(lognormal_top_share(1.627), 2)
    0.49
    """
    return 1 - float(ndtr(ndtri(1 - share) - log_sd))


def lognormal_departure(sizes: Floats, gini_value: float | None = None) -> float:
    """ln of the measured ESS share of sizes over the one a lognormal with the same Gini coefficient has, exp(-s^2).

    On the lognormal curve Gini and ESS say the same.  Below 0 the tail is heavier than lognormal; about 0 on it.  NaN
    where there is no Gini coefficient, or one of 0.  gini_value: that of the sizes, where it is known.

    >>> spread = np.exp(1.2 * ndtri((np.arange(20000) + 0.5) / 20000))
    >>> abs(lognormal_departure(spread)) < 0.02
    True
    """
    even = gini(sizes) if gini_value is None else gini_value
    if not even > 0:
        return math.nan
    measured = float(sizes.sum() ** 2 / (len(sizes) * (sizes**2).sum()))
    return math.log(measured) + lognormal_log_sd(even) ** 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFit:
    """Size ~ scale of its source x length^exponent.  `LengthFit(exponent=0.5, standard_error=0.04, n=240)`

    standard_error: of the exponent.  n: trajectories that it rests on.
    """

    exponent: float
    standard_error: float
    n: int


def length_exponent(sizes: Floats, lengths: Floats, sources: npt.NDArray[np.int64]) -> LengthFit | None:
    """Least squares of ln size on ln length with an intercept of its own for each source (codes from 0).

    1/2 is what independent tokens give, 1 what fully correlated tokens give.  None for fewer than 16 positive sizes or
    lengths that differ by less than 10% (sd of the logarithm), where the slope is not determined.

    >>> n = np.array([10.0, 20.0, 40.0, 80.0] * 8)
    >>> round(length_exponent(3 * n**0.5, n, np.zeros(32, dtype=np.int64)).exponent, 6)
    0.5
    """
    used = (sizes > 0) & (lengths > 0)
    n = int(used.sum())
    if n < 16:
        return None
    of = sources[used]
    members = np.maximum(np.bincount(of), 1)
    x, y = (v - (np.bincount(of, v) / members)[of] for v in (np.log(lengths[used]), np.log(sizes[used])))
    spread = float((x**2).sum())
    if spread < n * 0.1**2:
        return None
    slope = float((x * y).sum()) / spread
    freedom = max(1, n - 1 - len(np.unique(of)))
    residual = float(((y - slope * x) ** 2).sum()) / freedom
    return LengthFit(exponent=slope, standard_error=math.sqrt(residual / spread), n=n)


def _total(sizes: Floats) -> float:
    total = float(sizes.sum())
    if not math.isfinite(total) or (len(sizes) > 0 and sizes.min() < 0):
        raise ValueError("sizes must be finite and at least 0; count and leave out those that are not")
    return total
