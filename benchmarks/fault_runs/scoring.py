"""From replays and alarms to figures: detection, false alarms, lead, attribution."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from scipy import stats

from burnish.stats.intervals import Estimate, wilson
from fault_runs.cache import Replay
from fault_runs.catalogue import FAULTS
from fault_runs.detectors import Alarm, Detector, Terms, monitored

DAMAGE = 0.10
"""Held-out success this far below the twin is damage."""
AT_END = 3
"""Evaluations that the success at the end is the mean of."""
FALSE_ALARMS_PER_1000 = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A changed run, begun with its twin's steps, and the twin."""

    changed: Replay
    twin: Replay

    @property
    def gap(self) -> float:
        """Success at the end, changed minus twin, over the same evaluations."""
        shared = _shared(self)
        late = shared[-AT_END:]
        return statistics.fmean(a - b for _, a, b in late) if late else 0.0

    @property
    def damaged_at(self) -> int | None:
        """The first step from which success lies clearly below the twin: by `DAMAGE` on average over that evaluation
        and the next.  None where it never does."""
        shared = _shared(self)
        for (step, a, b), (_, c, d) in itertools.pairwise(shared):
            if (a - b + c - d) / 2 <= -DAMAGE:
                return step
        return None


def _shared(pair: Pair) -> list[tuple[int, float, float]]:
    """(step, changed, twin) of the evaluations after the onset that both have."""
    onset = pair.changed.spec.onset
    twin = {item.step: item.success for item in pair.twin.evaluations}
    ours = {item.step: item.success for item in pair.changed.evaluations if item.step > onset}
    return [(step, ours[step], twin[step]) for step in sorted(ours) if step in twin]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caught:
    """One fault run under one detector.  alarm, damage: steps, None where there is none.  lead: damage minus alarm,
    each put at the end of the run where it did not happen.  right: the first alarms name the fault."""

    kind: str
    seed: int
    alarm: int | None
    damage: int | None
    lead: float
    right: bool


