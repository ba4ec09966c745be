"""Health of stored token streams, of Burnish or of any other trainer: watched step by step, as a run would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.health.files import BadRow, StepStreams, read_streams
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch, WatchSpec
from burnish.reports.diagnosis import findings_table, why_json, why_table
from burnish.reports.health import PREFIX, finding_json
from burnish.reports.series import Points, number
from burnish.reports.tables import plain
from burnish.reports.why import Diagnosis, Symptoms, Watched, diagnose
from burnish.store.layout import RunLayout

NAMING_STEPS = 5
"""Tools, sources and skills are named by the first steps; later ones fall under `other`."""
WINDOW = 10
MAX_BAD = 8
FIGURES = ("tokens", "log_ratio_behaviour_p50", "log_ratio_behaviour_p95", "log_ratio_behaviour_p99", "ess_token_raw")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offline:
    """What was seen in stored streams.

    scalars: (step, value) by name.  slices: figures by slice, medians of the newest ten steps.  early: the same of the
    first ten.  trajectories: rows that could be read.

    `Offline(steps=300, trajectories=9600, bad=(), findings=(), scalars={}, slices={}, early={}, diagnosis=...)`
    """

    steps: int
    trajectories: int
    bad: tuple[BadRow, ...]
    findings: tuple[Finding, ...]
    scalars: Mapping[str, Points]
    slices: Mapping[str, Mapping[str, float]]
    early: Mapping[str, Mapping[str, float]]
    diagnosis: Diagnosis


def streams_of(run_dir: Path) -> Path:
    """The folder of a run's stored token streams.  Raises ConfigError where it kept none."""
    folder = RunLayout(run_dir).streams
    if not folder.is_dir():
        raise ConfigError(
            f"{run_dir.name} kept no token streams (recipe key health.keep_streams); what was watched while it ran is "
            f"printed by: burnish why {run_dir.name}"
        )
    return folder


def watch_streams(
    path: Path, *, baseline_steps: int | None = None, false_alarms_per_1000: float | None = None
) -> Offline:
    """Watch a file or folder of token streams; None takes what `WatchSpec` has.

    Raises ConfigError where no row can be used; rows that cannot are left out and listed in `bad`.
    """
    steps = iter(read_streams(path))
    first = list(islice(steps, NAMING_STEPS))
    names = names_of(first)
    plain = WatchSpec(names=names)
    try:
        spec = replace(
            plain,
            baseline_steps=plain.baseline_steps if baseline_steps is None else baseline_steps,
            false_alarms_per_1000=plain.false_alarms_per_1000
            if false_alarms_per_1000 is None
            else false_alarms_per_1000,
        )
    except ValueError as error:
        raise ConfigError(f"the streams cannot be watched so: {error}") from error
    watch, scalars = Watch(spec), dict[str, list[tuple[int, float]]]()
    findings: list[Finding] = []
    bad: list[BadRow] = []
    seen = trajectories = 0
    for part in chain(first, steps):
        bad += part.bad
        if not part.streams:
            continue
        seen, trajectories = seen + 1, trajectories + len(part.streams)
        observation = watch.step(part.step, HealthSums.of(part.streams, names))
        findings += observation.findings
        for name, value in observation.scalars.items():
            scalars.setdefault(name, []).append((part.step, value))
    if not seen:
        why = "; ".join(bad_texts(bad)) or "it holds no rows"
        raise ConfigError(f"{path} has no row that can be used: {why}; see docs/health.md for the columns")
    monitors = scalars.get(f"{PREFIX}monitors", ())
    watched = Watched(
        steps=max(0, seen - spec.baseline_steps),
        baseline_steps=min(seen, spec.baseline_steps),
        monitors=int(monitors[-1][1]) if monitors else None,
        false_alarms_per_1000=spec.false_alarms_per_1000,
    )
    return Offline(
        steps=seen,
        trajectories=trajectories,
        bad=tuple(bad),
        findings=tuple(findings),
        scalars=scalars,
        slices=slice_figures(scalars, newest=True),
        early=slice_figures(scalars, newest=False),
        diagnosis=diagnose(Symptoms(findings=findings, scalars=scalars, watched=watched)),
    )


