"""SQL answers, judged by the rows that they return."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from burnish.core.task import Task
from burnish.graders.killable import KillableRule, fenced, verdict

MAX_ROWS = 10_000
MAX_STEPS = 20_000_000
"""Instructions of SQLite's machine for one query, about a second: the same verdict on every machine."""

_STEPS_BETWEEN = 10_000
_RELATIVE = 1e-6
_HEAP_BYTES = 256 * 2**20
_DENIED = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "random", "randomblob"})
_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_NOT_TOP = re.compile(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/|\([^()]*\)", re.DOTALL)

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SqlGrader(KillableRule):
    """1 where a query returns the rows of `reference["sql"]`, in each database of `reference["databases"]`.

    databases: scripts that build one each, in memory.  Several that differ tell a right query from one that is right by
    luck.  The order of rows counts where the reference orders its rows (or `reference["ordered"]` says so), that of
    columns always, their names never.  A query may read and compute, nothing else.
    """

    name = "sql"
    function = "burnish.graders.sql:compare"

    def arguments(self, task: Task, text: str) -> Mapping[str, Any] | None:
        right, databases = task.reference.get("sql"), task.reference.get("databases")
        if not isinstance(right, str) or not isinstance(databases, (list, tuple)) or not databases:
            return None
        ordered = task.reference.get("ordered", is_ordered(right))
        given = fenced(text, "sql", "sqlite")
        return {"databases": list(databases), "right": right, "given": given, "ordered": bool(ordered)}


def is_ordered(sql: str) -> bool:
    """Whether the outermost query orders its rows.

    >>> is_ordered("SELECT a FROM t ORDER BY a"), is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)")
    (True, False)
    """
    previous = ""
    while sql != previous:
        previous, sql = sql, _NOT_TOP.sub(" ", sql)
    return re.search(r"\border\s+by\b", sql, re.IGNORECASE) is not None


def compare(databases: Sequence[str], right: str, given: str, ordered: bool) -> dict[str, Any]:
    """The verdict on one query."""
    has_rows = False
    for index, script in enumerate(databases):
        try:
            with closing(_opened(script)) as connection:
                expected = _rows(connection, right, MAX_ROWS)
        except (sqlite3.Error, ValueError) as error:
            return verdict(None, "task_cannot_be_judged", database=index, error=str(error)[:200])
        has_rows = has_rows or bool(expected)
        try:
            with closing(_opened(script)) as connection:
                found = _rows(connection, given, len(expected) + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            return verdict(0.0, "query_fails", database=index, error=f"{type(error).__name__}: {error}"[:200])
        if not same_rows(expected, found, ordered=ordered):
            return verdict(0.0, "rows_differ", database=index, expected=len(expected), found=len(found))
    return verdict(1.0) if has_rows else verdict(None, "task_cannot_be_judged", sql="returns no rows anywhere")


def same_rows(expected: Rows, found: Rows, *, ordered: bool) -> bool:
    """Whether two results are equal; as multisets unless ordered, numbers to six digits.

    >>> same_rows([(1,), (2.0,)], [(2,), (1,)], ordered=False), same_rows([(1,), (2,)], [(2,), (1,)], ordered=True)
    (True, False)
    """
    if len(expected) != len(found):
        return False
    if not ordered:
        expected, found = sorted(expected, key=_row_key), sorted(found, key=_row_key)
    return all(
        len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(expected, found, strict=True)
    )


def _opened(script: str) -> sqlite3.Connection:
    """A database in memory, built by the task's script, and then closed to everything but reading."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute(f"PRAGMA hard_heap_limit={_HEAP_BYTES}")
    connection.executescript(script)
    connection.execute("PRAGMA query_only=ON")
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorised)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += _STEPS_BETWEEN
        return int(steps > MAX_STEPS)

    connection.set_progress_handler(count, _STEPS_BETWEEN)
    return connection


def _authorised(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    is_safe_call = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _DENIED
    return sqlite3.SQLITE_OK if action in _ALLOWED or is_safe_call else sqlite3.SQLITE_DENY


def _rows(connection: sqlite3.Connection, sql: str, limit: int) -> Rows:
    found: Rows = connection.execute(sql).fetchmany(limit)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=1e-9)
    return type(a) is type(b) and bool(a == b)


def _row_key(row: tuple[Any, ...]) -> tuple[tuple[int, Any], ...]:
    return tuple(_key(value) for value in row)


def _key(value: Any) -> tuple[int, Any]:
    if value is None:
        return (0, 0)
    if isinstance(value, (int, float)):
        return (1, float(f"{value:.5g}"))
    return (2, value) if isinstance(value, str) else (3, value)
