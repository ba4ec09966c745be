"""Labelled examples of a rubric, and judges run over them: for calibration, agreement, position bias and drift."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.judge import Judge
from burnish.core.outcome import COMPLETED
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.judge_calibration import Judgement
from burnish.graders.rubric import RubricGrader
from burnish.graders.rubric_criteria import Rubric


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCase:
    """A text with what people said of it.  `LabelledCase(id="m1", answer="...", labels={"cites": 1.0})`

    labels: by criterion, as shares of its levels in [0, 1].
    """

    id: str
    answer: str
    task: str = ""
    task_id: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)


def load_labelled(path: Path | str, rubric: Rubric) -> list[LabelledCase]:
    """The cases in a JSONL file: `{"id": "m1", "task": "...", "answer": "...", "labels": {"cites": 1}}`.

    A label is a whole number from 0 to the criterion's levels.  Raises ConfigError that names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labelled examples {path} cannot be read: {error}") from error
    levels = {item.criterion.id: item.criterion.levels for item in rubric.criteria}
    cases: dict[str, LabelledCase] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            case = _case(line, f"{path} line {number}", levels, str(number))
            if case.id in cases:
                raise ConfigError(f"{path} line {number}: the id {case.id!r} stands twice")
            cases[case.id] = case
    if not cases:
        raise ConfigError(f"{path} has no examples")
    return list(cases.values())


def _case(line: str, place: str, levels: Mapping[str, int], default_id: str) -> LabelledCase:
    try:
        row: Any = json.loads(line)
        answer, labels = row["answer"], row.get("labels", {})
        if not isinstance(answer, str) or not isinstance(labels, dict):
            raise TypeError("answer is a text and labels an object")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f'{place}: an example is {{"answer": "...", "labels": {{...}}}}; {error!r}') from error
    for name, label in labels.items():
        if name not in levels:
            raise ConfigError(f"{place}: the rubric has no criterion {name!r}")
        if type(label) is not int or not 0 <= label <= levels[name]:
            raise ConfigError(f"{place}: the label of {name} is a whole number 0..{levels[name]}, got {label!r}")
    return LabelledCase(
        id=str(row.get("id", default_id)),
        answer=answer,
        task=str(row.get("task", "")),
        task_id=str(row.get("task_id", "")),
        labels={name: label / levels[name] for name, label in labels.items()},
    )


async def judge_labelled(
    rubric: Rubric, judges: Sequence[Judge], cases: Sequence[LabelledCase], *, orders: int = 1, parallel: int = 8
) -> list[Judgement]:
    """Every case by every judge, alone, with the criteria in `orders` different orders; rules are left out.

    What a judge failed at is a judgement without a value.  parallel: cases under way at a time.
    """
    asked = dataclasses.replace(
        rubric, criteria=tuple(dataclasses.replace(item, rule=None) for item in rubric.criteria if item.rule is None)
    )
    slots = asyncio.Semaphore(parallel)

    async def one(case: LabelledCase, judge: Judge, order: int) -> list[Judgement]:
        judging = dataclasses.replace(asked.judging, seed=asked.judging.seed + order, quorum=0, known_good="")
        async with slots:
            return await _judgements(RubricGrader(asked, judge, judging=judging), case, judge.name, order)

    found = await asyncio.gather(
        *(one(case, judge, order) for case in cases for judge in judges for order in range(orders))
    )
    return [row for rows in found for row in rows]


async def _judgements(grader: RubricGrader, case: LabelledCase, judge: str, order: int) -> list[Judgement]:
    task = Task(prompt=case.task, id=case.task_id)
    trajectory = Trajectory(
        id=f"labelled/{case.id}",
        task_id=task.id,
        task_hash=task.content_hash,
        group_id="labelled",
        sample_index=0,
        seed=order,
        nodes=(),
        outcome=COMPLETED,
        answer=case.answer,
    )
    grade = await grader.grade(task, trajectory)
    notes: Mapping[str, Any] = grade.evidence.get("criteria", {})
    missing: Mapping[str, str] = grade.evidence.get("missing", {})
    return [
        Judgement(
            case=case.id,
            judge=judge,
            criterion=name,
            value=notes.get(name, {}).get("value"),
            label=case.labels.get(name),
            position=notes.get(name, {}).get("position", 0),
            order=order,
            cause=missing.get(name, grade.cause),
        )
        for name in (item.criterion.id for item in grader.rubric.of_task(task.id))
    ]


def values_of(judgements: Sequence[Judgement], judge: str, order: int = 0) -> dict[str, dict[str, float]]:
    """What one judge said in one order, by case and criterion: a pass of a drift check."""
    found: dict[str, dict[str, float]] = {}
    for row in judgements:
        if row.judge == judge and row.order == order and row.value is not None:
            found.setdefault(row.case, {})[row.criterion] = row.value
    return found
