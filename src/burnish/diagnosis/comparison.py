"""Two sets of diagnosed trajectories: which failures became more frequent.

Shares of trajectories that failed, in all and by category.  Where both sides have at least `MIN_TASKS` tasks in common
the difference is taken task by task, else between the two shares with Newcombe's interval (1998, method 10).  The level
is shared among all rows (Bonferroni); only the upper half of it counts as worse, so that of comparisons of an agent
with itself at most 2.5% say "regressed" (0 to 2.5% of 400 simulated ones each, 10 to 100 tasks, paired and not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burnish.diagnosis.overview import Overview
from burnish.stats.intervals import paired_difference, wilson

LEVEL = 0.95
MIN_TASKS = 8
ALL = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Share of failures of one category now and before.

    `Change(name="invention", now=0.2, before=0.1, difference=0.1, low=0.02, high=0.18, n_tasks=40)`
    difference: now minus before.  n_tasks: 0 where the sides were not paired.
    """

    name: str
    now: float
    before: float
    difference: float
    low: float
    high: float
    n_tasks: int = 0

    @property
    def is_worse(self) -> bool:
        """The interval lies above 0."""
        return self.low > 0.0

    @property
    def is_better(self) -> bool:
        """The interval lies below 0."""
        return self.high < 0.0


def compare(now: Overview, before: Overview) -> list[Change]:
    """Changes, that of all failures first, then by category, worst first.  Raises ValueError where a side is empty."""
    if not now.runs or not before.runs:
        raise ValueError("both sides of a comparison need at least one trajectory")
    names = [ALL, *sorted(set(now.categories) | set(before.categories))]
    level = 1.0 - (1.0 - LEVEL) / len(names)
    common = sorted(set(now.tasks) & set(before.tasks))
    changes = [
        _paired(name, now, before, common, level) if len(common) >= MIN_TASKS else _unpaired(name, now, before, level)
        for name in names
    ]
    return [changes[0], *sorted(changes[1:], key=lambda change: -change.difference)]


def regressed(changes: Sequence[Change]) -> bool:
    """Whether anything became worse."""
    return any(change.is_worse for change in changes)


def _share(side: Overview, task: str, name: str) -> float:
    counts = side.tasks[task]
    return counts.get(name, [0])[0] / counts["runs"][0]


def _paired(name: str, now: Overview, before: Overview, common: Sequence[str], level: float) -> Change:
    a, b = ({task: _share(side, task, name) for task in common} for side in (now, before))
    found = paired_difference(a, b, np.random.default_rng(0), level=level, resamples=1)
    return Change(
        name=name,
        now=sum(a.values()) / len(a),
        before=sum(b.values()) / len(b),
        difference=found.mean,
        low=found.low,
        high=found.high,
        n_tasks=len(common),
    )


def _unpaired(name: str, now: Overview, before: Overview, level: float) -> Change:
    counts = [(side.accused if name == ALL else side.categories[name], side.runs) for side in (now, before)]
    a, b = (wilson(count, n, level=level) for count, n in counts)
    p, q = (count / n for count, n in counts)
    low = p - q - math.hypot(p - a.low, b.high - q)
    high = p - q + math.hypot(a.high - p, q - b.low)
    return Change(name=name, now=p, before=q, difference=p - q, low=low, high=high)