def caught(pair: Pair, alarms: Sequence[Alarm]) -> Caught:
    """What the alarms after the onset are worth."""
    spec, last = pair.changed.spec, pair.changed.last
    after = [alarm for alarm in alarms if alarm.step > spec.onset]
    first = after[0].step if after else None
    damage = pair.damaged_at
    names = FAULTS[spec.kind].names if spec.kind in FAULTS else ()
    said = [alarm.about for alarm in after if alarm.step == first]
    return Caught(
        kind=spec.kind,
        seed=spec.seed,
        alarm=first,
        damage=damage,
        lead=float((last if damage is None else damage) - (last + 1 if first is None else first)),
        right=any(name in about for name in names for about in said),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Alarms on healthy steps.  `Quiet(alarms=2, steps=6200)`"""

    alarms: int
    steps: int

    @property
    def per_1000(self) -> float:
        return 1000 * self.alarms / self.steps if self.steps else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Exact 95% Poisson interval of alarms per 1,000 steps (Garwood 1936).

        >>> Quiet(alarms=0, steps=1000).interval[1] > 3.68
        True
        """
        low = stats.chi2.ppf(0.025, 2 * self.alarms) / 2 if self.alarms else 0.0
        high = stats.chi2.ppf(0.975, 2 * (self.alarms + 1)) / 2
        scale = 1000 / max(1, self.steps)
        return float(low) * scale, float(high) * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseAlarm:
    """An alarm in a healthy run.  `FalseAlarm(kind="mix_shift", seed=0, step=131, about="grad_norm")`"""

    kind: str
    seed: int
    step: int
    about: str


def own_from(replay: Replay) -> int:
    """The last step of a healthy run that it shares with its twin, where such steps are counted."""
    return replay.spec.onset if replay.spec.arm == "control" else 0


def own_steps(replay: Replay, terms: Terms) -> list[int]:
    """Monitored steps of a healthy run that no other run has."""
    return [step for step in monitored(replay, terms) if step > own_from(replay)]


def false_alarms(replays: Sequence[Replay], alarms: Sequence[Sequence[Alarm]]) -> list[FalseAlarm]:
    """Every alarm in healthy replays, those in shared steps once."""
    return [
        FalseAlarm(kind=replay.spec.kind, seed=replay.spec.seed, step=alarm.step, about=alarm.about)
        for replay, found in zip(replays, alarms, strict=True)
        for alarm in found
        if alarm.step > own_from(replay)
    ]


def quiet(replays: Sequence[Replay], alarms: Sequence[Sequence[Alarm]], terms: Terms) -> Quiet:
    """Counts alarms and monitored steps of healthy replays."""
    steps = sum(len(own_steps(replay, terms)) for replay in replays)
    return Quiet(alarms=len(false_alarms(replays, alarms)), steps=steps)


def gain_since_onset(replay: Replay) -> float | None:
    """Success at the end minus success at the onset (for a twin: in its middle); None without two evaluations."""
    onset = replay.spec.onset or replay.last // 2
    before = [item.success for item in replay.evaluations if item.step <= onset]
    after = [item.success for item in replay.evaluations if item.step > onset]
    return after[-1] - before[-1] if before and after else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One detector on one half."""

    name: str
    threshold: float
    quiet: Quiet
    caught: tuple[Caught, ...]
    false_alarms: tuple[FalseAlarm, ...] = ()

    @property
    def detected(self) -> Estimate | None:
        """Share of the fault runs with an alarm, with its Wilson interval."""
        hits = sum(item.alarm is not None for item in self.caught)
        return wilson(hits, len(self.caught)) if self.caught else None

    @property
    def lead(self) -> float | None:
        """Median lead in steps."""
        return statistics.median(item.lead for item in self.caught) if self.caught else None

    @property
    def attributed(self) -> float | None:
        """Share of the detected runs whose first alarms name the fault."""
        hits = [item.right for item in self.caught if item.alarm is not None]
        return statistics.fmean(hits) if hits else None


Task = tuple[Detector, Replay, float]


def _run(task: Task) -> list[Alarm]:
    detector, replay, threshold = task
    return detector.alarms(replay, threshold)


def run_all(tasks: Sequence[Task], workers: int) -> list[list[Alarm]]:
    """Every detector on its replay, over processes where there is much to do."""
    if workers <= 1 or len(tasks) < 8:
        return [_run(task) for task in tasks]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(_run, tasks, chunksize=max(1, len(tasks) // (8 * workers))))


def calibrate(detector: Detector, healthy: Sequence[Replay], workers: int) -> float:
    """The most eager threshold of the grid from which on the healthy tuning runs give at most
    `FALSE_ALARMS_PER_1000`, found by halving: a stricter threshold never alarms more."""
    low, high = 0, len(detector.grid) - 1
    while low < high:
        middle = (low + high) // 2
        found = run_all([(detector, replay, detector.grid[middle]) for replay in healthy], workers)
        if quiet(healthy, found, detector.terms).per_1000 <= FALSE_ALARMS_PER_1000:
            high = middle
        else:
            low = middle + 1
    return detector.grid[low]


def score(
    detector: Detector, threshold: float, pairs: Sequence[Pair], healthy: Sequence[Replay], workers: int
) -> Score:
    """One detector at its calibrated threshold."""
    replays = [*(pair.changed for pair in pairs), *healthy]
    found = run_all([(detector, replay, threshold) for replay in replays], workers)
    hits = tuple(caught(pair, alarms) for pair, alarms in zip(pairs, found, strict=False))
    rest = found[len(pairs) :]
    return Score(
        name=detector.name,
        threshold=threshold,
        quiet=quiet(healthy, rest, detector.terms),
        caught=hits,
        false_alarms=tuple(false_alarms(healthy, rest)),
    )


def pairs_of(replays: Sequence[Replay], arm: str) -> list[Pair]:
    """Changed runs of an arm with the twins of their seeds, each begun with the twin's steps."""
    twins: Mapping[int, Replay] = {r.spec.seed: r for r in replays if r.spec.arm == "twin"}
    return [
        Pair(changed=r.after(twins[r.spec.seed]), twin=twins[r.spec.seed])
        for r in replays
        if r.spec.arm == arm and r.spec.seed in twins
    ]


def healthy_of(replays: Sequence[Replay]) -> list[Replay]:
    """Twins, and controls begun with their twins' steps.

    Of two controls that differ in their last step alone the longer one: it goes through the same steps and on.
    """
    longest: dict[tuple[str, int], Replay] = {}
    for pair in pairs_of(replays, "control"):
        key = (pair.changed.spec.kind, pair.changed.spec.seed)
        if key not in longest or pair.changed.last > longest[key].last:
            longest[key] = pair.changed
    return [replay for replay in replays if replay.spec.arm == "twin"] + list(longest.values())
