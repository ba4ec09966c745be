"""Kinds of tasks drawn by what their failures can teach: a curriculum from diagnosis.

    w_k = l_k (1 - o_k)                     l_k: lessons per run of a kind, o_k: share of its runs that others spoilt
    p_k = base_k max(w_k / max(w), floor)   normalised to 1, as a curriculum from estimator health

A lesson is a failure that can be learnt from, from 0 (it passed, or another was at fault) to 1.  Both rates are
halved in weight every `memory_steps` steps and shrunk to the mean of all kinds.  Who is at fault is only inferred, so
it decides what is drawn, never what is trained on; the floor keeps every kind in sight, since a tool that was down
may come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.control.curriculum import source_probabilities

SHRINK_RUNS = 8.0
"""As many runs as a group has: one group moves a kind half of the way from the mean of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was seen of a kind, or of all: runs, lessons in them, runs that others spoilt.

    `Tally(runs=8, lessons=3.5, others=2)`
    """

    runs: float = 0.0
    lessons: float = 0.0
    others: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            runs=self.runs + other.runs, lessons=self.lessons + other.lessons, others=self.others + other.others
        )

    def times(self, factor: float) -> Tally:
        """Every count multiplied."""
        return Tally(runs=factor * self.runs, lessons=factor * self.lessons, others=factor * self.others)

    @property
    def worth(self) -> float:
        """Lessons per run, times the share of runs that nobody else spoilt; 0 where nothing was seen."""
        return self.lessons / self.runs * (1.0 - self.others / self.runs) if self.runs else 0.0


@dataclass(slots=True, kw_only=True)
class Teachable:
    """What was seen of each kind of task.

    >>> seen = Teachable(memory_steps=5.0)
    >>> seen.learn({"lookup": Tally(runs=8), "change": Tally(runs=8, lessons=8)})
    >>> seen.probabilities({"lookup": 0.5, "change": 0.5}, floor=0.25)
    {'lookup': 0.25, 'change': 0.75}

    (Half of all runs are lessons, so that w is 1/4 and 3/4: lookup keeps a third of the weight of change.)
    """

    memory_steps: float
    kinds: dict[str, Tally] = field(default_factory=dict)

    def learn(self, step: Mapping[str, Tally]) -> None:
        """What one step showed, by kind."""
        keep = 0.5 ** (1.0 / self.memory_steps)
        for kind in {*self.kinds, *step}:
            self.kinds[kind] = self.kinds.get(kind, Tally()).times(keep) + step.get(kind, Tally())

    def probabilities(self, base: Mapping[str, float], floor: float) -> dict[str, float]:
        """Probability by kind; base: shares of the tasks, above 0.  Raises ValueError as `source_probabilities`."""
        everything = sum(self.kinds.values(), Tally())
        mean = everything.times(SHRINK_RUNS / everything.runs if everything.runs else 0.0)
        worth = {kind: (self.kinds.get(kind, Tally()) + mean).worth for kind in base}
        return source_probabilities(base, worth, floor=floor)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able: kind -> [runs, lessons, others]."""
        return {kind: [one.runs, one.lessons, one.others] for kind, one in sorted(self.kinds.items())}

    @staticmethod
    def restore(memory_steps: float, state: Mapping[str, Any]) -> Teachable:
        """Inverse of `state`."""
        kinds = {kind: Tally(runs=row[0], lessons=row[1], others=row[2]) for kind, row in state.items()}
        return Teachable(memory_steps=memory_steps, kinds=kinds)
