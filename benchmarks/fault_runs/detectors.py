"""What is compared: Burnish's own watch, and the monitors that others use, each with one number to calibrate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burnish.health.slices import SliceNames
from burnish.health.watch import Watch, WatchSpec
from fault_runs.cache import Replay, StepData
from fault_runs.catalogue import ANNOUNCED

CUSUM_SLACK, CUSUM_MOST = 0.5, 4.0
"""k and the largest z that counts, as in the sheet's formula S <- max(0, S + min(z, 4) - k)."""
NOT_WATCHED = ("time/", "rate/", "pool/", "health/", "control/")
"""Stored scalars that the loop does not hand to its watch: the machine's, and the watch's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One alarm.  about: monitor, kind and slice in words, for attribution.  `Alarm(step=130, about="kl")`"""

    step: int
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The same for all: steps of the frozen baseline, before which nobody may alarm, and silence after an alarm."""

    baseline_steps: int = 50
    cooldown_steps: int = 20


class Detector(ABC):
    """Looks at a replay from its first step.  grid: values of the one number, from eager to silent."""

    name: str
    grid: tuple[float, ...]
    terms: Terms = Terms()

    @abstractmethod
    def alarms(self, replay: Replay, threshold: float) -> list[Alarm]:
        """Every alarm; an announced change, right after the onset, starts a new baseline."""


def announced_at(replay: Replay) -> int | None:
    """The step after which the run was told to differ."""
    return replay.spec.onset if replay.spec.kind in ANNOUNCED else None


def monitored(replay: Replay, terms: Terms) -> list[int]:
    """Steps at which an alarm can come: after the baseline, and after a new one where a change was announced."""
    told, wait = announced_at(replay), terms.baseline_steps
    first = replay.steps[0].step if replay.steps else 0
    steps = [item.step for item in replay.steps if item.step >= first + wait]
    return [step for step in steps if told is None or not told < step <= told + wait]


class Cusum(Detector):
    """CUSUM of one plain scalar against its frozen early values; sign -1 where a fall is bad."""

    grid = tuple(float(h) for h in np.geomspace(4.0, 4000.0, 61))

    def __init__(self, name: str, key: str, sign: float = 1.0) -> None:
        self.name, self._key, self._sign = name, key, sign

    def alarms(self, replay: Replay, threshold: float) -> list[Alarm]:
        found, told = [], announced_at(replay)
        parts = [list(replay.steps)]
        if told is not None:
            parts = [[s for s in replay.steps if s.step <= told], [s for s in replay.steps if s.step > told]]
        for part in parts:
            found += self._part(part, threshold)
        return found

    def _part(self, steps: Sequence[StepData], threshold: float) -> list[Alarm]:
        values = self._sign * np.array([item.plain[self._key] for item in steps])
        wait, cooldown = self.terms.baseline_steps, self.terms.cooldown_steps
        early = values[:wait]
        known = early[np.isfinite(early)]
        if len(early) < wait or len(known) < 2:
            return []
        spread = max(float(known.std(ddof=1)), 1e-9 + 1e-6 * abs(float(known.mean())))
        # A step of which nothing is known says nothing: it leaves the sum as it is.
        z = np.nan_to_num((values - known.mean()) / spread, nan=CUSUM_SLACK, posinf=CUSUM_MOST)
        found, total, silent_until = [], 0.0, -1
        for place in range(wait, len(steps)):
            total = max(0.0, total + min(float(z[place]), CUSUM_MOST) - CUSUM_SLACK)
            if total > threshold and steps[place].step > silent_until:
                found.append(Alarm(step=steps[place].step, about=self._key))
                total, silent_until = 0.0, steps[place].step + cooldown
        return found


class Level(Detector):
    """A fixed threshold on one plain scalar: above it where sign is 1, below it where sign is -1."""

    def __init__(self, name: str, key: str, sign: float, grid: NDArray[np.float64]) -> None:
        self.name, self._key, self._sign = name, key, sign
        self.grid = tuple(float(value) for value in grid)

    def alarms(self, replay: Replay, threshold: float) -> list[Alarm]:
        able = set(monitored(replay, self.terms))
        found: list[Alarm] = []
        for item in replay.steps:
            beyond = self._sign * item.plain[self._key] > self._sign * threshold
            quiet = found and item.step <= found[-1].step + self.terms.cooldown_steps
            if beyond and item.step in able and not quiet:
                found.append(Alarm(step=item.step, about=self._key))
        return found


class BurnishWatch(Detector):
    """`burnish.health.Watch` on the sums of every step; its thresholds are scaled as a whole.

    Never lowered: scale 1 is what the stated rate is for, and a few quiet runs are no ground for more eager ones.
    """

    name = "burnish"
    grid = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)

    def alarms(self, replay: Replay, threshold: float) -> list[Alarm]:
        names = SliceNames.from_dict(replay.names)
        spec = WatchSpec(
            names=names,
            baseline_steps=self.terms.baseline_steps,
            cooldown_steps=self.terms.cooldown_steps,
            threshold_scale=threshold,
        )
        watch, told, found = Watch(spec), announced_at(replay), []
        for item in replay.steps:
            extra = {key: value for key, value in item.stored.items() if not key.startswith(NOT_WATCHED)}
            seen = watch.step(item.step, item.sums(), extra)
            found += [
                Alarm(step=item.step, about=f"{finding.monitor} {finding.kind} {finding.slice_name}")
                for finding in seen.findings
                if finding.severity == "alarm"
            ]
            if item.step == told:
                watch.rebaseline()
        return found


def all_detectors(terms: Terms) -> list[Detector]:
    """Burnish first, then what it is measured against."""
    detectors: list[Detector] = [
        BurnishWatch(),
        Cusum("CUSUM of KL", "kl_k3"),
        Cusum("CUSUM of KL (k1)", "kl"),
        Level("KL above", "kl_k3", 1.0, np.geomspace(1e-4, 10.0, 101)),
        Level("entropy below", "entropy", -1.0, np.geomspace(2.0, 1e-4, 101)),
        Level("clamped ESS, Jan", "ess_january", -1.0, 1 - np.geomspace(1e-4, 0.36, 101)),
        Level("clamped ESS, Aug", "ess_august", -1.0, 1 - np.geomspace(1e-4, 0.99, 101)),
    ]
    for detector in detectors:
        detector.terms = terms
    return detectors
