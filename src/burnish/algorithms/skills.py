"""Grouping by skill: advantages of every ability on one scale.

    A_i' = A_i * (rms / rms_skill)^(n_skill / (n_skill + k))

Abilities differ in how far their rewards spread, and the one that spreads most would set the direction of the update;
tasks with larger gradients do not learn more from it (arXiv 2510.19178).  By ability (reasoning, coding, agentic
execution), not by modality: "Engineering and algorithmic interventions for multimodal post-training at Microsoft scale"
(2026), intervention III.  Shrinkage k keeps a skill with few members near the common scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def balance_skills(advantages_B: Sequence[float], skills_B: Sequence[str], *, shrinkage: float = 8.0) -> list[float]:
    """The B advantages with each skill on the scale of all; order and signs stay, exact zeros too.

    advantages_B: finite.  skills_B: "" is a skill like any other.  shrinkage > 0, in trajectories.  Zeros, which have
    no say in the update, have none in the scale either.

    >>> [round(a, 2) for a in balance_skills([1.0, -1.0, 0.1, -0.1], ["code", "code", "chat", "chat"], shrinkage=1e-9)]
    [0.71, -0.71, 0.71, -0.71]
    """
    if not shrinkage > 0.0:
        raise ValueError(f"shrinkage is above 0, got {shrinkage}")
    for advantage in advantages_B:
        if not math.isfinite(advantage):
            raise ValueError(f"an advantage is finite, got {advantage}")
    largest = max((abs(advantage) for advantage in advantages_B), default=0.0)
    squares: dict[str, list[float]] = {}
    for advantage, skill in zip(advantages_B, skills_B, strict=True):
        if advantage != 0.0:
            # Relative to the largest, so that squares of tiny ones do not vanish.
            squares.setdefault(skill, []).append((advantage / largest) ** 2)
    common = _mean([square for group in squares.values() for square in group])
    factors = {
        skill: (common / _mean(group)) ** (0.5 * len(group) / (len(group) + shrinkage))
        for skill, group in squares.items()
        if _mean(group) > 0.0
    }
    return [advantage * factors.get(skill, 1.0) for advantage, skill in zip(advantages_B, skills_B, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
