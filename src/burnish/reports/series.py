"""Scalars of a run as columns for charts, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from burnish.stats.intervals import mean_interval
from burnish.store.reader import RunReader
from burnish.store.rows import PHASES

MAX_POINTS = 4000
"""Charts of longer phases show every k-th step."""

Points = Sequence[tuple[int, float]]


def number(value: float | None) -> float | None:
    """A number that JSON can hold, of 6 significant digits; None for NaN and infinities.

    >>> number(0.123456789), number(float("nan"))
    (0.123457, None)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def columns(scalars: Mapping[str, Points]) -> dict[str, Any]:
    """All scalars of a phase over one axis: `{"steps": [1, 2], "stride": 1, "values": {"loss": [0.5, None]}}`.

    None where a scalar was not written at a step or is not finite.  stride: every how manieth step is shown.
    """
    steps = sorted({step for points in scalars.values() for step, _ in points})
    stride = max(1, math.ceil(len(steps) / MAX_POINTS))
    # Counted from the end, so that the newest step is always there.
    shown = steps[(len(steps) - 1) % stride :: stride] if steps else []
    places = {step: index for index, step in enumerate(shown)}
    values: dict[str, list[float | None]] = {}
    for name, points in scalars.items():
        column: list[float | None] = [None] * len(shown)
        for step, value in points:
            if step in places:
                column[places[step]] = number(value)
        values[name] = column
    return {"steps": shown, "stride": stride, "values": values}


def phase_seconds(scalars: Mapping[str, Mapping[str, Points]]) -> dict[str, float]:
    """Wall seconds of each phase, from the scalars of all phases; of the steps alone where no more was stored."""
    steps = {
        "sft": math.fsum(_sft_weighted(scalars.get("sft", {}), "time/step_s")),
        "rl": _total(scalars.get("rl", {}), "time/step_s"),
        "eval": _total(scalars.get("eval", {}), "time/rollout_s"),
    }
    return {phase: _total(scalars.get(phase, {}), "time/phase_s") or seconds for phase, seconds in steps.items()}


def phase_tokens(scalars: Mapping[str, Mapping[str, Points]]) -> dict[str, float]:
    """Tokens behind the rate of each phase: trained ones of SFT, sampled ones of RL."""
    return {
        "sft": math.fsum(_sft_weighted(scalars.get("sft", {}), "tokens")),
        "rl": _total(scalars.get("rl", {}), "tokens/sampled"),
    }


def phase_rates(scalars: Mapping[str, Mapping[str, Points]]) -> dict[str, float]:
    """Tokens per second: trained ones over the time of SFT's steps, sampled ones over the rollout time of RL.

    Phases that have none are left out.
    """
    tokens = phase_tokens(scalars)
    times = {
        "sft": math.fsum(_sft_weighted(scalars.get("sft", {}), "time/step_s")),
        "rl": _total(scalars.get("rl", {}), "time/rollout_s"),
    }
    return {phase: tokens[phase] / times[phase] for phase in tokens if tokens[phase] > 0 and times[phase] > 0}


def _total(scalars: Mapping[str, Points], name: str) -> float:
    return math.fsum(value for _, value in scalars.get(name, ()) if math.isfinite(value))


def _sft_weighted(scalars: Mapping[str, Points], name: str) -> Iterable[float]:
    """SFT stores means over the optimizer steps since the last stored step: times how many those were."""
    before = 0
    for step, value in scalars.get(name, ()):
        if math.isfinite(value):
            yield value * (step - before)
        before = step


class Readings:
    """What charts need from the segments.  Steps are immutable, so each is read once; one object serves a run that
    goes on.

    intervals: (low, high) of the mean reward by RL step: a 95% t interval over the means of its groups.  Members of a
    group share a task, so groups and not episodes are the independent observations.  titles: what each step of phase
    "eval" measured, from the ids of its episodes ("eval/LABEL/SPLIT/MODE/TASK/SAMPLE").
    """

    def __init__(self, reader: RunReader) -> None:
        self._reader = reader
        self._attempt = -1
        self.intervals: dict[int, tuple[float | None, float | None]] = {}
        self.titles: dict[int, str] = {}

    def update(self, attempt: int) -> None:
        """Read the steps that are new; all of them after a resume, which may have replaced some.

        Raises StoreError where segments cannot be read.
        """
        if attempt != self._attempt:
            self._attempt, self.intervals, self.titles = attempt, {}, {}
        rows = self._reader.query(
            "SELECT phase, step, avg(reward) AS mean, min(trajectory_id) AS id FROM trajectories "
            "WHERE (phase = 'rl' AND step > ? AND reward IS NOT NULL) OR (phase = 'eval' AND step > ?) "
            "GROUP BY phase, step, group_id ORDER BY phase, step, group_id",
            [max(self.intervals, default=-1), max(self.titles, default=-1)],
        ).to_pylist()
        groups: dict[int, list[float]] = {}
        for row in rows:
            if row["phase"] == "eval":
                self.titles.setdefault(row["step"], " ".join(row["id"].split("/")[1:-2]))
            elif math.isfinite(row["mean"]):
                groups.setdefault(row["step"], []).append(row["mean"])
        for step, means in groups.items():
            interval = mean_interval(means)
            self.intervals[step] = (number(interval.low), number(interval.high))


def all_scalars(reader: RunReader) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every scalar by phase and name."""
    return {phase: reader.all_scalars(phase) for phase in PHASES}
