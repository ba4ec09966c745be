"""A diagnosis for the terminal, at most 80 columns wide, and as JSON.  Returned, not printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from burnish.core.errors import StoreError
from burnish.core.finding import Decision, Finding
from burnish.reports.findings import read_decisions
from burnish.reports.health import KNOBS, finding_json, hypothesis_json, symptoms_of, values_text, when_text
from burnish.reports.series import number
from burnish.reports.tables import plain
from burnish.reports.why import Diagnosis, Hypothesis, diagnose
from burnish.store.reader import RunReader

SHOWN = 3
MAX_DECISIONS = 6
_STYLES = {"certain": "bold red", "strong": "bold red", "likely": "yellow", "possible": "dim"}


def diagnose_run(run_dir: Path | str) -> tuple[Diagnosis, tuple[Decision, ...]]:
    """What a stored run suffers from, and what control decided.  Raises StoreError where it cannot be read."""
    reader = RunReader(run_dir)
    try:
        manifest = reader.manifest()
    except StoreError:
        manifest = {}
    events = reader.events()
    symptoms = symptoms_of(reader.all_scalars("rl"), events, reader.evaluations(), manifest)
    return diagnose(symptoms), read_decisions(events)


def why_table(name: str, diagnosis: Diagnosis, decisions: Sequence[Decision] = ()) -> RenderableType:
    """Causes with their evidence, the best one first; findings that none explains; what control did."""
    parts: list[RenderableType] = [plain(f"Why {name}?", "bold")]
    if not diagnosis.hypotheses and not diagnosis.unexplained:
        parts.append(plain(diagnosis.silence))
        return Group(*parts, *_decided(decisions))
    parts.append(plain(found_text(diagnosis), "dim"))
    shown = [one for place, one in enumerate(diagnosis.hypotheses[:SHOWN]) if place == 0 or one.strength != "possible"]
    for place, one in enumerate(shown, 1):
        parts += ["", _cause(place, one, diagnosis)]
    weaker = diagnosis.hypotheses[len(shown) :]
    if weaker:
        parts += ["", plain("Weaker: " + ", ".join(f"{one.cause.title} ({one.score:g})" for one in weaker), "dim")]
    if diagnosis.unexplained:
        parts += ["", findings_table(diagnosis.unexplained, "Findings that no known cause explains")]
    return Group(*parts, *_decided(decisions))


def found_text(diagnosis: Diagnosis) -> str:
    """How much was found, and how much of it chance would give."""
    watched = diagnosis.watched
    count = len({id(one) for cause in diagnosis.hypotheses for one in cause.findings}) + len(diagnosis.unexplained)
    monitors = "" if watched.monitors is None else f" by {watched.monitors:,} monitors"
    text = f"{count} {'finding' if count == 1 else 'findings'} in {watched.steps:,} steps watched{monitors}."
    expected = watched.expected
    if expected is None or diagnosis.by_chance is None:
        return text
    return f"{text} By chance alone {expected:.2g} are expected; so many or more: p <= {diagnosis.by_chance:.2g}."


def findings_table(findings: Sequence[Finding], title: str) -> RenderableType:
    """Findings by step."""
    table = Table(title=plain(title, "bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("step", "onset"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("false\n/1,000", justify="right", no_wrap=True)
    table.add_column("monitor, and what it saw", overflow="fold")
    for one in findings:
        rate = one.false_alarms_per_1000
        summary = one.summary.removeprefix(one.monitor).strip()
        table.add_row(
            str(one.step),
            str(one.onset_step) if one.onset_step >= 0 else "-",
            Text(one.severity, style="red" if one.severity == "alarm" else "yellow"),
            "rule" if rate is None else f"{rate:.2g}",
            plain(one.monitor, "bold").append(f"\n{plain(summary).plain}", "dim"),
        )
    return table


def why_json(name: str, diagnosis: Diagnosis, decisions: Sequence[Decision] = ()) -> dict[str, Any]:
    """The same as JSON-able values, all causes included."""
    fell, watched = diagnosis.damage, diagnosis.watched
    return {
        "run": name,
        "watched": {
            "steps": watched.steps,
            "monitors": watched.monitors,
            "false_alarms_per_1000": watched.false_alarms_per_1000,
            "expected_by_chance": number(watched.expected),
        },
        "by_chance": number(diagnosis.by_chance),
        "damage": {"step": fell.step, "before": number(fell.before), "after": number(fell.after)} if fell else None,
        "hypotheses": [
            hypothesis_json(one, diagnosis)
            | {
                "onset_step": one.onset_step,
                "alarm_step": one.alarm_step,
                "lead_steps": one.lead_steps,
                "findings": [finding_json(finding) for finding in one.findings],
            }
            for one in diagnosis.hypotheses
        ],
        "unexplained": [finding_json(one) for one in diagnosis.unexplained],
        "silence": "" if diagnosis.hypotheses or diagnosis.unexplained else diagnosis.silence,
        "decisions": [decision_json(one) for one in decisions],
    }


def decision_json(one: Decision) -> Mapping[str, Any]:
    """A decision in few words."""
    return {
        "act": str(one.act),
        "step": one.step,
        "values": values_text(one.values),
        "reason": one.reason,
        "release": one.release,
        "dry_run": one.dry_run,
    }


def _cause(place: int, one: Hypothesis, diagnosis: Diagnosis) -> RenderableType:
    head = Text(f"{place}. ").append_text(plain(one.cause.title, "bold"))
    head.append(f"  {one.strength}", style=_STYLES[one.strength]).append(f" (score {one.score:g})", style="dim")
    lines: list[RenderableType] = [plain(one.cause.meaning), plain(when_text(one, diagnosis), "cyan")]
    evidence, steps = _grid(), _grid()
    for line in one.evidence:
        evidence.add_row("-", plain(line))
    steps.add_row(Text("look", style="bold"), plain(one.cause.look))
    if one.trajectory_ids:
        steps.add_row("", plain(", ".join(one.trajectory_ids), "dim"))
    for index, (key, text) in enumerate(one.cause.advice):
        steps.add_row(Text("" if index else "do", style="bold"), plain(key, "green").append(f"  {text}", "default"))
    return Group(head, Padding(Group(*lines, evidence, steps), (0, 0, 0, 3)))


def _grid() -> Table:
    """Two columns without lines, of which the second one wraps."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _decided(decisions: Sequence[Decision]) -> list[RenderableType]:
    if not decisions:
        return []
    lines = [
        plain(
            f"step {one.step}: {KNOBS[one.act]}{' released' if one.release else ''}"
            f"{f' ({values_text(one.values)})' if one.values else ''}, {'would have been' if one.dry_run else 'done'}"
        )
        for one in decisions[-MAX_DECISIONS:]
    ]
    left = len(decisions) - len(lines)
    title = "What control decided" + (f" (the newest {len(lines)} of {len(decisions)})" if left else "")
    return ["", plain(title, "bold"), *lines]
