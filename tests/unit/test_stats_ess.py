"""ESS and concentration against the figures of the literature and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.stats.concentration import (
    gini,
    length_exponent,
    lognormal_departure,
    lognormal_log_sd,
    lognormal_top_share,
    top_share,
)
from burnish.stats.ess import ess_share, ess_share_of_sums, lognormal_ess_share

SIZES = st.lists(st.floats(0.001, 1000.0), min_size=2, max_size=40)


@pytest.mark.parametrize("sd", [0.05, 0.5, 1.0])
def test_raw_ess_of_lognormal_weights(sd: float) -> None:
    log_weights = np.random.default_rng(0).normal(0, sd, 200_000)
    assert ess_share(log_weights) == pytest.approx(lognormal_ess_share(sd), rel=0.1)


def test_a_cap_hides_a_tail_that_raw_ess_shows() -> None:
    log_weights = np.zeros(16_384)
    log_weights[:164] = math.log(1e6)
    assert ess_share(log_weights) == pytest.approx(0.01, rel=0.05)
    assert ess_share(log_weights, cap=2.0) > 0.98


def test_no_overflow_and_no_averaging_over_what_is_not_finite() -> None:
    assert ess_share(np.array([5000.0, 5000.0])) == 1.0
    assert ess_share(np.array([-5000.0, -5000.0]), cap=8.0) == 1.0
    with pytest.raises(ValueError, match="finite"):
        ess_share(np.array([0.0, np.inf]))


@given(SIZES)
def test_ess_of_sums_is_ess(weights: list[float]) -> None:
    w = np.array(weights)
    found = ess_share_of_sums(np.array(float(len(w))), w.sum(), (w**2).sum())
    assert float(found) == pytest.approx(ess_share(np.log(w)), rel=1e-9)
    assert 1 / len(w) - 1e-9 <= float(found) <= 1 + 1e-9


@given(SIZES)
def test_gini_is_half_the_mean_difference(sizes: list[float]) -> None:
    x = np.array(sizes)
    brute = np.abs(x[:, None] - x[None, :]).mean() / (2 * x.mean())
    assert gini(x) == pytest.approx(brute, abs=1e-9)


@given(SIZES, st.floats(0.01, 100.0))
def test_concentration_has_no_scale(sizes: list[float], factor: float) -> None:
    x = np.array(sizes)
    assert gini(x * factor) == pytest.approx(gini(x), abs=1e-9)
    assert top_share(x * factor) == pytest.approx(top_share(x), abs=1e-9)


def test_lognormal_yardstick_of_the_published_pairs() -> None:
    s = lognormal_log_sd(0.75)
    assert (round(s, 3), round(lognormal_top_share(s), 2), round(lognormal_ess_share(s), 2)) == (1.627, 0.49, 0.07)
    s = lognormal_log_sd(0.35)
    assert (round(s, 3), round(lognormal_top_share(s), 2), round(lognormal_ess_share(s), 2)) == (0.642, 0.16, 0.66)


def test_departure_is_zero_on_the_curve_and_negative_for_heavier_tails() -> None:
    rng = np.random.default_rng(0)
    assert abs(lognormal_departure(np.exp(rng.normal(0, 0.6, 50_000)))) < 0.05
    assert lognormal_departure(rng.pareto(2.2, 50_000) + 0.1) < -0.3
    assert math.isnan(lognormal_departure(np.ones(9)))


def test_length_exponent_is_not_fooled_by_sources_of_different_noise() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 2, 400)
    length = np.exp(rng.uniform(math.log(100), math.log(2000), 400)) * np.where(source, 3.0, 1.0)
    size = np.where(source, 16.0, 1.0) * length**0.5 * np.exp(rng.normal(0, 0.2, 400))
    fit = length_exponent(size, length, source)
    assert fit is not None
    assert fit.exponent == pytest.approx(0.5, abs=4 * fit.standard_error)
    pooled = length_exponent(size, length, np.zeros(400, dtype=np.int64))
    assert pooled is not None
    assert pooled.exponent > 0.8  # what pooling would have said
    assert length_exponent(size, np.full(400, 100.0), source) is None


def test_sizes_must_be_finite_and_positive() -> None:
    for bad in ([1.0, -1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            gini(np.array(bad))
    assert math.isnan(gini(np.zeros(3)))
