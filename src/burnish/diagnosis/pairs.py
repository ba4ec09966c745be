"""Data to train on from diagnosed failures: preference pairs and corrected prefixes.

A pair sets the critical step of a failed trajectory against what a trajectory of the *same task* that passed did: the
turn after a common prefix where they have one that reaches to the step, else the whole trajectories.  Tasks are the
same where id and first messages are, since ids of two files may clash.  Only failures of the agent make pairs: where
another is at fault, nothing is wrong with what was done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.diagnosis.formats.chat import write_chat
from burnish.diagnosis.overview import Case
from burnish.diagnosis.record import Item, Record
from burnish.diagnosis.taxonomy import Fault

MAX_PASSING = 8
"""Passing trajectories of one task that are kept to be paired with."""
MAX_KEPT = 20_000

TaskKey = tuple[str, str]


def task_key(record: Record) -> TaskKey | None:
    """What two trajectories must share to be of one task; None where the record names no task."""
    if not record.task_id:
        return None
    first = []
    for item in record.items:
        if item.role == "assistant":
            break
        first.append(_said(item))
    return record.task_id, json.dumps(first)


def _said(item: Item) -> tuple[Any, ...]:
    calls = [(call.name, json.dumps(dict(call.arguments or {}), sort_keys=True, default=str)) for call in item.calls]
    return item.role, item.text, calls


@dataclass(slots=True)
class Passing:
    """Trajectories that passed, by task, at most `MAX_PASSING` of each."""

    by_task: dict[TaskKey, list[Record]] = field(default_factory=dict)
    kept: int = 0

    def add(self, record: Record) -> None:
        """Keep one that may be needed."""
        key = task_key(record)
        if key is not None and record.passed and self.kept < MAX_KEPT:
            rows = self.by_task.setdefault(key, [])
            if len(rows) < MAX_PASSING:
                rows.append(record)
                self.kept += 1

    def of(self, record: Record) -> list[Record]:
        """Those of the same task."""
        key = task_key(record)
        return self.by_task.get(key, []) if key is not None else []

    def shortest(self, record: Record) -> int | None:
        """Turns of the agent in the shortest of them."""
        return min((sum(i.role == "assistant" for i in row.items) for row in self.of(record)), default=None)


def pair(case: Case, passing: Passing) -> dict[str, Any] | None:
    """A preference pair (`prompt`, `chosen`, `rejected` as chat messages), None where there is none to make."""
    record, at = case.record, case.critical.position
    others = passing.of(record)
    if case.critical.owner is not Fault.AGENT or not others or record.items[at].role != "assistant":
        return None
    same = next((other for other in others if _common(record.items, other.items) == at), None)
    chosen, cut = (same, at) if same is not None and same.items[at].role == "assistant" else (others[0], -1)
    start = cut if cut >= 0 else _prompt_end(record.items)
    ends = (start + 1, start + 1) if cut >= 0 else (len(chosen.items), len(record.items))
    return {
        "task_id": record.task_id,
        "chosen_id": chosen.id,
        "rejected_id": record.id,
        "unit": "turn" if cut >= 0 else "trajectory",
        "category": str(case.critical.category),
        "prompt": _messages(record, 0, start),
        "chosen": _messages(chosen, start, ends[0]),
        "rejected": _messages(record, start, ends[1]),
    }


def prefix(case: Case, passing: Passing) -> dict[str, Any] | None:
    """What came before the agent's critical step, to go on from, with the right turn where a passing trajectory of the
    same task has one after the very same messages; None where another is at fault."""
    record, at = case.record, case.critical.position
    if case.critical.owner is not Fault.AGENT or record.items[at].role != "assistant" or not record.task_id:
        return None
    same = next((o for o in passing.of(record) if _common(record.items, o.items) == at and len(o.items) > at), None)
    right = same is not None and same.items[at].role == "assistant"
    return {
        "task_id": record.task_id,
        "trajectory_id": record.id,
        "critical_step": case.critical.index,
        "category": str(case.critical.category),
        "messages": _messages(record, 0, at),
        "correction": _messages(same, at, at + 1)[0] if same is not None and right else None,
        "correction_id": same.id if same is not None and right else None,
    }


def _common(a: Sequence[Item], b: Sequence[Item]) -> int:
    """Number of messages that both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if _said(x) != _said(y)), min(len(a), len(b)))


def _prompt_end(items: Sequence[Item]) -> int:
    return next((n for n, item in enumerate(items) if item.role == "assistant"), len(items))


def _messages(record: Record, start: int, end: int) -> list[dict[str, Any]]:
    part = replace(record, items=record.items[start:end], labels=(), reference=None)
    found = write_chat(part)["messages"]
    return [message for message in found if isinstance(message, dict)]


def exported(cases: Sequence[Case], passing: Passing) -> Iterator[tuple[str, dict[str, Any]]]:
    """("pairs" or "prefixes", row) of all cases."""
    for case in cases:
        for name, made in (("pairs", pair(case, passing)), ("prefixes", prefix(case, passing))):
            if made is not None:
                yield name, made
