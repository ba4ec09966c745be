"""`burnish diagnose`: which step of a trajectory was the critical one, in which category, and whose fault it was."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from burnish.core.errors import BurnishError, ConfigError, StoreError
from burnish.core.judge import Judge
from burnish.diagnosis.diagnose import Diagnosis, Engine, diagnosis_json, load_model
from burnish.diagnosis.formats.atif import write_atif
from burnish.diagnosis.formats.run import read_run
from burnish.diagnosis.generated import admit
from burnish.diagnosis.judge import judged
from burnish.diagnosis.plain import RecordError, parse_json
from burnish.diagnosis.policy import NO_POLICY, Policy, load_policy
from burnish.diagnosis.reading import BadRecord, read_records
from burnish.diagnosis.record import Record
from burnish.store.runs import find_run

WIDTH = 80
SHOWN = 20
BUILT_IN = Path(__file__).resolve().parents[1] / "diagnosis"


@dataclass(slots=True)
class _Tally:
    """What was seen; its size does not grow with the file."""

    good: int = 0
    bad: int = 0
    accused: int = 0
    unknown: int = 0
    categories: Counter[str] = field(default_factory=Counter)
    owners: Counter[str] = field(default_factory=Counter)
    shown: list[dict[str, Any]] = field(default_factory=list)
    bad_shown: list[BadRecord] = field(default_factory=list)


def diagnose(arguments: argparse.Namespace, console: Console) -> int:
    """Diagnose every record, and print a summary or JSON lines.  1 where no record could be read."""
    engine = Engine(policy=_policy(arguments.policy), model=load_model(_weights(arguments.weights)))
    if arguments.constraints:
        engine.generated = _generated(arguments, engine.policy, console)
    judge = _judge(arguments)
    tally = _Tally()
    with ExitStack() as files:
        # one event loop for all questions, since an endpoint keeps its connections in it
        runner = files.enter_context(asyncio.Runner())
        out = files.enter_context(_opened(arguments.out)) if arguments.out else None
        atif = files.enter_context(_opened(arguments.to_atif)) if arguments.to_atif else None
        for record in _records(arguments):
            if isinstance(record, BadRecord):
                tally.bad += 1
                tally.bad_shown += [record] if len(tally.bad_shown) < SHOWN else []
                continue
            tally.good += 1
            if atif is not None:
                atif.write(json.dumps(write_atif(record)) + "\n")
            if record.passed and not arguments.all:
                continue
            found = engine.diagnose(record, use_reference=not arguments.no_reference)
            if judge is not None and found.accused:
                found = runner.run(judged(judge, record, found))
            _count(tally, found)
            if out is not None or arguments.json:
                row = json.dumps(diagnosis_json(found))
                if out is not None:
                    out.write(row + "\n")
                if arguments.json:
                    console.out(row, highlight=False)
    _report(arguments, tally, console)
    return 0 if tally.good else 1


def _policy(name: str) -> Policy:
    if not name:
        return NO_POLICY
    built_in = BUILT_IN / "policies" / f"{name}.toml"
    return load_policy(built_in if name.isidentifier() and built_in.exists() else Path(name))


def _weights(name: str) -> Path:
    return Path(name) if name else BUILT_IN / "weights.json"


def _generated(arguments: argparse.Namespace, policy: Policy, console: Console) -> Any:
    path = Path(arguments.constraints)
    try:
        proposals = parse_json(path.read_text(encoding="utf-8", errors="replace"))
        passing = [r for r in _records(arguments) if isinstance(r, Record) and r.passed]
        admitted = admit(proposals, passing, policy.kinds)
    except (OSError, RecordError) as error:
        raise ConfigError(f"{path} holds no generated constraints: {error}") from error
    for row in admitted:
        if row.refused and not arguments.json:
            console.print(f"constraint {row.name} has no vote: {row.refused}", markup=False, highlight=False)
    return tuple(row.constraint for row in admitted if row.constraint is not None)


def _judge(arguments: argparse.Namespace) -> Judge | None:
    if not arguments.judge:
        return None
    from burnish.integrations.openai_judge import OpenAIJudge

    kind, _, model = arguments.judge.partition(":")
    base_url = arguments.base_url or os.environ.get("OPENAI_BASE_URL", "")
    if kind != "openai" or not model or not base_url:
        raise ConfigError(
            f"a judge is named openai:MODEL, its endpoint in --base-url or OPENAI_BASE_URL; got {arguments.judge!r}"
        )
    return OpenAIJudge(base_url, model, os.environ.get("OPENAI_API_KEY", ""))


def _records(arguments: argparse.Namespace) -> Iterator[Record | BadRecord]:
    path = Path(arguments.path)
    if path.is_file():
        return read_records(path, arguments.format)
    try:
        return read_run(find_run(arguments.root, arguments.path))
    except BurnishError as error:
        raise ConfigError(f"{arguments.path!r} is neither a file of trajectories nor a run: {error}") from error


def _opened(name: str) -> TextIO:
    try:
        return Path(name).open("x", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{name} cannot be written: {error}; name a new file") from error


def _count(tally: _Tally, found: Diagnosis) -> None:
    critical = found.critical
    if critical is None:
        tally.unknown += 1
        return
    tally.accused += 1
    tally.categories[str(critical.category)] += 1
    tally.owners[str(critical.owner)] += 1
    if len(tally.shown) < SHOWN:
        why = critical.why[0] if critical.why else "by its place alone"
        tally.shown.append(
            {
                "id": found.record_id,
                "index": critical.index,
                "p": critical.p,
                "category": str(critical.category),
                "owner": str(critical.owner),
                "why": why,
            }
        )


def _report(arguments: argparse.Namespace, tally: _Tally, console: Console) -> None:
    if arguments.json:
        for bad in tally.bad_shown:
            console.out(json.dumps({"bad": f"{bad.path}:{bad.line}", "why": bad.why}), highlight=False)
        return
    table = Table(box=box.SIMPLE_HEAD, width=min(WIDTH, console.width))
    for name in ("trajectory", "message", "p", "category", "owner", "why"):
        table.add_column(name, overflow="fold")
    for row in tally.shown:
        cells = (row["id"], str(row["index"]), f"{row['p']:.2f}", row["category"], row["owner"], row["why"])
        table.add_row(*(_plain(cell) for cell in cells))
    if tally.shown:
        console.print(table)
    for name, counts in (("category", tally.categories), ("owner", tally.owners)):
        if counts:
            console.print(f"{name}: " + ", ".join(f"{key} {n}" for key, n in counts.most_common()), highlight=False)
    console.print(
        f"{tally.good} trajectories read, {tally.accused} with a critical step, {tally.unknown} without (don't know), "
        f"{tally.bad} bad records",
        highlight=False,
    )
    for bad in tally.bad_shown:
        console.print(f"{bad.path}:{bad.line}: {bad.why}", markup=False, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Safe in a terminal: no markup, no control characters."""
    from rich.markup import escape

    return escape("".join(char if char.isprintable() else " " for char in text[:160]))
