from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.entropy_floor import EntropyFloor
from burnish.algorithms.normalisers import VarianceNormaliser, VarianceSpec, vl_weights
from burnish.algorithms.skills import balance_skills

lengths = st.lists(st.integers(1, 5000), min_size=1, max_size=30)


def batches(exponent, noise, seed=100, count=20, size=200):
    """(sources, lengths, sizes): size = sigma_source L^exponent, lognormal around it."""
    rng = random.Random(seed)
    for _ in range(count):
        sources = [rng.choice(list(noise)) for _ in range(size)]
        tokens = [round(math.exp(rng.uniform(math.log(100), math.log(2000)))) for _ in range(size)]
        yield (
            sources,
            tokens,
            [noise[s] * t**exponent * math.exp(rng.gauss(0, 0.5)) for s, t in zip(sources, tokens, strict=True)],
        )


def learnt(true_exponent, noise, **options):
    normaliser = VarianceNormaliser(VarianceSpec(**options))
    for batch in batches(true_exponent, noise):
        normaliser.observe(*batch)
    return normaliser


def gini(values):
    x = np.sort(np.asarray(values))
    n = len(x)
    return float(np.sum((2 * np.arange(1, n + 1) - n - 1) * x) / (n * x.sum()))


@pytest.mark.parametrize("exponent", [0.2, 0.5, 0.9])
def test_the_exponent_is_found_although_sources_differ_in_noise(exponent):
    assert learnt(exponent, {"quiet": 1.0, "loud": 16.0}).exponent == pytest.approx(exponent, abs=0.03)


def test_the_exponent_of_pooled_sources_would_be_wrong_where_noise_goes_with_length():
    rng = random.Random(101)
    normaliser, pooled = VarianceNormaliser(VarianceSpec()), VarianceNormaliser(VarianceSpec())
    for _ in range(20):
        sources = [rng.choice(("short", "long")) for _ in range(200)]
        tokens = [rng.randint(100, 300) if source == "short" else rng.randint(1000, 3000) for source in sources]
        sizes = [
            (1.0 if source == "short" else 8.0) * token**0.5 * math.exp(rng.gauss(0, 0.3))
            for source, token in zip(sources, tokens, strict=True)
        ]
        normaliser.observe(sources, tokens, sizes)
        pooled.observe([""] * 200, tokens, sizes)
    assert normaliser.exponent == pytest.approx(0.5, abs=0.06)
    assert pooled.exponent > 0.9


def test_noise_of_a_source_is_found_and_a_rare_one_is_shrunk():
    normaliser = learnt(0.5, {"quiet": 1.0, "loud": 16.0}, exponent=0.5)
    assert normaliser.sigma("loud") / normaliser.sigma("quiet") == pytest.approx(16.0, rel=0.2)
    pooled = normaliser.sigma("never seen")
    normaliser.observe(["rare"], [100], [1e-3])
    assert normaliser.sigma("rare") > pooled / 2
    unshrunk = VarianceNormaliser(VarianceSpec(exponent=0.5, shrinkage=1e-9))
    unshrunk.observe(["rare", "loud"], [100, 100], [1e-3, 160.0])
    assert unshrunk.sigma("rare") == pytest.approx(1e-4, rel=1e-3)


def test_correction_evens_out_updates_of_unequal_sources_and_lengths():
    normaliser = learnt(0.5, {"quiet": 1.0, "loud": 16.0})
    sources, tokens, sizes = next(batches(0.5, {"quiet": 1.0, "loud": 16.0}, seed=102))
    weights = normaliser.weights(sources, tokens)
    corrected = [weight * size for weight, size in zip(weights, sizes, strict=True)]
    assert gini(sizes) > 0.6
    assert gini(corrected) < 0.32


def test_correlated_tokens_keep_the_fit_inside_its_range():
    assert learnt(1.4, {"a": 1.0}).exponent == 1.0
    assert learnt(-0.4, {"a": 1.0}).exponent == 0.0


def test_nothing_seen_means_the_prior():
    normaliser = VarianceNormaliser(VarianceSpec())
    assert normaliser.exponent == 0.5
    assert normaliser.sigma("a") == 1.0
    normaliser.observe(["a"], [10], [0.0])
    assert normaliser.sigma("a") == 1.0


@given(lengths, st.floats(0.0, 1.0))
def test_vl_weights_have_mean_one_and_fall_with_length(tokens, a):
    weights = vl_weights(tokens, a)
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0)
    pairs = list(zip(tokens, weights, strict=True))
    assert all(first[1] >= second[1] for first in pairs for second in pairs if first[0] < second[0])


