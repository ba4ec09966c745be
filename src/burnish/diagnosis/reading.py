"""Any trajectory file as a stream of records; what cannot be read is reported by file and line, and the rest goes on.

Where its values stand in the file is the business of `layout`; the format is seen from each record's keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.diagnosis.formats.agentrx import read_agentrx
from burnish.diagnosis.formats.atif import read_atif
from burnish.diagnosis.formats.chat import read_chat, read_tau
from burnish.diagnosis.formats.inspect_log import read_sample, samples_of
from burnish.diagnosis.formats.spans import read_spans
from burnish.diagnosis.layout import values_of
from burnish.diagnosis.plain import RecordError
from burnish.diagnosis.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that could not be used.  `BadRecord(path=Path("a.jsonl"), line=3, why="steps is empty")`

    line: from 1; in a JSON array, the line on which the element begins.
    """

    path: Path
    line: int
    why: str


Read = Callable[[Any, int], Record]


def detect(row: Any) -> str:
    """The format of a record by its keys: atif, agentrx, tau, inspect, otel or chat."""
    if isinstance(row, Mapping):
        if "resourceSpans" in row or "scopeSpans" in row or ("attributes" in row and _is_span(row)):
            return "otel"
        if "traj" in row:
            return "tau"
        steps = row.get("steps")
        if isinstance(steps, list):
            first = steps[0] if steps else None
            is_atif = str(row.get("schema_version", "")).startswith("ATIF") or (
                isinstance(first, Mapping) and "source" in first
            )
            return "atif" if is_atif else "agentrx"
        if isinstance(row.get("history"), list):
            return "agentrx"
        if "messages" in row and ("scores" in row or "epoch" in row):
            return "inspect"
    return "chat"


def _is_span(row: Mapping[str, Any]) -> bool:
    return any(key in row for key in ("traceId", "trace_id", "context", "spanId"))


_READERS: dict[str, Read] = {
    "atif": read_atif,
    "agentrx": read_agentrx,
    "tau": read_tau,
    "inspect": read_sample,
    "chat": read_chat,
}
FORMATS = (*_READERS, "otel")


def read_records(path: Path, format: str = "") -> Iterator[Record | BadRecord]:
    """Records of one file in order, and the bad ones between them.

    format: one of `FORMATS`, or "" to see it from the record.  Raises StoreError where the file cannot be opened.
    """
    pending: list[tuple[int, Any]] = []
    for number, (line, value) in enumerate(values_of(path), start=1):
        if isinstance(value, RecordError):
            yield BadRecord(path=path, line=line, why=str(value))
            continue
        kind = format or detect(value)
        if kind == "otel" and _is_single_span(value):
            if pending and _trace(pending[-1][1]) != _trace(value):
                yield from _spans(path, pending)
                pending = []
            pending.append((line, value))
            continue
        yield from _records(path, line, number, value, kind)
    if pending:
        yield from _spans(path, pending)


def _records(path: Path, line: int, number: int, value: Any, kind: str) -> Iterator[Record | BadRecord]:
    if kind == "otel":
        yield from _spans(path, [(line, value)])
        return
    if isinstance(value, Mapping) and "samples" in value and "messages" not in value:
        try:
            rows = list(samples_of(value))
        except RecordError as error:
            yield BadRecord(path=path, line=line, why=str(error))
            return
        for position, row in enumerate(rows, start=1):
            yield _record(path, line, row, position, read_sample, f"sample {position}: ")
        return
    yield _record(path, line, value, number, _READERS[kind])


def _record(path: Path, line: int, value: Any, number: int, read: Read, before: str = "") -> Record | BadRecord:
    try:
        return read(value, number)
    except RecordError as error:
        return BadRecord(path=path, line=line, why=f"{before}{error}")
    except RecursionError:
        return BadRecord(path=path, line=line, why=f"{before}nested too deep")


def _spans(path: Path, rows: list[tuple[int, Any]]) -> Iterator[Record | BadRecord]:
    try:
        yield from read_spans([value for _, value in rows], rows[0][0])
    except (RecordError, RecursionError) as error:
        yield BadRecord(path=path, line=rows[0][0], why=str(error) or "nested too deep")


def _is_single_span(value: Any) -> bool:
    return isinstance(value, Mapping) and "attributes" in value and _is_span(value)


def _trace(value: Mapping[str, Any]) -> str:
    context = value.get("context")
    found = value.get("traceId") or value.get("trace_id")
    return str(found or (context.get("trace_id") if isinstance(context, Mapping) else ""))