def names_of(steps: Iterable[StepStreams]) -> SliceNames:
    """Tools, sources and skills that occur, each sorted."""
    streams = [stream for step in steps for stream in step.streams]
    tools = {span.tool for stream in streams for span in stream.spans}
    sources, skills = {stream.source for stream in streams}, {stream.skill for stream in streams}
    known = (tuple(sorted(found - {"", "other"})) for found in (tools, sources, skills))
    return SliceNames(**dict(zip(("tools", "sources", "skills"), known, strict=True)))


def slice_figures(scalars: Mapping[str, Points], *, newest: bool) -> dict[str, dict[str, float]]:
    """Medians of the newest or first ten values of `FIGURES`, by slice; slices in the order of their first scalar.

    >>> slice_figures({"health/text/tokens": [(1, 10.0), (2, 30.0), (3, 20.0)]}, newest=True)
    {'text': {'tokens': 20.0}}
    """
    found: dict[str, dict[str, float]] = {}
    for name, points in scalars.items():
        slice_name, _, figure = name.removeprefix(PREFIX).rpartition("/")
        if slice_name and figure in FIGURES and points:
            shown = points[-WINDOW:] if newest else points[:WINDOW]
            found.setdefault(slice_name, {})[figure] = median(value for _, value in shown)
    return found


def bad_texts(bad: Sequence[BadRow]) -> list[str]:
    """Where and why rows could not be read, the first few of them."""
    shown = [f"{row.path.name}:{row.line}: {row.why}" for row in bad[:MAX_BAD]]
    return [*shown, f"and {len(bad) - MAX_BAD} more"] if len(bad) > MAX_BAD else shown


def health_table(name: str, seen: Offline) -> RenderableType:
    """Slices, findings and the diagnosis for the terminal."""
    rows = f"{seen.trajectories:,} trajectories in {seen.steps:,} steps of {name}"
    parts: list[RenderableType] = [plain(rows, "bold"), _slices(seen)]
    if seen.bad:
        parts.append(plain(f"Rows that could not be read and are left out: {len(seen.bad):,}", "yellow"))
        parts += [plain(f"  {text}") for text in bad_texts(seen.bad)]
    if seen.findings:
        parts.append(findings_table(seen.findings, "Findings"))
    return Group(*parts, "", why_table(name, seen.diagnosis))


def _slices(seen: Offline) -> RenderableType:
    table = Table(
        title=plain("Ratio of learner to sampler, by slice", "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("slice", no_wrap=True, overflow="ellipsis")
    for title in ("tokens\na step", "p50", "p95", "p99", "p95 at\nthe start", "ESS raw"):
        table.add_column(title, justify="right", no_wrap=True)
    known = {name: figures for name, figures in seen.slices.items() if figures.get("tokens", 1.0) > 0}
    for slice_name, figures in known.items():
        early = seen.early.get(slice_name, {})
        tokens, p50, p95, p99, ess = (figures.get(key) for key in FIGURES)
        start = early.get("log_ratio_behaviour_p95")
        share = "-" if ess is None else f"{ess:.0%}"
        table.add_row(
            plain(slice_name), "-" if tokens is None else f"{tokens:,.0f}", *map(_nats, (p50, p95, p99, start)), share
        )
    caption = plain(
        f"Absolute log-ratios in nats, raw; medians of the newest {WINDOW} steps that have the slice.", "dim"
    )
    return Group(table, caption)


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def health_json(name: str, seen: Offline) -> dict[str, Any]:
    """The same as JSON-able values."""
    return {
        "steps": seen.steps,
        "trajectories": seen.trajectories,
        "bad_rows": [{"file": str(row.path), "line": row.line, "why": row.why} for row in seen.bad],
        "slices": {
            key: {name: number(value) for name, value in figures.items()} for key, figures in seen.slices.items()
        },
        "findings": [finding_json(one) for one in seen.findings],
        "diagnosis": why_json(name, seen.diagnosis),
    }
