"""Sequential tests of one signal against a frozen baseline, with thresholds for a chosen rate of false alarms.

The signal is oriented so that a fault moves it up, and standardised by the mean and the standard deviation of n
early values: z = (x - mean - allowance) / scale, cut to [-4, 4].  Two tests, both zero-order recursions that need no
history:

CUSUM (Page 1954)              S <- max(0, S + z - k),          alarm at S >= h
e-detector (Shin et al. 2022)  M <- (1 + M) mean_l exp(l z' - l^2 tau' / 2), alarm at M >= 1 / rate

**Where h and k come from.**  Without a fault, S is a random walk with drift -k and long-run variance tau (1 for
independent values; (1 + r) / (1 - r) for lag-one autocorrelation r), which starts to climb to h with probability
(2 k^2 / tau) exp(-2 k h / tau) per step (Siegmund 1985, Sequential Analysis, ch. 10, overshoot left out, which errs
on the safe side).  The baseline's mean is itself wrong by a normal error e of variance tau / n, which adds to the
drift.  Averaged over e:

    rate = (2 k^2 / tau) exp(-2 k h / tau + 2 h^2 / (tau n))                                                     (1)

The exponent has its minimum at h = k n / 2: for a small k *no* threshold reaches a low rate, because once in so many
runs the baseline is off by more than k and the walk drifts up for ever.  So k is not free: k >= sqrt(2 tau L / n), with
L = ln(2 k^2 / (tau rate)), and h is the smaller root of (1).  Both grow with tau, hence the robustness to
autocorrelation; heavy tails are cut at 4 baseline deviations.  The rate of many monitors is the sum of their rates,
whatever their dependence, so a budget is shared out by division.  tests/unit/test_stats_sequential.py measures the
rate on white, autocorrelated, heavy-tailed, skewed and jittered noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

CUT = 4.0
MARGIN = 1.2
LARGEST_AUTOCORRELATION = 0.9
SMALLEST_SHIFT = 0.5
E_SHIFTS = (0.5, 1.0, 2.0)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What a signal looked like in the frozen early window of n values.

    mean and scale: of values cut at 4 robust deviations from the median.  autocorrelation: lag one, corrected upwards
    for its bias and one standard error, in [0, 0.9].

    `Baseline(mean=0.11, scale=0.02, autocorrelation=0.2, n=50)`
    """

    mean: float
    scale: float
    autocorrelation: float
    n: int

    @property
    def long_run_variance(self) -> float:
        """tau: variance of a sum of standardised values per value, 1 where they are independent."""
        return (1 + self.autocorrelation) / (1 - self.autocorrelation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Drift k and height h of a CUSUM.  `Threshold(drift=0.9, height=11.2)`"""

    drift: float
    height: float


def fit_baseline(values: Sequence[float], *, smallest_scale: float = 0.0) -> Baseline:
    """Baseline of at least 8 finite values; `smallest_scale` keeps a constant signal from having no width.

    The scale is the larger of the standard deviation of the cut values and 1.4826 times the median deviation, times
    1 + 1 / sqrt(2 n / tau), one standard error of its own estimate.

    >>> fit_baseline([1.0, 3.0] * 10).mean
    2.0
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 8 or not np.isfinite(x).all():
        raise ValueError(f"a baseline needs at least 8 finite values, got {len(x)}: {values[:8]}")
    middle = float(np.median(x))
    robust = 1.4826 * float(np.median(np.abs(x - middle)))
    width = CUT * (robust if robust > 0 else float(x.std()))
    cut = np.clip(x, middle - width, middle + width)
    n, variance = len(cut), float(cut.var())
    centred = cut - cut.mean()
    raw = float((centred[1:] * centred[:-1]).mean()) / variance if variance > 0 else 0.0
    # the estimate is low by (1 + 3 r) / n on average (Kendall 1954); one standard error more for what it may be
    high = raw + (1 + 3 * raw) / n + math.sqrt(max(0.0, 1 - raw**2) / n)
    autocorrelation = min(max(high, 0.0), LARGEST_AUTOCORRELATION)
    tau = (1 + autocorrelation) / (1 - autocorrelation)
    scale = max(math.sqrt(variance * n / (n - 1)), robust) * (1 + 1 / math.sqrt(2 * n / tau))
    scale = max(scale, smallest_scale)
    mean = float(cut.mean())
    for _ in range(3):  # the mean has to be cut where later values will be, else skewed noise drifts
        mean = float(np.clip(x, mean - CUT * math.sqrt(tau) * scale, mean + CUT * math.sqrt(tau) * scale).mean())
    return Baseline(mean=mean, scale=scale, autocorrelation=autocorrelation, n=n)


def detrended_baseline(values: Sequence[float], *, smallest_scale: float = 0.0) -> Baseline:
    """As `fit_baseline`, with scale and autocorrelation around the straight line through the values.

    For signals that fall in health and rise in a fault: the mean of the window is then above what comes next.

    >>> round(detrended_baseline([10.0 - i for i in range(9)], smallest_scale=0.5).scale, 1)
    0.5
    """
    x = np.asarray(values, dtype=np.float64)
    times = np.arange(len(x)) - (len(x) - 1) / 2
    line = times * float((times * x).sum() / (times**2).sum())
    around = fit_baseline(list(x - line), smallest_scale=smallest_scale)
    return replace(around, mean=float(x.mean()))


KNOWN = 1_000_000
"""Values that a mean which is known counts as."""


def known_baseline(values: Sequence[float], *, mean: float, smallest_scale: float = 0.0) -> Baseline:
    """Baseline of a signal whose mean in health is known: independent values, whose spread the differences of
    neighbours give (von Neumann 1941), times two standard errors of its own estimate.

    >>> known_baseline([0.0, 2.0] * 10, mean=0.0).mean
    0.0
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 8 or not np.isfinite(x).all():
        raise ValueError(f"a baseline needs at least 8 finite values, got {len(x)}: {values[:8]}")
    scale = math.sqrt(float((np.diff(x) ** 2).mean()) / 2) * (1 + 2 / math.sqrt(2 * len(x)))
    return Baseline(mean=mean, scale=max(scale, smallest_scale), autocorrelation=0.0, n=KNOWN)


def cusum_threshold(rate: float, baseline: Baseline) -> Threshold:
    """k and h for `rate` false alarms per step, from (1) above.

    >>> t = cusum_threshold(1 / 60_000, Baseline(mean=0.0, scale=1.0, autocorrelation=0.0, n=50))
    >>> round(t.drift, 2), round(t.height, 1)
    (0.81, 9.0)
    """
    if not 0 < rate < 1:
        raise ValueError(f"a rate of false alarms per step lies in (0, 1), got {rate}")
    tau, n = baseline.long_run_variance, baseline.n
    drift = SMALLEST_SHIFT
    for _ in range(20):  # k stands inside the logarithm of its own bound; this converges in a few rounds
        drift = max(SMALLEST_SHIFT, MARGIN * math.sqrt(2 * tau * _log_odds(drift, tau, rate) / n))
    log_odds = _log_odds(drift, tau, rate)
    root = math.sqrt(max(0.0, 1 - 2 * tau * log_odds / (n * drift**2)))
    return Threshold(drift=drift, height=max(1.0, n * drift / 2 * (1 - root)))


def standardise(value: float, baseline: Baseline, *, allowance: float = 0.0) -> float:
    """z of an oriented value, cut to [-4, 4]; a rise of at most `allowance` (in the value's units) is nothing.

    >>> standardise(5.0, Baseline(mean=1.0, scale=2.0, autocorrelation=0.0, n=50), allowance=1.0)
    1.5
    """
    cut = CUT * math.sqrt(baseline.long_run_variance)
    return max(-cut, min(cut, (value - baseline.mean - allowance) / baseline.scale))


def cusum(statistic: float, z: float, drift: float) -> float:
    """One step of Page's recursion.

    >>> cusum(1.0, 2.0, 0.5), cusum(0.2, -3.0, 0.5)
    (2.5, 0.0)
    """
    return max(0.0, statistic + z - drift)


def e_detector(log_statistic: float, z: float, baseline: Baseline) -> float:
    """One step of the logarithm of a Shiryaev-Roberts sum of e-processes, mixed over shifts of 0.5, 1 and 2 deviations.

    Without a fault E[M_t] <= t, so the mean time to an alarm at M >= 1 / rate is at least 1 / rate for any noise whose
    values are sub-Gaussian of variance tau given the past; no reference to a normal distribution or a random walk.
    The baseline's error enters as variance: tau' = tau (1 + E_SHIFTS[-1] / n).  Start from -inf.
    """
    tau = baseline.long_run_variance
    margin = 2 * math.sqrt(tau / baseline.n)
    terms = [shift * (z - margin) / tau - shift**2 / (2 * tau) for shift in E_SHIFTS]
    largest = max(terms)
    mixed = largest + math.log(sum(math.exp(term - largest) for term in terms) / len(terms))
    grown = math.log1p(math.exp(log_statistic)) if log_statistic < 30 else log_statistic
    return grown + mixed


def change_point(values: Sequence[float]) -> int:
    """Index of the first value after a rise of the mean from 0, most likely under equal variances; 0 for no values.

    The j that maximises (sum of z_j..z_last)^2 / count among those with a positive sum: the likelihood ratio of "0
    before, one other mean since" against "0 throughout" (Hinkley 1970, Biometrika 57:1).

    >>> change_point([0.1, -0.2, 0.0, 2.0, 2.1, 1.8])
    3
    """
    if len(values) == 0:
        return 0
    tails = np.cumsum(np.asarray(values, dtype=np.float64)[::-1])
    scores = np.where(tails > 0, tails, 0.0) ** 2 / np.arange(1, len(tails) + 1)
    return int(len(values) - 1 - np.argmax(scores))


def _log_odds(drift: float, tau: float, rate: float) -> float:
    return max(1.0, math.log(2 * drift**2 / (tau * rate)))
