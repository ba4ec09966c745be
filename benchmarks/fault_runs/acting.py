"""Acting against watching: the same faults with the ladder on, against the healthy twins, paired by seed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from burnish.core.finding import Act
from burnish.stats.intervals import Estimate, mean_interval
from burnish.store.reader import RunReader
from fault_runs.cache import Replay
from fault_runs.jobs import Job
from fault_runs.scoring import pairs_of

LEAST = -0.05
"""Acting may lose at most this much success against the healthy twin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Acting:
    """One kind.  acting: success at the end minus the twin's over seeds; watching: the mean of the same without the
    ladder.  actions: carried out, by name.  time_ratio: seconds of a step with the ladder over without it."""

    kind: str
    acting: Estimate
    watching: float | None
    actions: Mapping[str, int] = field(default_factory=dict)
    time_ratio: float = 1.0

    @property
    def decides(self) -> bool:
        """Whether the interval lies on one side of the bar."""
        return not self.acting.low < LEAST < self.acting.high


def compare_acting(replays: Sequence[Replay], jobs: Sequence[Job]) -> list[Acting]:
    """By kind, the healthy runs ("") first, and over all kinds (named "all") last."""
    acted, watched = pairs_of(replays, "act"), pairs_of(replays, "fault")
    actions: dict[str, Counter[str]] = {}
    for job in jobs:
        if job.spec.arm == "act" and job.done:
            actions.setdefault(job.spec.kind, Counter()).update(_actions(job.target.with_suffix("")))
    found = []
    for kind in sorted({pair.changed.spec.kind for pair in acted}):
        mine = [pair for pair in acted if pair.changed.spec.kind == kind]
        same = [pair.gap for pair in watched if pair.changed.spec.kind == kind]
        ratios = [
            _step_s(pair.changed, pair.changed.spec.onset) / _step_s(pair.twin, pair.changed.spec.onset)
            for pair in mine
        ]
        found.append(
            Acting(
                kind=kind,
                acting=mean_interval([pair.gap for pair in mine]),
                watching=statistics.fmean(same) if same else None,
                actions=actions.get(kind, Counter()),
                time_ratio=statistics.median(ratios),
            )
        )
    by_seed: dict[int, list[float]] = {}
    for pair in acted:
        if pair.changed.spec.kind:
            by_seed.setdefault(pair.changed.spec.seed, []).append(pair.gap)
    if by_seed:
        means = [statistics.fmean(gaps) for gaps in by_seed.values()]
        found.append(Acting(kind="all", acting=mean_interval(means), watching=None))
    return found


def _step_s(replay: Replay, onset: int) -> float:
    times = [item.stored["time/step_s"] for item in replay.steps if item.step > onset and "time/step_s" in item.stored]
    return statistics.median(times) if times else float("nan")


def _actions(folder: Path) -> Counter[str]:
    """Decisions that were carried out, by act.  Those of steps that a rollback undid are gone, with the decision to go
    back among them; the rollback itself is an event of the run."""
    if not folder.is_dir():
        return Counter()
    reader = RunReader(folder)
    acted = [str(event.data["act"]) for event in reader.events("decision") if not event.data.get("dry_run", True)]
    return Counter([*acted, *(str(Act.ROLLBACK) for _ in reader.events("rollback"))])
