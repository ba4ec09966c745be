"""How far a policy has gone back from the best that it was.

    setback = progress lost + 0.2 ln(entropy / lowest entropy) + sqrt(tool errors) - lowest sqrt(tool errors)

"Best" and "lowest" are of running means so far, so that what a policy has learnt since the warm-up counts: weights that
rot in small steps take that away long before anything is worse than in the first steps.  One figure of a small batch
says little; in a rot all three turn round together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FORGETTING = 0.1
"""Weight of the newest step in a running mean: about the last ten steps."""

LARGEST_PART = 0.4
"""What one part can count for at most, so that none speaks alone for long."""

ENTROPY_WEIGHT, ENTROPY_FLOOR = 0.2, 0.01
"""A doubled entropy (nats) counts like .14 of progress; below the floor it is as good as 0."""


@dataclass(slots=True)
class RunningBest:
    """The lowest running mean so far of a figure that falls when things get better.  n: its values."""

    n: int = 0
    mean: float = math.nan
    lowest: float = math.nan

    def add(self, value: float, weight: float = 1.0) -> float:
        """Takes a value; gives how far it is above the lowest mean, NaN while that rests on too few.

        weight: below 1 for a value that is noisier than most; its square is what it counts in the mean.

        >>> best = RunningBest(n=20, mean=0.5, lowest=0.5)
        >>> round(best.add(0.7), 2), round(best.mean, 2)
        (0.2, 0.52)
        """
        self.n += 1
        self.mean = value if self.n == 1 else self.mean + FORGETTING * weight**2 * (value - self.mean)
        # a mean of a few steps is mostly noise, and would be a best that is never reached again
        if self.n >= 1 / FORGETTING:
            self.lowest = self.mean if math.isnan(self.lowest) else min(self.lowest, self.mean)
        return value - self.lowest


class Setback:
    """`Setback().add(scalars)` once for each step."""

    def __init__(self) -> None:
        self._parts = {"progress": RunningBest(), "entropy": RunningBest(), "tool_errors": RunningBest()}

    def add(self, scalars: Mapping[str, float], weight: float = 1.0) -> float | None:
        """The setback of a step; None where nobody grades progress or success, or in the first steps.

        scalars: those of the step.  An entropy or a tool error rate that the step lacks counts 0.  weight: of the step
        in the running means, 1 for one as large as in the warm-up.
        """
        done = scalars.get("health/progress_mean", scalars.get("health/success_mean"))
        if done is None:
            return None
        figures = {"progress": -done}
        if (entropy := scalars.get("health/entropy")) is not None:
            figures["entropy"] = ENTROPY_WEIGHT * math.log(entropy + ENTROPY_FLOOR)
        if (errors := scalars.get("health/tool_error_rate")) is not None:
            figures["tool_errors"] = math.sqrt(errors)
        lost = {name: self._parts[name].add(value, weight) for name, value in figures.items()}
        if math.isnan(lost["progress"]):
            return None
        return sum(max(-LARGEST_PART, min(LARGEST_PART, part)) for part in lost.values() if not math.isnan(part))

    def state(self) -> dict[str, list[float | None]]:
        """As JSON."""
        return {name: [best.n, _known(best.mean), _known(best.lowest)] for name, best in self._parts.items()}

    @classmethod
    def of(cls, state: Mapping[str, list[float | None]]) -> Setback:
        """Back from `state`."""
        made = cls()
        for name, best in made._parts.items():
            n, mean, lowest = (math.nan if number is None else number for number in state[name])
            best.n, best.mean, best.lowest = int(n), mean, lowest
        return made


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number
