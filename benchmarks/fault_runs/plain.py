"""What other people's monitors look at: scalars of a step over all its tokens, nothing cut by slice."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.core.streams import TokenStream

EXPONENT_CAP = 20.0
JANUARY_CAP, AUGUST_CAP = 2.0, 2.0
"""Thresholds T of verl's clamp by default: weights in [1/T, T] in January 2026, in [0, T] in August."""


def plain_scalars(streams: Sequence[TokenStream]) -> dict[str, float]:
    """Scalars of one step, NaN where nothing is known of it; all log-ratios are learner - behaviour.

    kl: mean(behaviour - learner), the k1 estimate; kl_k3: mean(e^d - 1 - d); kl_reference: k3 of reference - learner;
    ess_january, ess_august: token ESS over n on weights clamped as verl does; ratio_mean: mean of e^d; entropy in nats;
    reward_mean, reward_std over trajectories, group_std the mean of the groups' own; length_mean in tokens.
    """
    d_N = _difference(streams, "behaviour")
    reference_N = _difference(streams, "reference")
    entropy_N = _joined([stream.entropy for stream in streams if stream.entropy is not None])
    weights_N = np.exp(np.clip(d_N, -EXPONENT_CAP, EXPONENT_CAP))
    rewards = np.array([stream.reward for stream in streams if stream.reward is not None], dtype=np.float64)
    return {
        "kl": -_mean(d_N),
        "kl_k3": _mean(weights_N - 1 - d_N),
        "kl_reference": _mean(np.exp(np.clip(-reference_N, -EXPONENT_CAP, EXPONENT_CAP)) - 1 + reference_N),
        "ess_january": ess_share(np.clip(weights_N, 1 / JANUARY_CAP, JANUARY_CAP)),
        "ess_august": ess_share(np.clip(weights_N, 0.0, AUGUST_CAP)),
        "ratio_mean": _mean(weights_N),
        "entropy": _mean(entropy_N),
        "reward_mean": _mean(rewards),
        "reward_std": float(rewards.std()) if len(rewards) else math.nan,
        "group_std": _group_std(streams),
        "length_mean": _mean(np.array([stream.length for stream in streams], dtype=np.float64)),
    }


def ess_share(weights_N: NDArray[np.float64]) -> float:
    """(sum w)^2 / (n sum w^2), NaN of nothing.

    >>> ess_share(np.array([1.0, 1.0, 0.0, 0.0]))
    0.5
    """
    total = float((weights_N**2).sum())
    return float(weights_N.sum()) ** 2 / (len(weights_N) * total) if total > 0 else math.nan


def _difference(streams: Sequence[TokenStream], other: str) -> NDArray[np.float64]:
    pairs = [(s.learner, getattr(s, other)) for s in streams if s.learner is not None and getattr(s, other) is not None]
    return _joined([a for a, _ in pairs]) - _joined([b for _, b in pairs])


def _joined(parts: Sequence[array[float]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *(np.frombuffer(part, dtype=np.float32) for part in parts)])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _group_std(streams: Sequence[TokenStream]) -> float:
    groups: dict[str, list[float]] = defaultdict(list)
    for stream in streams:
        if stream.reward is not None:
            groups[stream.group_id].append(stream.reward)
    return _mean(np.array([np.std(rewards) for rewards in groups.values()]))
