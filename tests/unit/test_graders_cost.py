"""A token cost in the reward: what it may never do, whatever the group."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from burnish.algorithms.advantages import group_advantages
from burnish.core.cost import EpisodeCost
from burnish.core.errors import ConfigError
from burnish.graders.cost import CEILING, ChargeMode, TokenCost

MAX_TOKENS = 1000
SUCCESS_MODES = (ChargeMode.SCALED_SUCCESS, ChargeMode.SUCCESS)


def cost(action_tokens: int) -> EpisodeCost:
    return EpisodeCost(
        action_tokens=action_tokens, context_tokens=2 * action_tokens, turns=1, tool_calls=0, tool_s=0.0, total_s=0.0
    )


def groups(seed: int, scores: tuple[float | None, ...], count: int = 300) -> list[tuple[list, list[EpisodeCost]]]:
    rng = Random(seed)
    made = []
    for _ in range(count):
        size = rng.randint(1, 8)
        made.append(
            ([rng.choice(scores) for _ in range(size)], [cost(rng.randint(0, MAX_TOKENS)) for _ in range(size)])
        )
    return made


def misordered(rewards: list, charged: list) -> int:
    """Pairs in which a success no longer ranks above a failure."""
    known = [(before, after) for before, after in zip(rewards, charged, strict=True) if before is not None]
    return sum(a >= 1.0 > b and after_a <= after_b for a, after_a in known for b, after_b in known)


@pytest.mark.parametrize("mode", ChargeMode)
def test_no_success_falls_below_a_failure_while_the_longest_pays_less_than_one(mode: ChargeMode) -> None:
    charge = TokenCost(per_1k_tokens=0.999, mode=mode)
    charge.check_limit(MAX_TOKENS)
    for rewards, costs in groups(1, (0.0, 1.0, None)):
        assert misordered(rewards, charge.charged(rewards, costs)) == 0


@pytest.mark.parametrize("mode", SUCCESS_MODES)
def test_nor_does_it_under_partial_credit_at_any_price(mode: ChargeMode) -> None:
    charge = TokenCost(per_1k_tokens=50.0, mode=mode)
    for rewards, costs in groups(2, (0.0, 0.3, 0.95, 1.0, -0.5, None)):
        assert misordered(rewards, charge.charged(rewards, costs)) == 0


def test_the_condition_is_needed() -> None:
    """The negative control: a price that every episode pays, without the limit on it, turns the order round."""
    rewards, costs = [1.0, 0.0], [cost(1000), cost(0)]
    unbounded = [reward - 1.2 * one.action_tokens / 1000 for reward, one in zip(rewards, costs, strict=True)]
    assert misordered(rewards, unbounded) == 1
    partial = TokenCost(per_1k_tokens=0.9, mode="always").charged([1.0, 0.5], costs)
    assert misordered([1.0, 0.5], partial) == 1, "under partial credit `always` keeps no order, and says so"


def test_always_teaches_giving_up_and_the_default_does_not() -> None:
    failures, costs = [0.0, 0.0, 0.0], [cost(10), cost(400), cost(900)]
    always = TokenCost(per_1k_tokens=0.5, mode="always").charged(failures, costs)
    assert max(range(3), key=lambda index: always[index]) == 0, "the shortest failure is the best of the group"
    assert group_advantages(always, baseline="mean", scale="none")[0] > 0
    assert TokenCost(per_1k_tokens=0.5).charged(failures, costs) == failures


@pytest.mark.parametrize("mode", SUCCESS_MODES)
def test_the_shorter_of_two_successes_is_preferred_and_never_a_short_failure(mode: ChargeMode) -> None:
    short, long, giving_up = TokenCost(per_1k_tokens=0.5, mode=mode).charged(
        [1.0, 1.0, 0.0], [cost(200), cost(800), cost(1)]
    )
    assert 1.0 > short > long > giving_up == 0.0


@pytest.mark.parametrize("mode", ChargeMode)
def test_a_success_never_gains_by_being_longer(mode: ChargeMode) -> None:
    charge = TokenCost(per_1k_tokens=0.9, free_tokens=100, mode=mode)
    rewards = [charge.charged([1.0, 0.4, None], [cost(n), cost(500), cost(1)])[0] for n in range(0, MAX_TOKENS, 50)]
    assert all(a >= b for a, b in pairwise(rewards))
    assert len(set(rewards[:3])) == 1, "the free tokens are free"
    assert all(a > b for a, b in pairwise(rewards[2:])), "beyond them each token costs"


@pytest.mark.parametrize("mode", ChargeMode)
def test_without_a_price_nothing_changes_to_the_bit(mode: ChargeMode) -> None:
    charge = TokenCost(per_1k_tokens=0.0, mode=mode)
    for rewards, costs in groups(3, (0.0, 0.1 + 0.2, 1.0, 1.1, None)):
        assert charge.charged(rewards, costs) == rewards


@pytest.mark.parametrize("mode", ChargeMode)
def test_excluded_members_stay_so_and_count_nowhere(mode: ChargeMode) -> None:
    charge = TokenCost(per_1k_tokens=0.5, mode=mode)
    with_failed = charge.charged([1.0, None, 0.0, 1.0], [cost(n) for n in (100, 5, 300, 700)])
    assert with_failed[1] is None
    without = charge.charged([1.0, 0.0, 1.0], [cost(n) for n in (100, 300, 700)])
    assert [with_failed[0], *with_failed[2:]] == without


def test_the_price_grows_with_the_solved_share() -> None:
    charge = TokenCost(per_1k_tokens=0.5)
    costs = [cost(400)] * 4
    lost = [1.0 - charge.charged([1.0] * right + [0.0] * (4 - right), costs)[0] for right in (1, 2, 4)]
    assert lost == pytest.approx([0.05, 0.1, 0.2])


def test_the_ceiling_holds_where_a_task_allows_more_than_was_checked() -> None:
    charge = TokenCost(per_1k_tokens=0.5, mode="success")
    assert charge.price(10**6) == CEILING
    assert charge.charged([1.0], [cost(10**6)])[0] > 0


def test_a_price_beyond_a_success_is_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"takes 1\.02 .* choose a cost below 0\.977"):
        TokenCost(per_1k_tokens=1.0).check_limit(1024)
    TokenCost(per_1k_tokens=1.0, free_tokens=100).check_limit(1024)
    for wrong in ({"per_1k_tokens": -0.1}, {"per_1k_tokens": float("nan")}, {"per_1k_tokens": 1.0, "free_tokens": -1}):
        with pytest.raises(ConfigError, match=r"or more|from 0 on"):
            TokenCost(**wrong)
    with pytest.raises(ConfigError, match="scaled_success, success, always"):
        TokenCost(per_1k_tokens=1.0, mode="sometimes")


def test_a_standard_deviation_hides_the_price() -> None:
    """Why a token cost wants `scale="none"`: in a group that is all right, the only spread is the cost, and dividing
    by it makes the pressure on length as strong as that on success, whatever the price."""
    costs = [cost(200), cost(400)]
    cheap, dear = (TokenCost(per_1k_tokens=price).charged([1.0, 1.0], costs) for price in (0.01, 0.5))
    scaled = [group_advantages(rewards, baseline="mean", scale="std") for rewards in (cheap, dear)]
    assert scaled[0] == pytest.approx(scaled[1], rel=0.01)
    plain = [group_advantages(rewards, baseline="mean", scale="none") for rewards in (cheap, dear)]
    assert plain[1][0] == pytest.approx(50 * plain[0][0])
