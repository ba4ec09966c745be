"""Penalties for leaving a feasible set, by distance d to its boundary: d > 0 outside, d < 0 inside, any unit.

    softplus   -k * tau * log(1 + exp(d / tau))      felt before the boundary is reached, slope k far outside
    hinge      -k * max(0, d)                        its limit for tau -> 0: silent inside
    hard       -k where d > 0, else 0                the baseline, all or nothing

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention IV:
softplus(distance to boundary), sign and temperature not given; a hard constraint was reported to teach refusal.  A
reward is not differentiated, so what shaping gives is not a smooth slope but *graded contrast* near the boundary:
members of a group that differ in d differ in reward, also where none of them, or all, are outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Shape(StrEnum):
    """How a penalty grows."""

    SOFTPLUS = "softplus"
    HINGE = "hinge"
    HARD = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstraintPenalty:
    """`ConstraintPenalty(k=1.0, tau=0.5)`

    k >= 0: reward per unit of d; for `hard`, all of it.  tau > 0: width of the boundary, in units of d, for softplus.
    """

    k: float
    tau: float = 1.0
    shape: Shape = Shape.SOFTPLUS

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", Shape(self.shape))
        if not (0.0 <= self.k < math.inf and 0.0 < self.tau < math.inf):
            raise ValueError(f"k is at least 0 and tau above 0, both finite, got {self.k} and {self.tau}")

    def reward(self, distance: float) -> float:
        """What is added to the reward, at most 0.

        >>> round(ConstraintPenalty(k=1.0, tau=1.0).reward(0.0), 3), ConstraintPenalty(k=2.0, shape="hinge").reward(1.5)
        (-0.693, -3.0)
        """
        if not math.isfinite(distance):
            raise ValueError(
                f"a distance is finite, got {distance}; leave a trajectory out whose distance is not known"
            )
        match self.shape:
            case Shape.SOFTPLUS:
                x = distance / self.tau
                return -self.k * self.tau * (max(x, 0.0) + math.log1p(math.exp(-abs(x))))
            case Shape.HINGE:
                return -self.k * max(distance, 0.0)
            case Shape.HARD:
                return -self.k if distance > 0.0 else 0.0
