"""An auxiliary reward that fades: it shows the way early and has no say in the end.

    r = r_task + beta(t) * r_auxiliary,   beta(t) = beta_0 * 2^(-t / half_life), 0 once below off_below * beta_0

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention IV, for
parallelism (neither beta_0 nor the decay is given).  An exponential never ends; cut off, the last part of training has
exactly the task's own objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealedWeight:
    """`AnnealedWeight(start=0.5, half_life_steps=40)`; start: beta_0, any finite number.  half_life_steps > 0.
    off_below in [0, 1): the share of beta_0 under which the weight is 0."""

    start: float
    half_life_steps: float
    off_below: float = 0.01

    def __post_init__(self) -> None:
        if not math.isfinite(self.start):
            raise ValueError(f"start is finite, got {self.start}")
        if not (0.0 < self.half_life_steps < math.inf and 0.0 <= self.off_below < 1.0):
            raise ValueError(
                f"half_life_steps is above 0 and off_below in [0, 1), got {self.half_life_steps} and {self.off_below}"
            )

    def at(self, step: int) -> float:
        """The weight in a step, counted from 0.

        >>> weight = AnnealedWeight(start=0.5, half_life_steps=40)
        >>> weight.at(0), weight.at(40), weight.at(400)
        (0.5, 0.25, 0.0)
        """
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        left = 2.0 ** (-step / self.half_life_steps)
        return 0.0 if left < self.off_below else self.start * left
