"""What people said against a grade, a flag or a label: rows that are added and never changed.

The table is made when a run gets its first row, also where the run ended long ago.  The database itself refuses to
change or delete a row.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from burnish.core.errors import StoreError
from burnish.store.segments import storable_text

_TABLE = """
CREATE TABLE IF NOT EXISTS overrides (
    id INTEGER PRIMARY KEY,
    trajectory_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    score REAL,
    label TEXT NOT NULL,
    before REAL,
    person TEXT NOT NULL,
    reason TEXT NOT NULL,
    at_s REAL NOT NULL
)
"""
_KEPT = """
CREATE TRIGGER IF NOT EXISTS overrides_{verb} BEFORE {event} ON overrides
BEGIN SELECT RAISE(ABORT, 'overrides are only ever added'); END
"""


class OverrideKind(StrEnum):
    """What is overridden: a grader's score, an integrity flag, or a label of another kind."""

    GRADE = "grade"
    FLAG = "flag"
    LABEL = "label"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One person's word on one trajectory; the last one on a name counts.

    `Override(trajectory_id="rl/000012/0003/05", kind=OverrideKind.GRADE, name="tests", score=1.0, person="Ann",
    reason="the test is wrong", before=0.0)`

    name: the grader or label.  score: in [0, 1], None where only a label is given.  before: what the grader had said,
    None where it gave no score.  at_s: seconds since the epoch, set by the writer.
    """

    trajectory_id: str
    kind: OverrideKind
    name: str
    person: str
    reason: str
    score: float | None = None
    label: str = ""
    before: float | None = None
    at_s: float = 0.0

    def __post_init__(self) -> None:
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise StoreError(f"a score lies in [0, 1], got {self.score!r}")
        if self.score is None and not self.label:
            raise StoreError("an override gives a score or a label")
        for key in ("trajectory_id", "name", "person", "reason"):
            if not getattr(self, key).strip():
                raise StoreError(f"an override needs a {key}")


def insert(cursor: sqlite3.Cursor, row: Override, at_s: float) -> None:
    """Add a row within the caller's transaction."""
    cursor.execute(_TABLE)
    for verb, event in (("stay", "UPDATE"), ("remain", "DELETE")):
        cursor.execute(_KEPT.format(verb=verb, event=event))
    texts = [storable_text(text) for text in (row.trajectory_id, row.name, row.label, row.person, row.reason)]
    cursor.execute(
        "INSERT INTO overrides (trajectory_id, kind, name, score, label, before, person, reason, at_s)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (texts[0], str(row.kind), texts[1], row.score, texts[2], row.before, texts[3], texts[4], at_s),
    )


def read(connection: sqlite3.Connection) -> list[Override]:
    """All rows in the order in which they were added; none where the table was never needed."""
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'overrides'").fetchone()
    if there is None:
        return []
    rows = connection.execute(
        "SELECT trajectory_id, kind, name, score, label, before, person, reason, at_s FROM overrides ORDER BY id"
    ).fetchall()
    return [
        Override(
            trajectory_id=row[0],
            kind=OverrideKind(row[1]),
            name=row[2],
            score=row[3],
            label=row[4],
            before=row[5],
            person=row[6],
            reason=row[7],
            at_s=row[8],
        )
        for row in rows
    ]
