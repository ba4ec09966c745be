"""An auxiliary reward that fades: it shows the way early and has no say in the end.

    r = r_task + beta(t) * r_auxiliary,   beta(t) = beta_0 * 2^(-t / half_life), 0 once below off_below * beta_0

with t the share of training done.  "Engineering and algorithmic interventions for multimodal post-training at Microsoft
scale" (2026), intervention IV, for parallelism (neither beta_0 nor the decay is given).  An exponential never ends; cut
off, the last part of training has exactly the task's own objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from burnish.core.errors import ConfigError
from burnish.graders.node import WeightSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealedWeight(WeightSchedule):
    """`AnnealedWeight(start=0.5, half_life=0.1)`; in a graph's file `weight = { start = 0.5, half_life = 0.1 }`.

    start: beta_0, any finite number.  half_life: share of training, above 0.  off_below in [0, 1): the share of beta_0
    under which the weight is 0.  Raises ConfigError for anything else.
    """

    points: tuple[tuple[float, float], ...] = field(init=False)
    start: float
    half_life: float
    off_below: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and 0.0 < self.half_life < math.inf and 0.0 <= self.off_below < 1.0):
            raise ConfigError(
                "a weight that fades has a finite start, half_life above 0 and off_below in [0, 1), got "
                f"{self.start}, {self.half_life} and {self.off_below}"
            )
        object.__setattr__(self, "points", ((0.0, self.start), (1.0, self._left(1.0))))

    def at(self, share: float) -> float:
        """The weight after a share of training; a share outside of [0, 1] counts as the nearer end.

        >>> weight = AnnealedWeight(start=0.5, half_life=0.1)
        >>> weight.at(0.0), weight.at(0.1), weight.at(1.0)
        (0.5, 0.25, 0.0)
        """
        if not math.isfinite(share):
            raise ValueError(f"the share of training done is a number in [0, 1], got {share}")
        return self._left(min(max(share, 0.0), 1.0))

    def _left(self, share: float) -> float:
        left = 2.0 ** (-share / self.half_life)
        return 0.0 if left < self.off_below else self.start * left
