"""A servo on the KL weight: it rises while a drift is over its target, falls below it, and never passes its cap.

    e        = drift / target                  drift: KL to the reference in nats, or (floor / entropy) for entropy
    weight  *= min(e, rate)                    while e > 1 + dead_band
    weight  *= max(e, 1 / rate)                while e < 1 / (1 + dead_band)
    weight  *= leak                            in between, so that a servo nobody needs lets go by itself
    weight   = clamp(weight, start, cap)

The adaptive penalty of PPO (Schulman et al., arXiv 1707.06347, section 4: doubled above 1.5 times the target, halved
below it over 1.5) and the proportional controller of Ziegler et al. (arXiv 1909.08593, section 2.2), with a dead band
against fluttering, a bounded rate, a cap and a leak.  `start` is the weight that it engages with; at `start` and below
the target, it has let go (`idle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KlServo:
    """`KlServo(start=0.01, cap=0.2).step(0.02, error=3.0)` gives 0.025: over target, so up by the full rate.

    start, cap: smallest and largest weight, 0 < start <= cap.  rate > 1: largest factor of one step.
    dead_band > 0: how far from 1 the error must be to count.  leak in (0, 1]: factor inside the dead band.
    """

    start: float
    cap: float
    rate: float = 1.25
    dead_band: float = 0.2
    leak: float = 0.98

    def __post_init__(self) -> None:
        if not 0.0 < self.start <= self.cap < math.inf:
            raise ValueError(f"a servo needs 0 < start <= cap, got start {self.start} and cap {self.cap}")
        if not (self.rate > 1.0 and self.dead_band > 0.0 and 0.0 < self.leak <= 1.0):
            raise ValueError(
                f"a servo needs rate > 1, dead_band > 0 and leak in (0, 1], "
                f"got {self.rate}, {self.dead_band} and {self.leak}"
            )

    def step(self, weight: float, error: float) -> float:
        """The next weight, from this one and the error e >= 0 (1: on target).

        An error that is not finite or negative says nothing: the weight stays.

        >>> servo = KlServo(start=0.01, cap=0.02)
        >>> servo.step(0.019, error=9.0), servo.step(0.019, error=float("nan"))
        (0.02, 0.019)
        """
        if not (math.isfinite(error) and error >= 0.0):
            return weight
        if error > 1.0 + self.dead_band:
            factor = min(error, self.rate)
        elif error < 1.0 / (1.0 + self.dead_band):
            factor = max(error, 1.0 / self.rate)
        else:
            factor = self.leak
        return min(max(weight * factor, self.start), self.cap)

    def idle(self, weight: float, error: float) -> bool:
        """Whether it holds nothing any more: back at `start`, and not over its target.

        >>> KlServo(start=0.01, cap=0.2).idle(0.01, error=0.5)
        True
        """
        return weight <= self.start and error <= 1.0 + self.dead_band
