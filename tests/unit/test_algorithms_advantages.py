from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.algorithms.advantages import group_advantages, has_signal

rewards = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=12)


@given(rewards, st.sampled_from(["mean", "leave_one_out"]), st.sampled_from(["none", "std"]))
def test_advantages_sum_to_zero_and_keep_the_order(rewards_G, baseline, scale):
    advantages = group_advantages(rewards_G, baseline=baseline, scale=scale)
    assert abs(math.fsum(advantages)) <= 1e-6 * max(1.0, max(map(abs, advantages)))
    if has_signal(rewards_G):
        pairs = list(zip(rewards_G, advantages, strict=True))
        assert all(a[1] <= b[1] for a in pairs for b in pairs if a[0] < b[0])
    else:
        assert advantages == [0.0] * len(rewards_G)


@given(rewards)
def test_leave_one_out_is_the_reward_minus_the_mean_of_the_others(rewards_G):
    if not has_signal(rewards_G):
        return
    for index, advantage in enumerate(group_advantages(rewards_G, baseline="leave_one_out")):
        others = rewards_G[:index] + rewards_G[index + 1 :]
        assert advantage == pytest.approx(rewards_G[index] - statistics.fmean(others), abs=1e-9)


def test_std_scale_divides_by_the_sample_deviation():
    expected = 0.5 / (statistics.stdev([1, 0, 0, 1]) + 1e-6)
    assert group_advantages([1.0, 0.0, 0.0, 1.0], scale="std")[0] == pytest.approx(expected)


def test_rounding_noise_is_no_signal_and_is_not_blown_up():
    noisy = [0.1 + 0.2, 0.3, 0.3]
    assert not has_signal(noisy)
    assert group_advantages(noisy, scale="std") == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("group", [[], [1.0]])
def test_small_groups_have_no_signal(group):
    assert not has_signal(group)
    assert group_advantages(group, baseline="leave_one_out") == [0.0] * len(group)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="finite"):
        group_advantages([1.0, float("nan")])
    with pytest.raises(ValueError, match="baseline"):
        group_advantages([1.0, 0.0], baseline="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scale"):
        group_advantages([1.0, 0.0], scale="mad")  # type: ignore[arg-type]
