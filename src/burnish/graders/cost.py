"""A price on sampled tokens, taken from the rewards of a group.

With n_i the action tokens of member i and S the successes among the members that have a reward:

    price_i  = min(per_1k_tokens * max(0, n_i - free_tokens) / 1000, CEILING)
    solved   = |S| / |members with a reward|
    best     = max(0, highest reward of a member outside S; 0 where there is none)

    scaled_success (default)   R_i = r_i - solved * price_i * (r_i - best)   for i in S,  else r_i
    success                    R_i = r_i - price_i * (r_i - best)            for i in S,  else r_i
    always                     R_i = r_i - price_i

Why failures go free by default: where a failure is charged too, the shortest failure is the best one, and in a group
that never succeeds the only thing left to learn is to give up early (learned refusal).  Charging successes alone is
Arora & Zanette 2025 (arXiv:2502.04463) and prime-rl's correctness-gated shaping.  Why the price grows with the solved
share: length matters least where the task is still hard and longer attempts are how it gets solved (adaptive length
penalty, Xiang et al. 2025, arXiv:2506.05256; prime-rl scales by pass rate as well).  Why the price is a share of the
lead over the best failure: with 0/1 scores it is the price itself, and under partial credit a long success still ranks
above every failure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

from burnish.core.cost import EpisodeCost
from burnish.core.errors import ConfigError

CEILING = 0.99
"""Largest price of an episode, in units of its lead: whatever it sampled, a success stays above every failure."""

SUCCESS_AT = 1.0 - 1e-6
"""A reward counts as a success from here on, as in evaluations."""


class ChargeMode(StrEnum):
    """Who pays: successes in proportion to the solved share of their group, all successes, or every episode."""

    SCALED_SUCCESS = "scaled_success"
    SUCCESS = "success"
    ALWAYS = "always"


class TokenCost:
    """A price on action tokens; a `Charge`.

    per_1k_tokens: reward that 1000 action tokens cost, for a success with a lead of 1; 0 changes nothing.
    free_tokens: as many of each episode cost nothing.  Raises ConfigError for values that cannot be a price.

    >>> costs = [EpisodeCost(action_tokens=n, context_tokens=n, turns=1, tool_calls=0, tool_s=0.0, total_s=0.0)
    ...          for n in (100, 300, 20)]
    >>> [round(reward, 3) for reward in TokenCost(per_1k_tokens=1.0, mode="success").charged([1.0, 1.0, 0.0], costs)]
    [0.9, 0.7, 0.0]
    """

    def __init__(
        self, *, per_1k_tokens: float, free_tokens: int = 0, mode: ChargeMode | str = ChargeMode.SCALED_SUCCESS
    ) -> None:
        if not (math.isfinite(per_1k_tokens) and per_1k_tokens >= 0):
            raise ConfigError(f"the price of 1000 tokens is a finite number from 0 on, got {per_1k_tokens!r}")
        if free_tokens < 0:
            raise ConfigError(f"free_tokens is 0 or more, got {free_tokens}")
        if mode not in tuple(ChargeMode):
            raise ConfigError(f"a token cost is charged {', '.join(ChargeMode)}; got {mode!r}")
        self._per_1k_tokens = per_1k_tokens
        self._free_tokens = free_tokens
        self._mode = ChargeMode(mode)

    def price(self, action_tokens: int) -> float:
        """What an episode of `action_tokens` pays, in [0, CEILING]."""
        return min(self._per_1k_tokens * max(0, action_tokens - self._free_tokens) / 1000, CEILING)

    def check_limit(self, max_episode_tokens: int) -> None:
        """Raises ConfigError where the longest episode would pay 1 or more: from there on the ceiling cuts in, longer
        successes look all the same, and under "always" a success may rank below a failure."""
        longest = self._per_1k_tokens * max(0, max_episode_tokens - self._free_tokens) / 1000
        if longest >= 1.0:
            allowed = 1000 / max(1, max_episode_tokens - self._free_tokens)
            raise ConfigError(
                f"a token cost of {self._per_1k_tokens:g} per 1000 tokens takes {longest:.3g} from an episode of "
                f"max_episode_tokens={max_episode_tokens}, more than a success is worth; choose a cost below "
                f"{allowed:.3g}, or lower limits.max_episode_tokens"
            )

    def charged(self, rewards_G: Sequence[float | None], costs_G: Sequence[EpisodeCost]) -> list[float | None]:
        """The rewards of one group after costs; members without a reward keep None and count nowhere."""
        if self._per_1k_tokens == 0.0:
            return list(rewards_G)
        prices_G = [self.price(cost.action_tokens) for cost in costs_G]
        pairs = list(zip(rewards_G, prices_G, strict=True))
        if self._mode is ChargeMode.ALWAYS:
            return [None if reward is None else reward - price for reward, price in pairs]
        known = [reward for reward in rewards_G if reward is not None]
        failures = [reward for reward in known if reward < SUCCESS_AT]
        best = max(0.0, *failures) if failures else 0.0
        solved = (len(known) - len(failures)) / len(known) if known else 0.0
        share = solved if self._mode is ChargeMode.SCALED_SUCCESS else 1.0
        return [
            reward if reward is None or reward < SUCCESS_AT else reward - share * price * (reward - best)
            for reward, price in pairs
        ]
