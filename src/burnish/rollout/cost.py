"""What the episodes of a step cost, as scalars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from burnish.core.cost import EpisodeCost
from burnish.rollout.group import GroupResult

_QUANTILES = {"p50": 0.5, "p90": 0.9}


def cost_scalars(costs: Sequence[EpisodeCost]) -> dict[str, float]:
    """Median and 90th percentile (linear interpolation) of what each episode spent; empty without episodes.

    `cost/NAME_p50` and `cost/NAME_p90` for action tokens, context tokens, turns and tool calls; seconds under `time/`,
    with the other figures that differ from one run of a recipe to the next.

    >>> cost = EpisodeCost(action_tokens=8, context_tokens=20, turns=2, tool_calls=1, tool_s=0.25, total_s=1.5)
    >>> cost_scalars([cost])["cost/action_tokens_p90"], cost_scalars([cost])["time/episode_tool_s_p50"]
    (8.0, 0.25)
    """
    if not costs:
        return {}
    columns = {
        "cost/action_tokens": [cost.action_tokens for cost in costs],
        "cost/context_tokens": [cost.context_tokens for cost in costs],
        "cost/turns": [cost.turns for cost in costs],
        "cost/tool_calls": [cost.tool_calls for cost in costs],
        "time/episode_tool_s": [cost.tool_s for cost in costs],
        "time/episode_s": [cost.total_s for cost in costs],
    }
    return {
        f"{name}_{suffix}": float(np.quantile(np.asarray(values, dtype=np.float64), quantile))
        for name, values in columns.items()
        for suffix, quantile in _QUANTILES.items()
    }


def mean_charge(groups: Sequence[GroupResult]) -> float:
    """Mean of what costs took from a reward, over the members that have one; 0 without any."""
    charges = [
        charge
        for group in groups
        for reward, charge in zip(group.rewards_G, group.charges_G, strict=True)
        if reward is not None
    ]
    return sum(charges) / len(charges) if charges else 0.0
