"""`burnish judge`: how right a judge is, measured on labels, how far raters agree, whether a judge has changed."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from burnish.cli.open_judge import open_judge
from burnish.core.errors import ConfigError
from burnish.graders.agreement import Agreement, Scale, alpha_interval, cohen_kappa, rating_table
from burnish.graders.judge_budget import JudgeLedger
from burnish.graders.judge_calibration import (
    Accuracy,
    Judgement,
    Mapped,
    PositionBias,
    accuracy,
    calibrate,
    position_bias,
)
from burnish.graders.judge_drift import DriftBaseline, check_drift, load_baseline
from burnish.graders.rubric_criteria import Rubric
from burnish.graders.rubric_file import load_rubric
from burnish.graders.rubric_labelled import judge_labelled, load_labelled, values_of

WIDTH = 80
_NAME_CHARS = 24


def judge(arguments: argparse.Namespace, console: Console) -> int:
    """Run one of the actions."""
    actions = {"calibrate": _calibrate, "agreement": _agreement, "drift": _drift}
    return actions[arguments.action](arguments, console)


def _calibrate(arguments: argparse.Namespace, console: Console) -> int:
    if not arguments.rubric:
        raise ConfigError("name the rubric that the labels are of with --rubric FILE")
    if arguments.orders < 1:
        raise ConfigError(f"--orders is at least 1, got {arguments.orders}")
    rubric = load_rubric(arguments.rubric)
    cases = load_labelled(arguments.file, rubric)
    if arguments.out and Path(arguments.out).exists():
        raise ConfigError(f"{arguments.out} exists; name a new file")
    ledger = JudgeLedger(max_requests=arguments.max_requests)
    judges = [open_judge(name, arguments, ledger) for name in arguments.judge]
    if not judges:
        raise ConfigError("name at least one judge, such as --judge openai:MODEL")
    found = asyncio.run(judge_labelled(rubric, judges, cases, orders=arguments.orders))
    calibration = calibrate(found, rubric.version, Mapped(arguments.map))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(calibration.to_json(), indent=1), encoding="utf-8")
    summaries = {one.name: _summary(rubric, [row for row in found if row.judge == one.name]) for one in judges}
    together = _between(found, Scale.INTERVAL) if len(judges) > 1 else None
    if arguments.json:
        data: dict[str, Any] = {"judges": {name: _json_of(summary) for name, summary in summaries.items()}}
        data |= {"agreement": together, "spent": ledger.to_json(), "calibration": calibration.to_json()}
        console.out(json.dumps(data, indent=2, allow_nan=False), highlight=False)
        return 0
    for name, summary in summaries.items():
        _print_summary(name, summary, console)
    if together:
        _say(
            console, f"Krippendorff's alpha of the judges: {_number(together['alpha'])} over {together['n']} verdicts."
        )
    spent = ledger.spent
    _say(console, f"{len(cases)} examples; {spent.requests} requests, {spent.tokens} tokens spent.")
    return 0


Summary = tuple[dict[str, Accuracy], Accuracy, PositionBias | None, Counter[str]]


def _summary(rubric: Rubric, rows: Sequence[Judgement]) -> Summary:
    by_criterion = {
        item.criterion.id: accuracy([row for row in rows if row.criterion == item.criterion.id])
        for item in rubric.criteria
        if any(row.criterion == item.criterion.id and row.label is not None for row in rows)
    }
    causes = Counter(row.cause for row in rows if row.value is None and row.cause)
    return by_criterion, accuracy(rows), position_bias(rows, np.random.default_rng(0)), causes


def _json_of(summary: Summary) -> dict[str, Any]:
    by_criterion, whole, bias, causes = summary
    return {
        "all": whole.to_json(),
        "criteria": {name: found.to_json() for name, found in by_criterion.items()},
        "position_bias": None if bias is None else {"slope": bias.slope, "p_value": bias.p_value, "n": bias.n},
        "missing": dict(causes),
    }


def _print_summary(name: str, summary: Summary, console: Console) -> None:
    by_criterion, whole, bias, causes = summary
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0), title=name, title_justify="left")
    table.add_column("criterion", no_wrap=True, max_width=_NAME_CHARS, overflow="ellipsis")
    for title in ("n", "none", "balanced", "finds met", "finds unmet", "kappa", "cut"):
        table.add_column(title, justify="right", no_wrap=True)
    for criterion, found in by_criterion.items():
        table.add_row(criterion, *_cells(found))
    table.add_section()
    table.add_row("all", *_cells(whole))
    console.print(table)
    if bias is not None:
        odds = "; order matters" if bias.p_value < 0.01 else ""
        _say(console, f"position bias: {bias.slope:+.3f} a place (p = {bias.p_value:.2g}, n = {bias.n}){odds}")
    if causes:
        _say(console, "no verdict: " + "; ".join(f"{count} x {cause}" for cause, count in causes.most_common(3)))


def _cells(found: Accuracy) -> list[str]:
    ends = [None if part is None else part.mean for part in (found.sensitivity, found.specificity)]
    figures = [found.balanced, *ends, found.kappa, found.threshold]
    return [str(found.n), str(found.missing), *(_number(figure) for figure in figures)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _between(rows: Sequence[Judgement], scale: Scale) -> dict[str, Any]:
    ratings = [((row.case, row.criterion, row.order), row.judge, row.value) for row in rows if row.value is not None]
    return _agreed(ratings, scale)


def _agreed(rows: Sequence[tuple[Any, str, float]], scale: Scale) -> dict[str, Any]:
    """Alpha over all raters, and kappa of each pair over the units that both rated."""
    raters, table = rating_table(rows)
    found: Agreement = alpha_interval(table, np.random.default_rng(0), scale)
    pairs = {}
    for i, first in enumerate(raters):
        for j in range(i + 1, len(raters)):
            both = [(a, b) for a, b in zip(table[i], table[j], strict=True) if a is not None and b is not None]
            kappa = cohen_kappa([a for a, _ in both], [b for _, b in both], scale) if both else None
            pairs[f"{first} / {raters[j]}"] = {"kappa": kappa, "n": len(both)}
    return {"alpha": found.value, "low": found.low, "high": found.high, "n": found.n, "pairs": pairs}


def _agreement(arguments: argparse.Namespace, console: Console) -> int:
    rows = _ratings(Path(arguments.file))
    scale = Scale(arguments.scale)
    names = list(dict.fromkeys(criterion for criterion, _, _, _ in rows))
    found = {name: _agreed([(u, r, v) for c, u, r, v in rows if c == name], scale) for name in names}
    if len(names) > 1:
        found["all"] = _agreed([((c, u), r, v) for c, u, r, v in rows], scale)
    if arguments.json:
        console.out(json.dumps({"scale": scale, "criteria": found}, indent=2, allow_nan=False), highlight=False)
        return 0
    table = Table(box=box.SIMPLE_HEAD, width=WIDTH, padding=(0, 1, 0, 0))
    table.add_column("criterion", no_wrap=True, max_width=_NAME_CHARS, overflow="ellipsis")
    for title in ("units", "alpha", "from", "to", "lowest kappa"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in found.items():
        table.add_row(name or "-", str(row["n"]), *(_number(row[k]) for k in ("alpha", "low", "high")), _lowest(row))
    console.print(table)
    _say(console, f"Krippendorff's alpha, {scale}, with 95% intervals over units; kappa of the pair that agrees least.")
    return 0


def _lowest(row: Mapping[str, Any]) -> str:
    known = [pair["kappa"] for pair in row["pairs"].values() if pair["kappa"] is not None]
    return _number(min(known)) if known else "-"


def _drift(arguments: argparse.Namespace, console: Console) -> int:
    """Make the baseline where there is none, else compare with it; 1 where the judge has changed."""
    if not (arguments.rubric and arguments.baseline and len(arguments.judge) == 1):
        raise ConfigError("a drift check needs --rubric FILE, --baseline FILE and one --judge openai:MODEL")
    if arguments.cache or arguments.offline:
        raise ConfigError("a drift check asks anew; leave out --cache and --offline")
    rubric, path = load_rubric(arguments.rubric), Path(arguments.baseline)
    cases = load_labelled(arguments.file, rubric)
    asked = open_judge(arguments.judge[0], arguments, JudgeLedger(max_requests=arguments.max_requests))
    known = load_baseline(path) if path.exists() else None
    if known is not None and known.judge != asked.version:
        raise ConfigError(f"{path} is a baseline of {known.judge}, not of {asked.version}; name another file")

    async def passes(n: int) -> list[dict[str, dict[str, float]]]:
        return [values_of(await judge_labelled(rubric, [asked], cases), asked.name) for _ in range(n)]

    if known is None:
        first, second = asyncio.run(passes(2))
        DriftBaseline(judge=asked.version, reported="", first=first, second=second).save(path)
        _say(console, f"{path} holds two passes of {asked.version} over {len(cases)} texts; check against it later.")
        return 0
    found = check_drift(known, asyncio.run(passes(1))[0])
    finding = found.finding(asked.name)
    if arguments.json:
        data = {"drift": asdict(found), "finding": None if finding is None else asdict(finding)}
        console.out(json.dumps(data, indent=2, allow_nan=False), highlight=False)
    else:
        _say(console, finding.summary if finding else f"{asked.name} judges {found.cases} texts as it did.")
        _say(
            console, f"False alarms: at most {found.false_alarm_rate:.1%} of checks; {found.missing} verdicts missing."
        )
    return int(found.alarm)


def _ratings(path: Path) -> list[tuple[str, str, str, float]]:
    """Criterion, unit, rater and value of each line."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ratings {path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            value = float(row["value"])
            if not np.isfinite(value):
                raise ValueError("the value is not finite")
            rows.append((str(row.get("criterion", "")), str(row["unit"]), str(row["rater"]), value))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f'{path} line {number}: a rating is {{"unit": "m1", "rater": "ann", "value": 1}}; {error!r}'
            ) from error
    if not rows:
        raise ConfigError(f"{path} has no ratings")
    return rows


def _say(console: Console, text: str) -> None:
    console.print(text, width=WIDTH, highlight=False, markup=False)
