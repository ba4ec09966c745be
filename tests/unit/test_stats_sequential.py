"""Sequential tests: the rate of false alarms that they promise on noise of many kinds, and what they detect."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from burnish.stats.sequential import (
    Baseline,
    change_point,
    cusum,
    cusum_threshold,
    detrended_baseline,
    e_detector,
    fit_baseline,
    known_baseline,
    standardise,
)

N, STEPS, MONITORS = 50, 300, 30
RATE = 0.5 / 1000 / MONITORS
Fit = Callable[[list[float]], Baseline]


def noise(kind: str, streams: int, seed: int = 0) -> np.ndarray:
    """[streams, N + STEPS] healthy values."""
    rng = np.random.default_rng(seed)
    shape = (streams, N + STEPS)
    normal = rng.standard_normal(shape)
    match kind:
        case "heavy":
            return rng.standard_t(3, shape)
        case "skewed":
            return np.exp(0.3 * normal)
        case "jittered":
            return normal * np.exp(0.5 * rng.standard_normal(shape))
        case "rare":
            return rng.binomial(64, 0.05, shape) / 64
        case "autocorrelated":
            for t in range(1, shape[1]):
                normal[:, t] = 0.5 * normal[:, t - 1] + math.sqrt(0.75) * normal[:, t]
    return normal


def alarms_per_1000(x: np.ndarray, *, plain: bool = False, fit: Fit = fit_baseline) -> float:
    """Alarms of `MONITORS` monitors in 1,000 steps, cooldown 20; plain: k = 0.5, h = 10, no account of the baseline."""
    fits = [fit(row[:N].tolist()) for row in x]
    limits = [cusum_threshold(RATE, one) for one in fits]
    k = np.array([0.5 if plain else limit.drift for limit in limits])
    h = np.array([10.0 if plain else limit.height for limit in limits])
    mean, scale = np.array([one.mean for one in fits]), np.array([one.scale for one in fits])
    cut = 4 * np.sqrt([one.long_run_variance for one in fits])
    s, quiet, alarms = np.zeros(len(x)), np.zeros(len(x)), 0
    for t in range(N, x.shape[1]):
        z = np.clip((x[:, t] - mean) / scale, -cut, cut)
        s = np.where(quiet > 0, 0.0, np.maximum(0.0, s + z - k))
        quiet -= 1
        fired = s >= h
        alarms += int(fired.sum())
        s[fired], quiet[fired] = 0.0, 20
    return alarms / (len(x) * STEPS) * 1000 * MONITORS


@pytest.mark.parametrize("kind", ["white", "autocorrelated", "heavy", "skewed", "jittered", "rare"])
def test_false_alarms_stay_within_the_promise(kind: str) -> None:
    assert alarms_per_1000(noise(kind, 1500)) <= 0.5


@pytest.mark.parametrize("kind", ["white", "jittered", "rare"])
def test_a_known_mean_keeps_the_promise(kind: str) -> None:
    mean = 0.05 if kind == "rare" else 0.0
    assert alarms_per_1000(noise(kind, 1500), fit=partial(known_baseline, mean=mean)) <= 0.5


@pytest.mark.parametrize("kind", ["white", "autocorrelated", "heavy"])
def test_a_fall_in_the_warm_up_costs_no_false_alarms(kind: str) -> None:
    falling = noise(kind, 1500) - 0.06 * np.minimum(np.arange(N + STEPS), N)
    assert alarms_per_1000(falling, fit=detrended_baseline) <= 0.5


def test_a_fall_in_the_warm_up_does_not_hide_a_rise() -> None:
    values = (noise("white", 1)[0, :N] - 0.1 * np.arange(N)).tolist()
    plain, detrended = fit_baseline(values), detrended_baseline(values)
    assert detrended.mean == pytest.approx(plain.mean, abs=0.2)
    assert detrended.scale < 1.5 < plain.scale
    assert detrended.long_run_variance < 3 < plain.long_run_variance


def test_a_threshold_that_ignores_the_baseline_breaks_the_promise() -> None:
    assert alarms_per_1000(noise("autocorrelated", 300), plain=True) > 5


def test_a_shift_is_found_soon() -> None:
    delays = []
    for seed in range(20):
        x = noise("white", 1, seed)[0]
        x[100:] += 3.0
        fit = fit_baseline(x[:N].tolist())
        limit, s = cusum_threshold(RATE, fit), 0.0
        for t in range(N, len(x)):
            s = cusum(s, standardise(float(x[t]), fit), limit.drift)
            if s >= limit.height:
                delays.append(t - 100)
                break
    assert len(delays) == 20
    assert 0 <= np.median(delays) <= 12


def test_thresholds_grow_with_autocorrelation_and_with_fewer_values() -> None:
    usual = Baseline(mean=0.0, scale=1.0, autocorrelation=0.0, n=50)
    slow = Baseline(mean=0.0, scale=1.0, autocorrelation=0.6, n=50)
    short = Baseline(mean=0.0, scale=1.0, autocorrelation=0.0, n=20)
    a, b, c = (cusum_threshold(RATE, fit) for fit in (usual, slow, short))
    assert b.drift > a.drift
    assert b.height > a.height
    assert c.drift > a.drift
    assert cusum_threshold(RATE / 100, usual).height > a.height


def test_one_outlier_in_the_warm_up_does_not_blind() -> None:
    x = np.random.default_rng(0).standard_normal(50)
    x[20] = 1000.0
    fit = fit_baseline(x.tolist())
    assert abs(fit.mean) < 0.5
    assert fit.scale < 2.0


def test_e_detector_promises_a_mean_time_and_finds_a_shift() -> None:
    fit = Baseline(mean=0.0, scale=1.0, autocorrelation=0.0, n=50)
    rng = np.random.default_rng(0)
    quiet = [-700.0]
    for _ in range(3000):
        quiet.append(e_detector(quiet[-1], float(rng.standard_normal()), fit))
    assert max(quiet) < math.log(1 / RATE)
    m, steps = -700.0, 0
    while m < math.log(1 / RATE) and steps < 100:
        m, steps = e_detector(m, float(rng.standard_normal()) + 3.0, fit), steps + 1
    assert steps < 15


def test_change_point_is_near_the_truth() -> None:
    found = []
    for seed in range(50):
        z = np.random.default_rng(seed).standard_normal(80)
        z[60:] += 2.0
        found.append(change_point(z.tolist()))
    assert abs(np.median(found) - 60) <= 1
    assert np.mean(np.abs(np.array(found) - 60) <= 4) > 0.8


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 finite"):
        fit_baseline([1.0, math.nan] * 10)
    with pytest.raises(ValueError, match="rate"):
        cusum_threshold(0.0, Baseline(mean=0, scale=1, autocorrelation=0, n=50))
