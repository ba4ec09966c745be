"""One object that looks at a run step by step: sums in, scalars and Findings out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.finding import Finding
from burnish.health.hard_rules import hard_findings
from burnish.health.monitors import Alarm, Monitor, MonitorSpec, default_monitors
from burnish.health.offenders import offenders
from burnish.health.reference import Reference
from burnish.health.setback import FORGETTING, Setback
from burnish.health.signals import signals
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums

SHORTEST_BASELINE = 10
LEARNED, NEAR_BEST = 0.05, 0.05
"""Success explains a change where it is so far above its baseline and at most so far below its best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSpec:
    """What is watched and how strictly.

    names: the slices.  baseline_steps: warm-up, whose values are the frozen baseline (at least 10).
    false_alarms_per_1000: expected false alarms in 1,000 healthy steps over all monitors together; each monitor gets
    an equal part of it.  cooldown_steps: silence of a monitor after a Finding.  threshold_scale: factor on every
    threshold, for recalibration on runs known to be healthy.  monitors: None for `default_monitors`.

    `WatchSpec(names=SliceNames(tools=("search",), sources=("shop",)), false_alarms_per_1000=0.5)`
    """

    names: SliceNames = field(default_factory=SliceNames)
    baseline_steps: int = 50
    false_alarms_per_1000: float = 0.5
    cooldown_steps: int = 20
    threshold_scale: float = 1.0
    monitors: tuple[MonitorSpec, ...] | None = None

    def __post_init__(self) -> None:
        if self.baseline_steps < SHORTEST_BASELINE:
            raise ValueError(f"baseline_steps is at least {SHORTEST_BASELINE}, got {self.baseline_steps}")
        if not (self.false_alarms_per_1000 > 0 and self.threshold_scale > 0 and self.cooldown_steps >= 0):
            raise ValueError(
                "false_alarms_per_1000 and threshold_scale are above 0 and cooldown_steps at least 0, got "
                f"{self.false_alarms_per_1000}, {self.threshold_scale}, {self.cooldown_steps}"
            )
        keys = [_key(monitor) for monitor in self.all_monitors]
        if len(set(keys)) != len(keys):
            raise ValueError(f"every monitor needs its own name and direction, got {sorted(keys)}")

    @property
    def all_monitors(self) -> tuple[MonitorSpec, ...]:
        """The monitors, the default ones where none are given."""
        return default_monitors(self.names) if self.monitors is None else self.monitors


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one step showed.  scalars: by name, all `health/...`.

    `Observation(scalars={"health/gini_update": 0.41}, findings=())`
    """

    scalars: dict[str, float]
    findings: tuple[Finding, ...]


class Watch:
    """`Watch(spec).step(...)` once for every step of a run, in order; it draws no random numbers and reads no clock.

    The first `baseline_steps` steps that have trajectories make the reference; each monitor freezes its own baseline
    after as many values, so that a slice which comes up late has a full warm-up too.
    """

    def __init__(self, spec: WatchSpec) -> None:
        self.spec = spec
        self._monitors = self._fresh()
        self._reference = Reference()
        self._success = _SuccessTrack()
        self._setback = Setback()
        self._reference_distance: float | None = None
        self._quiet_until: dict[str, int] = {}

    def step(self, step: int, sums: HealthSums, extra: Mapping[str, float] | None = None) -> Observation:
        """Looks at one step.  extra: scalars from elsewhere by their own names, such as loss and grad_norm.

        Hard rules see every raw number first, then the sequential tests see the scalars.  Raises ValueError for sums of
        other slices than the spec's.
        """
        if sums.names != self.spec.names:
            raise ValueError(f"the sums are of {sums.names}, the watch is for {self.spec.names}")
        extra = extra or {}
        findings = self._hard(step, sums, extra)
        frozen = self._reference.steps >= self.spec.baseline_steps
        scalars = signals(sums, self._reference if frozen else None)
        weight = self._weight(sums) if frozen else 1.0
        explained = self._follow(scalars, weight)
        if not frozen and len(sums.table) > 0:
            self._reference = self._reference.extended(sums, scalars)
        for monitor in self._monitors:
            name = monitor.spec.name
            value = scalars.get(f"health/{name}", extra.get(name))
            alarm = monitor.step(step, value, explained=explained, weight=weight)
            if alarm is not None:
                findings.append(self._finding(step, sums, monitor.spec, alarm))
        scalars["health/monitors"] = float(len(self._monitors))
        scalars["health/monitors_ready"] = float(sum(monitor.ready for monitor in self._monitors))
        return Observation(scalars=scalars, findings=tuple(findings))

    def rebaseline(self) -> None:
        """Starts a new warm-up: for an announced change of task mixture, curriculum or learning rate."""
        self._monitors, self._reference = self._fresh(), Reference()
        self._success, self._setback = _SuccessTrack(), Setback()

    def state(self) -> dict[str, Any]:
        """As JSON; `restore` goes on exactly."""
        return {
            "names": self.spec.names.to_dict(),
            "baseline_steps": self.spec.baseline_steps,
            "monitors": {_key(monitor.spec): monitor.state() for monitor in self._monitors},
            "reference": self._reference.to_dict(),
            "success": self._success.state(),
            "setback": self._setback.state(),
            "reference_distance": self._reference_distance,
            "quiet_until": dict(self._quiet_until),
        }

    @classmethod
    def restore(cls, spec: WatchSpec, state: Mapping[str, Any]) -> Watch:
        """Back from `state`; raises ValueError where it belongs to another spec."""
        watch = cls(spec)
        own = {_key(monitor.spec): monitor for monitor in watch._monitors}
        stored = (SliceNames.from_dict(state["names"]), state["baseline_steps"], set(state["monitors"]))
        if stored != (spec.names, spec.baseline_steps, set(own)):
            raise ValueError(
                "this state belongs to another watch: slices, baseline_steps and monitors must be those it was saved "
                f"with, got {spec.names}, {spec.baseline_steps} and {len(own)} monitors for {stored}"
            )
        for key, monitor in own.items():
            monitor.load(state["monitors"][key])
        watch._reference = Reference.from_dict(state["reference"])
        watch._success = _SuccessTrack.of(state["success"])
        watch._setback = Setback.of(state["setback"])
        watch._reference_distance = state["reference_distance"]
        watch._quiet_until = {name: int(step) for name, step in state["quiet_until"].items()}
        return watch

    def _fresh(self) -> list[Monitor]:
        specs = self.spec.all_monitors
        # the expected number of false alarms of all monitors is the sum of theirs, however dependent they are
        rate = self.spec.false_alarms_per_1000 / 1000 / max(1, len(specs))
        return [
            Monitor(
                spec,
                rate=rate,
                warm_up=self.spec.baseline_steps,
                cooldown=self.spec.cooldown_steps,
                scale=self.spec.threshold_scale,
            )
            for spec in specs
        ]

    def _hard(self, step: int, sums: HealthSums, extra: Mapping[str, float]) -> list[Finding]:
        """Hard rules, each silent for the cooldown after it spoke."""
        found = []
        for finding in hard_findings(step, sums, extra):
            if step >= self._quiet_until.get(finding.monitor, -1):
                self._quiet_until[finding.monitor] = step + self.spec.cooldown_steps
                found.append(finding)
        return found

    def _weight(self, sums: HealthSums) -> float:
        """What a step says against one of the warm-up, at most 1: noise of a mean goes with 1 / sqrt(trajectories), and
        smaller batches must not alarm more often."""
        usual = self._reference.mean("health/trajectories")
        return min(1.0, math.sqrt(len(sums.table) / usual)) if usual > 0 else 1.0

    def _follow(self, scalars: dict[str, float], weight: float) -> bool:
        """Adds the scalars that need the past; gives whether learning explains a change.  weight: of the step."""
        distance = scalars.get("health/all/m2_reference")
        if distance is not None:
            root = math.sqrt(distance)
            if self._reference_distance is not None:
                scalars["health/reference_speed"] = abs(root - self._reference_distance)
            self._reference_distance = root
        success = scalars.get("health/success_same_mixture", scalars.get("health/success_mean"))
        if success is not None:
            scalars["health/success_drawdown"] = self._success.add(success, self.spec.baseline_steps)
            if math.isfinite(self._success.best):
                scalars["health/success_shortfall"] = self._success.best - success
        setback = self._setback.add(scalars, weight)
        if setback is not None:
            scalars["health/setback"] = setback
        return self._success.explains

    def _finding(self, step: int, sums: HealthSums, spec: MonitorSpec, alarm: Alarm) -> Finding:
        baseline, name = alarm.baseline, spec.name
        ids = offenders(sums.table, spec.rank, spec.slice_name)
        test = "CUSUM" if spec.test == "cusum" else "e-detector"
        return Finding(
            monitor=name,
            step=step,
            onset_step=alarm.onset_step,
            kind=spec.kind,
            slice_name=spec.slice_name,
            summary=(
                f"{name} is {alarm.value:.4g}, {'above' if spec.rising else 'below'} its usual {alarm.usual:.4g} "
                f"({test} {alarm.statistic:.1f} over {alarm.threshold:.1f}) since about step {alarm.onset_step}"
            ),
            evidence={
                "value": alarm.value,
                "usual": alarm.usual,
                "rising": spec.rising,
                "test": spec.test,
                "statistic": alarm.statistic,
                "threshold": alarm.threshold,
                "transform": spec.transform,
                "allowance": spec.allowance,
                "baseline_scale": baseline.scale,
                "baseline_autocorrelation": baseline.autocorrelation,
                "baseline_values": baseline.n,
                "monitors": len(self._monitors),
                "group_ids": _groups(sums, ids),
            },
            trajectory_ids=ids,
            false_alarms_per_1000=self.spec.false_alarms_per_1000 / len(self._monitors),
        )


class _SuccessTrack:
    """The running mean of success, its baseline and its best."""

    def __init__(self) -> None:
        self._n, self._total, self._baseline = 0, 0.0, math.nan
        self._mean = self._best = math.nan

    def add(self, success: float, baseline_steps: int) -> float:
        """Takes one step's success; gives how far the running mean is below its best."""
        self._n += 1
        self._mean = success if self._n == 1 else self._mean + FORGETTING * (success - self._mean)
        if self._n <= baseline_steps:
            self._total += success
            self._baseline = self._total / self._n
        # a mean of a few steps is mostly noise, and would be a best that is never reached again
        if self._n >= 1 / FORGETTING:
            self._best = self._mean if math.isnan(self._best) else max(self._best, self._mean)
        return max(0.0, self._best - self._mean) if not math.isnan(self._best) else 0.0

    @property
    def best(self) -> float:
        """The highest running mean so far, NaN in the first steps."""
        return self._best

    @property
    def explains(self) -> bool:
        """Whether success is above its baseline and near its best (never where nobody judges)."""
        return self._mean >= self._baseline + LEARNED and self._mean >= self._best - NEAR_BEST

    def state(self) -> list[float | None]:
        numbers = [float(self._n), self._total, self._baseline, self._mean, self._best]
        return [None if math.isnan(number) else number for number in numbers]

    @classmethod
    def of(cls, state: list[float | None]) -> _SuccessTrack:
        track = cls()
        n, *rest = (math.nan if number is None else float(number) for number in state)
        track._n = int(n)
        track._total, track._baseline, track._mean, track._best = rest
        return track


def _key(spec: MonitorSpec) -> str:
    """Name and direction: one signal may be watched both ways."""
    return f"{spec.name} {'up' if spec.rising else 'down'}"


def _groups(sums: HealthSums, ids: tuple[str, ...]) -> list[str]:
    group = dict(zip(sums.table.texts["id"], sums.table.texts["group_id"], strict=True))
    return list(dict.fromkeys(group[name] for name in ids))
