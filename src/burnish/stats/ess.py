"""Effective sample size: how many equally weighted samples a weighted sample is worth, as a share of its size.

ESS / n = (sum w)^2 / (n sum w^2), in [1/n, 1] (Kish 1965).  It is scale-free, so logarithms may be shifted.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ess_share(log_weights: Floats, *, cap: float | None = None) -> float:
    """ESS / n of weights exp(log_weights), NaN for none; raw, or of min(weight, cap) where `cap` is given.

    The raw form is shifted by the largest logarithm, which is exact and never overflows.  Raises ValueError for numbers
    that are not finite: they have to be counted, not averaged.

    >>> ess_share(np.array([0.0, 0.0, 0.0, 0.0]))
    1.0
    >>> round(ess_share(np.log([1.0, 1.0, 1.0, 9.0])), 4), round(ess_share(np.log([1.0, 1.0, 1.0, 9.0]), cap=2.0), 4)
    (0.4286, 0.8929)
    """
    if len(log_weights) == 0:
        return math.nan
    if not np.isfinite(log_weights).all():
        raise ValueError("log weights must be finite; count and leave out those that are not")
    shifted = log_weights - log_weights.max() if cap is None else np.minimum(log_weights, math.log(cap))
    weights = np.exp(shifted - shifted.max())
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def ess_share_of_sums(n: Floats, total: Floats, squares: Floats) -> Floats:
    """ESS / n from sums that were added up over shards: n, sum w, sum w^2, all of one shape; NaN where n is 0.

    >>> ess_share_of_sums(np.array([4.0]), np.array([12.0]), np.array([84.0])).round(4).tolist()
    [0.4286]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Floats = total**2 / (n * squares)
    return found


def lognormal_ess_share(log_sd: float) -> float:
    """ESS / n of lognormal weights whose logarithm has standard deviation `log_sd`: exp(-log_sd^2).

    Independent tokens with log-ratios of sd s make sequences of n tokens with log_sd = s sqrt(n).

    >>> round(lognormal_ess_share(0.02 * 512**0.5), 3)
    0.815
    """
    return math.exp(-(log_sd**2))
