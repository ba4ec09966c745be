"""Histograms on a logarithmic scale: every number in its bin, quantiles within a bin, distances, tail index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from burnish.stats.histogram import (
    CODES,
    EDGES,
    NONFINITE,
    OVERFLOW,
    UNDERFLOW,
    ZERO,
    codes,
    distances,
    magnitudes,
    quantiles,
    tail_indices,
)


def counted(values: np.ndarray) -> np.ndarray:
    return magnitudes(np.bincount(codes(np.asarray(values, dtype=np.float32)), minlength=CODES))


def test_what_other_histograms_drop_is_counted() -> None:
    found = counted(np.array([0.0, -0.0, 1e-6, 500.0, np.nan, np.inf, -np.inf]))
    assert found[[ZERO, UNDERFLOW, OVERFLOW, NONFINITE]].tolist() == [2, 1, 1, 3]
    assert found.sum() == 7


def test_edges_are_sixteen_to_the_decade_within_a_percent() -> None:
    assert len(EDGES) == 97
    assert np.abs(EDGES / 10.0 ** (np.arange(97) / 16 - 4) - 1).max() < 0.008
    assert EDGES[[64, 96]].tolist() == [1.0, 100.0]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bins_are_those_of_the_edges_exactly(values: list[float]) -> None:
    x = np.abs(np.array(values, dtype=np.float32)).astype(np.float64)
    # below the smallest normal bfloat16 a number is zero for the table
    x = x[(x == 0) | (x > 1e-37)]
    expected, _ = np.histogram(x[(x >= EDGES[0]) & (x < EDGES[-1])], bins=EDGES)
    found = counted(x)
    assert found[2:OVERFLOW].tolist() == expected.tolist()
    assert found[ZERO] == (x == 0).sum()
    assert found[UNDERFLOW] == ((x > 0) & (x < EDGES[0])).sum()
    assert found[OVERFLOW] == (x >= EDGES[-1]).sum()


def test_signs_are_kept_apart() -> None:
    found = np.bincount(codes(np.array([-1.0, -1.0, 1.0], dtype=np.float32)), minlength=CODES)
    assert found[66] == 1
    assert found[166] == 2


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99, 0.999])
def test_quantiles_are_within_a_bin_of_the_exact_ones(level: float) -> None:
    x = np.random.default_rng(0).standard_t(3, 100_000) * 0.05
    exact = np.quantile(np.abs(x), level)
    assert quantiles(counted(x), [level])[0] == pytest.approx(exact, rel=0.08)


def test_quantiles_of_nothing_and_of_zeros() -> None:
    empty, zeros = counted(np.array([])), counted(np.zeros(9))
    assert np.isnan(quantiles(empty, [0.5])[0])
    assert quantiles(zeros, [0.95])[0] == 0.0
    assert np.isnan(quantiles(counted(np.array([np.nan])), [0.5])[0])


def test_distances_see_a_shift_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 0.05, 50_000)
    ks, w1 = distances(counted(rng.normal(0, 0.05, 50_000)), counted(x))
    assert ks < 0.02
    assert w1 < 0.02
    ks, w1 = distances(counted(2 * x), counted(x))
    assert w1 == pytest.approx(np.log10(2), abs=0.02)
    assert ks == pytest.approx(stats.ks_2samp(np.abs(2 * x), np.abs(x)).statistic, abs=0.03)


@pytest.mark.parametrize("index", [1.5, 3.0])
def test_tail_index_of_pareto_tails(index: float) -> None:
    x = 0.001 * (1 + np.random.default_rng(2).pareto(index, 50_000))
    assert tail_indices(counted(x)) == pytest.approx(index, rel=0.1)


def test_no_tail_index_from_too_little() -> None:
    assert np.isnan(tail_indices(counted(np.full(100, 0.1))))
    assert np.isnan(tail_indices(counted(np.random.default_rng(0).normal(size=20))))
