"""What a constraint is worth: how often it fires in passing and in failed runs, and whether it may vote.

A hand-written constraint that fires in passing runs keeps a low lift; a generated one loses its vote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from burnish.diagnosis.constraint import Log, Verdict
from burnish.stats.intervals import Estimate, wilson

MOST_PASSING = 0.05
"""Share of passing runs in which a generated constraint may fire and still vote."""
VACUOUS_AFTER = 50
"""Checks without a single failure after which a constraint is called vacuous."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Figures of one constraint.

    `Worth(constraint="repeated", passing=1, passing_runs=73, failed=4, failed_runs=29, lift=1.35, vacuous=False)`
    passing, failed: runs in which it fired.  lift: log ratio of the smoothed rates.
    """

    constraint: str
    passing: int
    passing_runs: int
    failed: int
    failed_runs: int
    lift: float
    vacuous: bool

    @property
    def may_vote(self) -> bool:
        """Whether a generated constraint counts: not vacuous, seldom in passing runs."""
        rare = self.passing <= MOST_PASSING * self.passing_runs
        return rare and not self.vacuous and self.passing_runs > 0

    def passing_rate(self) -> Estimate:
        """With a Wilson interval; raises ValueError where there are no passing runs."""
        return wilson(self.passing, self.passing_runs)


def worths(passing: Iterable[Log], failed: Iterable[Log]) -> dict[str, Worth]:
    """Figures of every constraint that was checked; outcomes alone are used, no labels."""
    fired: tuple[dict[str, int], dict[str, int]] = ({}, {})
    runs = [0, 0]
    checks: dict[str, list[int]] = {}
    for side, logs in enumerate((passing, failed)):
        for log in logs:
            runs[side] += 1
            for name in {violation.constraint for violation in log.violations}:
                fired[side][name] = fired[side].get(name, 0) + 1
            for name, counts in log.verdicts.items():
                total = checks.setdefault(name, [0, 0, 0])
                for number, count in enumerate(counts):
                    total[number] += count
    found = {}
    for name, counts in checks.items():
        a, b = fired[0].get(name, 0), fired[1].get(name, 0)
        found[name] = Worth(
            constraint=name,
            passing=a,
            passing_runs=runs[0],
            failed=b,
            failed_runs=runs[1],
            lift=math.log(((b + 0.5) / (runs[1] + 1)) / ((a + 0.5) / (runs[0] + 1))),
            vacuous=counts[1] == 0 and sum(counts) >= VACUOUS_AFTER,
        )
    return found


def lifts(found: Mapping[str, Worth]) -> dict[str, float]:
    """Lift by constraint; 0 where it never fired, since the ratio then only tells how many runs there were."""
    return {name: worth.lift if worth.passing + worth.failed else 0.0 for name, worth in found.items()}


def unknown_share(log: Log) -> float:
    """Share of checks that could not decide.

    >>> unknown_share(Log(verdicts={"a": [1, 0, 1]}))
    0.5
    """
    total = sum(sum(counts) for counts in log.verdicts.values())
    at = (Verdict.PASS, Verdict.FAIL, Verdict.UNKNOWN).index(Verdict.UNKNOWN)
    return sum(counts[at] for counts in log.verdicts.values()) / total if total else 0.0
