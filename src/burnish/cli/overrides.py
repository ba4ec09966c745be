"""`burnish override` and `burnish overrides`: people's word on what graders said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from burnish.core.errors import ConfigError, StoreError
from burnish.diagnosis.corrections import LABEL as DIAGNOSIS
from burnish.diagnosis.corrections import append, names_message, of_label, of_run
from burnish.diagnosis.formats.run import record_of
from burnish.reports.overrides import labelled, override_view, reviewed
from burnish.store.overrides import Override, OverrideKind
from burnish.store.reader import RunReader
from burnish.store.rows import StoredTrajectory
from burnish.store.runs import find_run
from burnish.store.writer import RunWriter

WIDTH = 80
INTEGRITY = "integrity"


def override(arguments: argparse.Namespace, console: Console) -> int:
    """Add one override to a run."""
    folder = find_run(arguments.root, arguments.run)
    stored = RunReader(folder).trajectory(arguments.trajectory)
    row = _row(arguments, stored)
    with RunWriter.open(folder) as writer:
        writer.override(row)
    before = "no score" if row.before is None else f"{row.before:g}"
    now = row.label if row.score is None else f"{row.score:g}"
    console.print(
        f"{row.kind} {row.name} of {row.trajectory_id}: {before} -> {now}, by {row.person}",
        highlight=False,
        markup=False,
    )
    return 0


def store_posted(folder: Path, values: Mapping[str, Any]) -> None:
    """Add what was posted to the viewer: the arguments of `burnish override` by name."""
    texts = {name: values.get(name, "") for name in ("trajectory", "grade", "flag", "label", "by", "reason")}
    score = values.get("score")
    if not all(isinstance(text, str) for text in texts.values()):
        raise ConfigError(f"{', '.join(texts)} are texts")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise ConfigError(f"score is a number from 0 to 1, got {score!r}")
    if sum(bool(texts[name]) for name in ("grade", "flag", "label")) != 1:
        raise ConfigError("an override names one of grade, flag and label")
    arguments = argparse.Namespace(**texts, score=score)
    row = _row(arguments, RunReader(folder).trajectory(texts["trajectory"]))
    with RunWriter.open(folder) as writer:
        writer.override(row)


def list_overrides(arguments: argparse.Namespace, console: Console) -> int:
    """Print a run's overrides and the rates that follow from them."""
    folder = find_run(arguments.root, arguments.run)
    reader = RunReader(folder)
    rows = reader.overrides()
    if arguments.out:
        _write_examples(Path(arguments.out), reader, rows)
    if arguments.corrections:
        _write_corrections(Path(arguments.corrections), reader)
    if arguments.json:
        print(json.dumps(override_view(rows) | {"run": folder.name}))
        return 0
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{len(rows)} overrides of {folder.name}")
    for title in ("kind", "name", "reviewed", "wrong", "positives", "false", "false rate"):
        table.add_column(title, justify="left" if title in ("kind", "name") else "right", no_wrap=True)
    for item in reviewed(rows):
        rate = item.to_json()["false_positive_rate"]
        shown = "-" if rate is None else f"{rate[0]:.0%} [{rate[1]:.0%}, {rate[2]:.0%}]"
        counts = (item.n, item.wrong, item.positives, item.false_positives)
        table.add_row(item.kind, item.name, *(str(count) for count in counts), shown)
    console.print(table, width=WIDTH)
    for row in rows[-20:]:
        said = row.label if row.score is None else f"{row.score:g}"
        line = f"{row.trajectory_id}  {row.kind} {row.name} = {said}  {row.person}: {row.reason}"
        console.print(line, width=WIDTH, highlight=False, markup=False)
    return 0


def _row(arguments: argparse.Namespace, stored: StoredTrajectory) -> Override:
    scores = {grade.grader: grade.score for grade in stored.grades}
    if arguments.label:
        name, sign, value = arguments.label.partition("=")
        if not sign or not name:
            raise ConfigError(f"--label is NAME=VALUE, got {arguments.label!r}")
        if name == DIAGNOSIS:
            _check_diagnosis(value, stored)
        return _made(arguments, OverrideKind.LABEL, name, value, None)
    if arguments.score is None:
        raise ConfigError("--score says what it should have been, from 0 to 1")
    if arguments.flag:
        known = _families(stored)
        if arguments.flag not in known:
            listed = ", ".join(known) or "no flag"
            raise ConfigError(f"{arguments.trajectory} has no flag {arguments.flag!r}; it has {listed}")
        return _made(arguments, OverrideKind.FLAG, arguments.flag, "", scores.get(INTEGRITY))
    if arguments.grade not in scores:
        raise ConfigError(f"{arguments.trajectory} has no grade {arguments.grade!r}; it has {', '.join(scores)}")
    return _made(arguments, OverrideKind.GRADE, arguments.grade, "", scores[arguments.grade])


def _check_diagnosis(value: str, stored: StoredTrajectory) -> None:
    """Raises ConfigError where a corrected diagnosis names no message of the trajectory."""
    correction = of_label(stored.trajectory.id, value)
    if not names_message(record_of(stored), correction):
        count = len(stored.trajectory.messages)
        raise ConfigError(f"{stored.trajectory.id} has messages 1 to {count}, got {correction.index}")


def _made(arguments: argparse.Namespace, kind: OverrideKind, name: str, label: str, before: float | None) -> Override:
    return Override(
        trajectory_id=arguments.trajectory,
        kind=kind,
        name=name,
        score=arguments.score,
        label=label,
        before=before,
        person=arguments.by,
        reason=arguments.reason,
    )


def _families(stored: StoredTrajectory) -> list[str]:
    flags = [flag for grade in stored.grades for flag in grade.evidence.get("flags", ())]
    return [str(flag["family"]) for flag in flags if isinstance(flag, dict) and "family" in flag]


def _write_examples(path: Path, reader: RunReader, rows: list[Override]) -> None:
    found = {row.trajectory_id: reader.trajectory(row.trajectory_id).trajectory for row in rows}
    answers = {key: (trajectory.task_id, trajectory.answer) for key, trajectory in found.items()}
    lines = [json.dumps(case) for case in labelled(rows, answers)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_corrections(path: Path, reader: RunReader) -> None:
    """A new file, since what people said before must not be written over."""
    try:
        path.open("x").close()
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error}; name a new file") from error
    for correction in of_run(reader):
        append(path, correction)
