"""What the verifiable graders alone make of a step: how far its rewards agree with it, and the step judged by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from burnish.core.grade import Aggregator
from burnish.graders.graph import for_evaluation
from burnish.rollout.group import GroupResult, carries_signal


def agreement(groups: Sequence[GroupResult], aggregator: Aggregator) -> float:
    """How far the rewards r of a step rank the members of each group as held-out evaluations (scores s) would.

        sum_g cov_g(r, s) / sqrt(sum_g var_g(r) * sum_g var_g(s))

    The cosine of the two vectors of rewards less their groups' means, which is that of the advantages without a scale:
    1 for the same direction of learning, 0 for none in common.  NaN where one of them has no spread.
    """
    rewards, scores = [], []
    for group in groups:
        both = zip(group.rewards_G, _scores(group, aggregator), strict=True)
        pairs = [(reward, score) for reward, score in both if reward is not None and score is not None]
        if len(pairs) > 1:
            centred = np.asarray(pairs, dtype=np.float64) - np.mean(pairs, axis=0)
            rewards.append(centred[:, 0])
            scores.append(centred[:, 1])
    if not rewards:
        return math.nan
    reward, score = np.concatenate(rewards), np.concatenate(scores)
    size = math.sqrt(float(reward @ reward) * float(score @ score))
    return float(reward @ score) / size if size > 0.0 else math.nan


def verified(group: GroupResult, aggregator: Aggregator) -> GroupResult:
    """The group with what held-out evaluations would say as its rewards, uncharged; who has none keeps none."""
    pairs = zip(group.rewards_G, _scores(group, aggregator), strict=True)
    rewards = tuple(None if reward is None else score for reward, score in pairs)
    return replace(group, rewards_G=rewards, charges_G=(0.0,) * len(rewards), signal=carries_signal(rewards))


def _scores(group: GroupResult, aggregator: Aggregator) -> Sequence[float | None]:
    return for_evaluation(aggregator).rewards(group.grades_G)
