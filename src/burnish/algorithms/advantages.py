"""Advantages: how much better a member of a group did than its baseline.

Formulas, for rewards r_1 .. r_G of one group:

- baseline "mean": A_i = r_i - mean(r); with scale "std" A_i = (r_i - mean(r)) / (std(r) + 1e-6), std over G - 1.
  GRPO, arXiv 2402.03300, section 4.1.2.  Without the scale: Dr. GRPO, arXiv 2503.20783, section 3.2.
- baseline "leave_one_out": A_i = r_i - mean(r without r_i) = G / (G - 1) * (r_i - mean(r)).
  RLOO, arXiv 2402.14740, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

STD_EPSILON = 1e-6
"""Added to the standard deviation, so that a group of nearly equal rewards is not blown up."""

SIGNAL_TOLERANCE = 1e-9
"""Rewards that lie closer together than this are equal: what separates them is rounding."""


def has_signal(rewards_G: Sequence[float]) -> bool:
    """Whether a group can teach anything: at least two members, and not all rewards equal.

    >>> has_signal([0.0, 1.0]), has_signal([1.0, 1.0]), has_signal([1.0])
    (True, False, False)
    """
    return len(rewards_G) > 1 and max(rewards_G) - min(rewards_G) > SIGNAL_TOLERANCE


def group_advantages(
    rewards_G: Sequence[float],
    *,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    scale: Literal["none", "std"] = "none",
) -> list[float]:
    """The advantage of each member, in order; sums to 0 within rounding.

    rewards_G: the rewards of the members that carry one (excluded members are left out by the caller, so that they
    touch neither the loss nor the baseline).  A group without signal gives exact zeros.  Raises ValueError for a
    reward that is not finite and for an unknown baseline or scale.

    >>> group_advantages([1.0, 0.0, 0.0, 1.0])
    [0.5, -0.5, -0.5, 0.5]
    >>> group_advantages([1.0, 0.0, 0.0], baseline="leave_one_out")
    [1.0, -0.5, -0.5]
    """
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline is mean or leave_one_out, got {baseline!r}")
    if scale not in ("none", "std"):
        raise ValueError(f"scale is none or std, got {scale!r}")
    for reward in rewards_G:
        if not math.isfinite(reward):
            raise ValueError(f"a reward must be finite, got {reward!r}; leave failed members out instead")
    if not has_signal(rewards_G):
        return [0.0] * len(rewards_G)
    size = len(rewards_G)
    mean = math.fsum(rewards_G) / size
    factor = size / (size - 1) if baseline == "leave_one_out" else 1.0
    if scale == "std":
        factor /= math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards_G) / (size - 1)) + STD_EPSILON
    return [(reward - mean) * factor for reward in rewards_G]
