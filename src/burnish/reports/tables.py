"""Tables for the terminal, at most 80 columns wide.  They are returned, not printed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from burnish.core.errors import StoreError
from burnish.reports.cost import CostReadings, start_and_end
from burnish.reports.headline import headline
from burnish.reports.overview import duration_text
from burnish.reports.series import all_scalars, phase_rates, phase_seconds
from burnish.store.reader import RunReader
from burnish.store.rows import EvaluationRow, RunState
from burnish.store.runs import RunInfo

if TYPE_CHECKING:
    from burnish.evaluation.compare import Comparison
    from burnish.evaluation.doctor import DoctorReport

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_STATE_STYLES = {
    RunState.RUNNING: "cyan",
    RunState.FINISHED: "green",
    RunState.STOPPED: "yellow",
    RunState.INTERRUPTED: "yellow",
    RunState.FAILED: "red",
}


def outcome_table(run_dir: Path | str) -> RenderableType:
    """What a run achieved: held-out success before SFT, after SFT and after RL with 95% intervals, what an
    episode costs, tokens/s, wall time.

    Raises StoreError where the run cannot be read.
    """
    reader = RunReader(run_dir)
    found = headline(reader.evaluations())
    if found.stages:
        table = _table("Held-out success (95% interval)")
        table.add_column("")
        for column in found.columns:
            table.add_column(plain(column.title.replace(", ", "\n")), justify="right", no_wrap=True)
        for stage in found.stages:
            cells = [stage.evaluations.get((column.split, column.mode)) for column in found.columns]
            table.add_row(plain(stage.title), *(_figure(row) for row in cells))
        main: RenderableType = table
    else:
        main = Text("No held-out evaluation was made.")
    return Group(main, *(plain(line, "dim") for line in _pace(reader)))


def comparison_table(comparison: Comparison) -> RenderableType:
    """A paired comparison: both rates, the difference with its interval, wins and losses, and what to make of it."""
    table = _table(f"{comparison.b} against {comparison.a}", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row(plain(comparison.a), _percent(comparison.a_rate))
    table.add_row(plain(comparison.b), _percent(comparison.b_rate))
    interval = f"[{_points(comparison.low)} to {_points(comparison.high)}]"
    table.add_row(
        Text("difference in points", style="bold"), Text(f"{_points(comparison.difference)} {interval}", style="bold")
    )
    table.add_row("p value (sign flips)", f"{comparison.p_value:.4f}")
    table.add_row("tasks better / worse / same", f"{comparison.wins} / {comparison.losses} / {comparison.ties}")
    pairing = "same seeds" if comparison.same_seeds else "other seeds, averaged by task"
    lines = [
        f"{comparison.split}, {comparison.mode}, {comparison.n_tasks} tasks, {comparison.n_pairs} pairs of episodes "
        f"({pairing})",
        "The 95% interval leaves out zero."
        if comparison.is_different
        else "The 95% interval holds zero: no difference shown.",
    ]
    if comparison.dropped:
        lines.append(f"{comparison.dropped} tasks had no scored pair and are left out.")
    return Group(table, *(plain(line, "dim") for line in lines))


def runs_table(runs: Sequence[RunInfo]) -> RenderableType:
    """Runs with state, last step, size and the reason where one ended early."""
    if not runs:
        return Text("There are no runs here.")
    table = _table("")
    for title in ("run", "state", "last step", "size", "took"):
        table.add_column(title, justify="right" if title in ("size", "took") else "left", overflow="fold")
    for run in runs:
        status = run.status
        state = Text(str(status.state), style=_STATE_STYLES[status.state])
        took = duration_text(status.updated_at_s - status.created_at_s) if not status.live else "going on"
        table.add_row(plain(run.name), state, plain(run.last_step), _size(run.size_bytes), took)
    reasons = [plain(f"{run.name}: {_shortened(run.status.detail)}", "dim") for run in runs if run.status.detail]
    return Group(table, *reasons)


def doctor_table(report: DoctorReport) -> RenderableType:
    """Every check of an environment with what was found, and a verdict."""
    table = _table(f"{report.environment}: {report.n_tasks} tasks, declared chance {report.chance:g}")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    marks = {True: Text("ok", style="green"), False: Text("FAIL", style="bold red"), None: Text("-", style="dim")}
    for check in report.checks:
        table.add_row(plain(check.name.replace("_", " ")), marks[check.ok], plain(check.detail))
    open_checks = sum(check.ok is None for check in report.checks)
    if report.failures:
        verdict = Text(
            f"{len(report.failures)} of {len(report.checks)} checks failed: mend these before training.",
            style="bold red",
        )
    else:
        verdict = Text("Fit to train on.", style="bold green")
    if open_checks:
        verdict.append(f" {open_checks} could not be made.", style="dim")
    return Group(table, verdict)


def plain(text: str, style: str = "") -> Text:
    r"""Text of unknown origin for a terminal: control characters and bidirectional marks become "?", and markup stays
    what it is.

    >>> plain("a\x1b[31mb [red]c").plain
    'a?[31mb [red]c'
    """
    return Text(_CONTROL.sub("?", text), style=style)


def _table(title: str, *, show_header: bool = True) -> Table:
    caption = plain(title, "bold") if title else None
    return Table(title=caption, title_justify="left", box=box.SIMPLE_HEAD, show_header=show_header)


def _figure(row: EvaluationRow | None) -> Text:
    if row is None:
        return Text("-", style="dim")
    text = Text(_percent(row.mean), style="bold")
    return text.append(f" [{100 * row.low:.1f}, {100 * row.high:.1f}]", style="not bold")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share == share else "-"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _pace(reader: RunReader) -> list[str]:
    """How long the phases took, and how fast they were."""
    scalars, status, steps = all_scalars(reader), reader.status(), reader.steps()
    seconds, rates = phase_seconds(scalars), phase_rates(scalars)
    titles = {"sft": "SFT", "rl": "RL", "eval": "evaluation"}
    words = {"sft": "trained tokens/s", "rl": "sampled tokens/s"}
    parts = []
    for phase, title in titles.items():
        if seconds[phase] > 0:
            rate = f" ({rates[phase]:,.0f} {words[phase]})" if phase in rates else ""
            parts.append(f"{title} {duration_text(seconds[phase])}{rate}")
    newest_s = max([status.updated_at_s, *(info.committed_at_s for info in steps[-1:])])
    wall = f"Wall time {duration_text(newest_s - status.created_at_s)}"
    lines = [*_cost(reader), wall + (f", resumed {status.attempt}x" if status.attempt else ""), *parts]
    if status.state is not RunState.FINISHED:
        lines.append(f"The run is {status.state}. {status.detail}".rstrip())
    return lines


def _cost(reader: RunReader) -> list[str]:
    """Tokens and success of training episodes at the start and at the end of RL; nothing where they cannot be read."""
    costs = CostReadings(reader)
    try:
        costs.update(0)
    except StoreError:
        return []
    ends = start_and_end(costs.steps)
    if ends is None:
        return []
    tokens, rate = (
        " -> ".join(_short(getattr(end, name)) for end in ends)
        for name in ("tokens_per_episode", "successes_per_1k_tokens")
    )
    return [f"RL start -> end: {tokens} tokens/episode, {rate} successes/1k tokens"]


def _short(value: float) -> str:
    """Three significant digits, whole from 100 on.

    >>> _short(48.25), _short(1234.5), _short(float("nan"))
    ('48.2', '1,234', '-')
    """
    if value != value:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(size_bytes: int) -> str:
    """A size in decimal units.

    >>> _size(31_000_000), _size(900)
    ('31.0 MB', '900 B')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def _shortened(text: str, limit_chars: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit_chars else f"{line[: limit_chars - 3]}..."
