"""Mixed horizons: how many turns an episode may take is drawn anew for each group, from the first step on.

    h ~ Uniform{6, 10, 16, 25}, one draw for each (run seed, step, group)

"Engineering and algorithmic interventions for multimodal post-training at Microsoft scale" (2026), intervention V: a
policy trained at one horizon is good at that one (0.25 at 6 turns, 0.08 at 25), a mixed one everywhere (0.22 to 0.32).
Others report that going from short to long helps (arXiv 2605.02572), so which to take is a question to measure.  One
draw for a group, not for a member: members that share a baseline must have had the same chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from burnish.core.errors import TaskError
from burnish.core.hashing import derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizonMix:
    """`HorizonMix(horizons=(6, 10, 16, 25))`; turns, at least 1 each.  weights: of the horizons, () for equal ones."""

    horizons: Sequence[int] = (6, 10, 16, 25)
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "horizons", tuple(self.horizons))
        object.__setattr__(self, "weights", tuple(self.weights))
        if not self.horizons or min(self.horizons) < 1:
            raise TaskError(f"a mix needs horizons of at least 1 turn, got {self.horizons}")
        if self.weights and (len(self.weights) != len(self.horizons) or min(self.weights) <= 0.0):
            raise TaskError(f"a mix needs one weight above 0 for each of {self.horizons}, got {self.weights}")

    def draw(self, seed: int, step: int, group: int) -> int:
        """Turns of one group; the same arguments give the same number.

        >>> HorizonMix(horizons=(6,)).draw(seed=0, step=3, group=1)
        6
        """
        rng = Random(derive_seed(seed, "horizon", step, group))
        return rng.choices(self.horizons, weights=self.weights or None)[0]
