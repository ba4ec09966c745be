"""One diagnosed trajectory as rows: what was said and called, what was violated there, which step was critical."""

from __future__ import annotations

import json
from dataclasses import dataclass

from burnish.diagnosis.constraint import Violation
from burnish.diagnosis.diagnose import Diagnosis
from burnish.diagnosis.localise import Suspect
from burnish.diagnosis.overview import Case
from burnish.diagnosis.record import Item, Record

MAX_TEXT = 600
MAX_SYSTEM_TEXT = 160
"""Instructions are the same in every trajectory, and never the critical step."""
MAX_ROWS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One message.  `Row(index=4, role="assistant", text="Done.", is_critical=True)`

    p: chance that it is the critical one, None where it is not among the suspects.
    """

    index: int
    role: str
    text: str
    is_critical: bool = False
    p: float | None = None
    violations: tuple[Violation, ...] = ()


def rows_of(case: Case) -> list[Row]:
    """The messages of a case as `timeline` gives them."""
    return timeline(case.record, case.diagnosis, case.critical)


def timeline(record: Record, diagnosis: Diagnosis, critical: Suspect | None) -> list[Row]:
    """The messages of a trajectory; of a long one those around what was found, at most `MAX_ROWS`.

    critical: None where the answer is "don't know".
    """
    chances = {s.position: s.p for s in diagnosis.suspects[:5]}
    at = critical.position if critical is not None else 0
    by_position: dict[int, list[Violation]] = {}
    for violation in diagnosis.log.violations:
        by_position.setdefault(violation.position, []).append(violation)
    rows = [
        Row(
            index=item.index,
            role=item.agent or item.role,
            text=said(item),
            is_critical=critical is not None and position == at,
            p=chances.get(position),
            violations=tuple(by_position.get(position, ())),
        )
        for position, item in enumerate(record.items)
    ]
    if len(rows) <= MAX_ROWS:
        return rows
    first = max(0, min(at - MAX_ROWS // 2, len(rows) - MAX_ROWS))
    return rows[first : first + MAX_ROWS]


def said(item: Item) -> str:
    """A message in short: its words, then its calls.

    >>> said(Item(index=1, role="user", text="hi"))
    'hi'
    """
    calls = []
    for call in item.calls:
        given = (
            call.raw if call.arguments is None else json.dumps(dict(call.arguments), ensure_ascii=False, default=str)
        )
        calls.append(f"{call.name}({given})")
    text = "\n".join([*([item.text] if item.text else []), *calls])
    most = MAX_SYSTEM_TEXT if item.role == "system" else MAX_TEXT
    return text if len(text) <= most else f"{text[:most]} ..."


def why_of(case: Case) -> str:
    """The first reason for the critical step of a case."""
    return why_of_suspect(case.critical)


def why_of_suspect(suspect: Suspect) -> str:
    """The first reason for a suspect."""
    return suspect.why[0] if suspect.why else "by its place alone"
