"""Intervals for success rates, means and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

EXACT_SIGN_FLIPS_MAX_N = 16
"""Up to this many pairs all 2**n sign flips are enumerated; beyond it they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean with its interval.  `Estimate(mean=0.5, low=0.4, high=0.6, n=96)`

    n: observations that it rests on (clusters for a clustered interval).
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A paired difference a - b with its interval and a two-sided p value.

    `Difference(mean=0.12, low=0.04, high=0.20, n=60, p_value=0.004)`.  n: pairs.
    """

    mean: float
    low: float
    high: float
    n: int
    p_value: float


def wilson(successes: float, n: int, *, level: float = 0.95) -> Estimate:
    """Wilson score interval of a success rate (Wilson 1927, JASA 22:209); never leaves [0, 1].

    successes in [0, n] (a sum of scores in [0, 1] is allowed and errs on the wide side).  Raises ValueError for
    n < 1, where there is nothing to estimate.

    >>> e = wilson(8, 10)
    >>> round(e.low, 4), round(e.high, 4)
    (0.4902, 0.9433)
    """
    _check_level(level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs n >= 1 and 0 <= successes <= n, got successes={successes}, n={n}")
    z = float(ndtri(0.5 + level / 2))
    p = successes / n
    shrink = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / shrink
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(mean=p, low=low, high=high, n=n)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Student's t interval of the mean of independent values.

    One value gives an interval of (-inf, inf): it says nothing about its own spread.  Raises ValueError for no values
    or values that are not finite.

    >>> e = mean_interval([1.0, 2.0, 3.0])
    >>> round(e.low, 3), e.mean, round(e.high, 3)
    (-0.484, 2.0, 4.484)
    """
    _check_level(level)
    array = _finite(values)
    mean = float(array.mean())
    if len(array) == 1:
        return Estimate(mean=mean, low=-math.inf, high=math.inf, n=1)
    half = float(stdtrit(len(array) - 1, 0.5 + level / 2)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=len(array))


def clustered_bootstrap(
    values_by_task: Mapping[str, Sequence[float]],
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Percentile bootstrap that resamples whole tasks (Davison & Hinkley 1997, section 3.8), since samples of one task
    are not independent.

    The mean is over all values, so that a task with more values weighs more.  n is the number of tasks.  Raises
    ValueError where there are no tasks, a task has no values, or a value is not finite.

    >>> e = clustered_bootstrap({"a": [1.0, 1.0], "b": [0.0, 0.0]}, np.random.default_rng(0))
    >>> e.mean, e.low, e.high, e.n
    (0.5, 0.0, 1.0, 2)
    """
    _check_level(level)
    names = sorted(values_by_task)
    if not names:
        raise ValueError("clustered_bootstrap needs at least one task, got none")
    arrays = [_finite(values_by_task[name]) for name in names]
    sums = np.array([array.sum() for array in arrays])
    counts = np.array([len(array) for array in arrays], dtype=np.float64)
    picks = rng.integers(0, len(names), size=(resamples, len(names)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Estimate(mean=float(sums.sum() / counts.sum()), low=float(low), high=float(high), n=len(names))


def paired_difference(
    a_by_task: Mapping[str, float] | Mapping[str, Sequence[float]],
    b_by_task: Mapping[str, float] | Mapping[str, Sequence[float]],
    rng: np.random.Generator,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Difference:
    """Mean of a - b over the same tasks (or seeds), a t interval over tasks, and a sign-flip permutation test.

    Several values of one task are averaged first.  The p value is exact up to `EXACT_SIGN_FLIPS_MAX_N` pairs; beyond
    it, (1 + extreme) / (1 + resamples) of random flips (Phipson & Smyth 2010).  Raises ValueError where the two sides
    do not name the same tasks.

    >>> d = paired_difference({"x": 1.0, "y": 1.0, "z": 0.5}, {"x": 0.0, "y": 0.5, "z": 0.5}, np.random.default_rng(0))
    >>> d.mean, d.n, d.p_value
    (0.5, 3, 0.5)
    """
    if set(a_by_task) != set(b_by_task):
        odd = sorted(set(a_by_task) ^ set(b_by_task))
        raise ValueError(
            f"a paired difference needs the same tasks on both sides; {len(odd)} are not, such as {odd[0]!r}"
        )
    names = sorted(a_by_task)
    differences = _finite([_task_mean(a_by_task[name]) - _task_mean(b_by_task[name]) for name in names])
    estimate = mean_interval(differences.tolist(), level=level)
    return Difference(
        mean=estimate.mean,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        p_value=_sign_flip_p(differences, rng, resamples),
    )


def _sign_flip_p(differences: npt.NDArray[np.float64], rng: np.random.Generator, resamples: int) -> float:
    """Two-sided p of the mean under random signs; zero differences carry no sign and change nothing."""
    n = len(differences)
    observed = abs(float(differences.sum()))
    # Sums of the same numbers in another order differ in the last bits, and a tie must count as extreme.
    threshold = observed - 1e-9 * max(1.0, float(np.abs(differences).sum()))
    if n <= EXACT_SIGN_FLIPS_MAX_N:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        sums = np.abs((bits * 2.0 - 1.0) @ differences)
        return float((sums >= threshold).mean())
    extreme = 0
    for start in range(0, resamples, 1000):
        signs = rng.integers(0, 2, size=(min(1000, resamples - start), n)) * 2.0 - 1.0
        extreme += int((np.abs(signs @ differences) >= threshold).sum())
    return (1 + extreme) / (1 + resamples)


def _task_mean(value: float | Sequence[float]) -> float:
    return float(_finite(value).mean()) if isinstance(value, Sequence) else float(value)


def _finite(values: Sequence[float]) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("an interval needs at least one value, got none")
    if not np.isfinite(array).all():
        raise ValueError(f"values must be finite, got {array[~np.isfinite(array)][0]}; leave out what was not graded")
    return array


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"a confidence level lies between 0 and 1, such as 0.95, got {level}")
