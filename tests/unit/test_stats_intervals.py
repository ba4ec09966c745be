"""Intervals and differences against scipy, brute force and their own coverage."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from burnish.stats import intervals, passk, summary
from burnish.stats.intervals import clustered_bootstrap, mean_interval, paired_difference, wilson


@pytest.mark.parametrize("module", [intervals, passk, summary])
def test_docstring_examples_hold(module: object) -> None:
    outcome = doctest.testmod(module)  # type: ignore[arg-type]
    assert outcome.attempted > 0
    assert outcome.failed == 0


@given(n=st.integers(1, 500), share=st.floats(0, 1), level=st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_wilson_equals_scipy(n: int, share: float, level: float) -> None:
    successes = round(share * n)
    ours = wilson(successes, n, level=level)
    theirs = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0.0 <= ours.low <= ours.mean <= ours.high <= 1.0


def coverage(half_width_factor: float) -> float:
    """Share of 2,000 draws of 20 coin flips of rate 0.3 whose (scaled) Wilson interval holds the rate."""
    draws = np.random.default_rng(0).binomial(20, 0.3, size=2000)
    held = 0
    for successes in draws:
        interval = wilson(int(successes), 20)
        centre, half = (interval.low + interval.high) / 2, (interval.high - interval.low) / 2 * half_width_factor
        held += centre - half <= 0.3 <= centre + half
    return held / len(draws)


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.93 <= coverage(1.0) <= 0.99
    assert coverage(0.5) < 0.9, "an interval half as wide must be seen to miss"


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_what_is_no_rate(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(successes, n)


def test_mean_interval_equals_scipy() -> None:
    values = [0.3, 0.9, 0.4, 0.7, 0.1]
    ours = mean_interval(values, level=0.9)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_one_value_says_nothing_about_its_spread() -> None:
    assert mean_interval([0.5]).low == -math.inf


@pytest.mark.parametrize("values", [[], [math.nan], [0.1, math.inf]])
def test_values_that_cannot_be_averaged_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        mean_interval(values)


def test_a_level_is_a_probability() -> None:
    with pytest.raises(ValueError, match="a confidence level"):
        wilson(1, 2, level=95)


def test_bootstrap_respects_clusters() -> None:
    tasks = {f"t{i}": [float(i % 2)] * 8 for i in range(40)}
    loose = {f"t{i}-{j}": [float(i % 2)] for i in range(40) for j in range(8)}
    clustered = clustered_bootstrap(tasks, np.random.default_rng(0))
    independent = clustered_bootstrap(loose, np.random.default_rng(0))
    ratio = (clustered.high - clustered.low) / (independent.high - independent.low)
    assert ratio == pytest.approx(math.sqrt(8), rel=0.1)
    assert (clustered.n, clustered.mean) == (40, 0.5)


def test_bootstrap_is_a_function_of_its_generator_and_not_of_the_order_of_tasks() -> None:
    tasks = {"a": [0.0, 1.0], "b": [1.0], "c": [0.5]}
    turned = dict(reversed(tasks.items()))
    first = clustered_bootstrap(tasks, np.random.default_rng(5))
    assert first == clustered_bootstrap(turned, np.random.default_rng(5))


def test_difference_equals_scipys_paired_t_and_brute_force() -> None:
    a = {"x": 0.9, "y": 0.8, "z": 0.4, "w": 0.7}
    b = {"x": 0.2, "y": 0.9, "z": 0.1, "w": 0.3}
    ours = paired_difference(a, b, np.random.default_rng(0))
    theirs = stats.ttest_rel([a[k] for k in a], [b[k] for k in a]).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    differences = [a[k] - b[k] for k in a]
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=4)
    ]
    assert ours.p_value == pytest.approx(np.mean([flip >= abs(sum(differences)) - 1e-9 for flip in flips]))


def test_difference_averages_the_samples_of_a_task_first() -> None:
    ours = paired_difference({"x": [1.0, 0.0], "y": [1.0]}, {"x": [0.0], "y": [0.5]}, np.random.default_rng(0))
    assert (ours.mean, ours.n) == (0.5, 2)


def test_p_values_are_uniform_without_a_difference_and_small_with_one() -> None:
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(30)]
    p_values = []
    for _ in range(200):
        noise = rng.normal(size=(2, 30))
        p_values.append(
            paired_difference(
                dict(zip(names, noise[0], strict=True)), dict(zip(names, noise[1], strict=True)), rng, resamples=400
            ).p_value
        )
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1
    shifted = paired_difference(dict.fromkeys(names, 0.6), {n: 0.1 + 0.01 * i for i, n in enumerate(names)}, rng)
    assert shifted.p_value < 0.001


def test_no_difference_is_no_evidence() -> None:
    same = {f"t{i}": 0.5 for i in range(20)}
    assert paired_difference(same, same, np.random.default_rng(0)).p_value == 1.0


def test_sides_must_name_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="such as 'y'"):
        paired_difference({"x": 1.0, "y": 1.0}, {"x": 1.0}, np.random.default_rng(0))


@given(n=st.integers(1, 8), successes=st.integers(0, 8), k=st.integers(1, 8))
def test_pass_at_k_equals_enumeration(n: int, successes: int, k: int) -> None:
    if successes > n or k > n:
        with pytest.raises(ValueError, match="need 1 <= k"):
            passk.pass_at_k(n, successes, k)
        return
    attempts = [True] * successes + [False] * (n - successes)
    picks = list(itertools.combinations(attempts, k))
    assert passk.pass_at_k(n, successes, k) == pytest.approx(np.mean([any(pick) for pick in picks]))
    assert passk.pass_hat_k(n, successes, k) == pytest.approx(np.mean([all(pick) for pick in picks]))


def test_means_over_tasks_need_tasks() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        passk.mean_pass_hat_k([], 1)


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_a_summary_needs_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        summary.summarise(values)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 256])
def test_one_quantile_is_numpys(n: int, level: float) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    assert summary.quantile(values, level) == pytest.approx(float(np.quantile(values, level)), rel=1e-12)