@given(lengths, st.randoms(use_true_random=False))
def test_vl_weights_have_the_least_variance_of_all_weights_with_their_mean(tokens, rng):
    """Var(sum w g) = sum w^2 L where the noise of a trajectory grows with its length."""

    def variance(weights):
        return math.fsum(weight**2 * length for weight, length in zip(weights, tokens, strict=True))

    other = [rng.uniform(0.01, 1.0) for _ in tokens]
    mean = math.fsum(other) / len(other)
    assert variance(vl_weights(tokens, 1.0)) <= variance([weight / mean for weight in other]) * (1 + 1e-9)


def test_the_square_root_is_not_the_minimum():
    tokens = [100, 2000]
    variance = {a: sum(w**2 * n for w, n in zip(vl_weights(tokens, a), tokens, strict=True)) for a in (0.0, 0.5, 1.0)}
    assert variance[1.0] < variance[0.5] < variance[0.0]


@given(lengths, st.floats(0.0, 1.0))
def test_variance_weights_have_mean_one(tokens, exponent):
    weights = VarianceNormaliser(VarianceSpec(exponent=exponent)).weights(["a"] * len(tokens), tokens)
    assert math.fsum(weights) / len(weights) == pytest.approx(1.0)


def test_state_goes_through_json_exactly():
    spec = VarianceSpec()
    normaliser = learnt(0.7, {"a": 1.0, "b": 3.0})
    stored = json.loads(json.dumps(normaliser.state()))
    assert stored == normaliser.state()
    again = VarianceNormaliser.restore(spec, stored)
    for batch in batches(0.4, {"a": 2.0, "c": 1.0}, seed=103, count=3):
        again.observe(*batch)
        normaliser.observe(*batch)
        assert again.weights(batch[0], batch[1]) == normaliser.weights(batch[0], batch[1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="exponent"):
        VarianceSpec(exponent=1.5)
    with pytest.raises(ValueError, match="decay"):
        VarianceSpec(decay=1.0)
    with pytest.raises(ValueError, match="at least 1 trained token"):
        vl_weights([0, 3])
    with pytest.raises(ValueError, match="a lies in"):
        vl_weights([3], 2.0)
    for size in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite"):
            VarianceNormaliser(VarianceSpec()).observe(["a"], [1], [size])
    assert vl_weights([]) == []


def test_a_loud_skill_no_longer_sets_the_direction():
    advantages = [1.0, -1.0] * 50 + [0.1, -0.1] * 50
    skills = ["code"] * 100 + ["chat"] * 100
    balanced = balance_skills(advantages, skills)
    share = sum(a**2 for a in advantages[100:]) / sum(a**2 for a in advantages)
    balanced_share = sum(a**2 for a in balanced[100:]) / sum(a**2 for a in balanced)
    assert share < 0.01
    assert balanced_share > 0.2


@given(st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abc")), max_size=30))
def test_balancing_keeps_signs_zeros_and_order_within_a_skill(rows):
    advantages, skills = [a for a, _ in rows], [s for _, s in rows]
    balanced = balance_skills(advantages, skills)
    assert all(
        (a > 0) == (b > 0) and (a == 0) == (b == 0)
        for a, b in zip(advantages, balanced, strict=True)
        if abs(a) > 1e-100
    )
    with pytest.raises(ValueError, match="shrinkage"):
        balance_skills(advantages, skills, shrinkage=0.0)


def test_one_skill_stays_as_it_is():
    assert balance_skills([1.0, -2.0, 0.0], ["a"] * 3) == pytest.approx([1.0, -2.0, 0.0])
    assert balance_skills([0.0, 0.0], ["a", "b"]) == [0.0, 0.0]


@given(st.floats(0.0, 10.0), st.floats(0.1, 10.0))
def test_the_floor_is_silent_at_and_above_it(entropy, warm_up):
    floor = EntropyFloor(weight=0.05, share=0.5)
    coefficient = floor.coefficient(entropy, warm_up)
    assert 0.0 <= coefficient <= 0.05
    assert (coefficient == 0.0) or entropy < 0.5 * warm_up


def test_a_stable_low_entropy_is_left_alone_and_a_collapse_is_not():
    floor = EntropyFloor(weight=0.05)
    assert floor.coefficient(0.4, 0.4) == 0.0
    assert floor.coefficient(0.4, 2.0) == pytest.approx(0.05)
    assert floor.coefficient(math.nan, 2.0) == 0.0
    assert floor.coefficient(0.1, 0.0) == 0.0
    with pytest.raises(ValueError, match="share"):
        EntropyFloor(weight=0.1, share=1.0)
