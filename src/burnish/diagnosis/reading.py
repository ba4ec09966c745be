"""Any trajectory file as a stream of records; what cannot be read is reported by file and line, and the rest goes on.

JSONL is read line by line and a JSON array element by element, so that memory holds one record; a single JSON object
(an Inspect log, an OTLP export) is read whole, up to `MAX_WHOLE` bytes.  The format is seen from each record's keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from burnish.core.errors import StoreError
from burnish.diagnosis.formats.agentrx import read_agentrx
from burnish.diagnosis.formats.atif import read_atif
from burnish.diagnosis.formats.chat import read_chat, read_tau
from burnish.diagnosis.formats.inspect_log import read_sample, samples_of
from burnish.diagnosis.formats.spans import read_spans
from burnish.diagnosis.plain import RecordError, parse_json
from burnish.diagnosis.record import Record

MAX_LINE = 64 * 1024 * 1024
MAX_WHOLE = 1024 * 1024 * 1024
_CHUNK = 1 << 18
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]]', re.DOTALL)


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
    for number, (line, value) in enumerate(_values(path), start=1):
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


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, JSON value or RecordError) of a file, whatever its layout."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            start = file.read(_CHUNK)
            file.seek(0)
            layout = _layout(start)
            if layout == "array":
                yield from _elements(file)
            elif layout == "object":
                text = file.read(MAX_WHOLE + 1)
                yield 1, _too_long(MAX_WHOLE) if len(text) > MAX_WHOLE else _parsed(text)
            else:
                yield from _lines(file)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _layout(start: str) -> str:
    """ "array", "object" (one that goes over many lines) or "lines"."""
    text = start.lstrip()
    if text.startswith("["):
        first = text.split("\n", 1)[0].strip()
        # A list on each line is a chat per line; a list that its first line does not close is the whole file.
        closed = first.endswith("]") and not isinstance(_parsed(first), RecordError)
        return "lines" if closed and "\n[" in text else "array"
    if text.startswith("{"):
        first, newline, rest = text.partition("\n")
        if newline and rest.strip() and first.rstrip() == "{":
            return "object"
        if newline and not first.rstrip().endswith("}"):
            return "object"
    return "lines"


def _lines(file: TextIO) -> Iterator[tuple[int, Any]]:
    line = 0
    while text := file.readline(MAX_LINE):
        line += 1
        if len(text) == MAX_LINE and not text.endswith("\n"):
            while rest := file.readline(MAX_LINE):
                if rest.endswith("\n"):
                    break
            yield line, _too_long(MAX_LINE)
        elif text.strip():
            yield line, _parsed(text)


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except RecordError as error:
        return error


def _elements(file: TextIO) -> Iterator[tuple[int, Any]]:
    """Elements of a top-level array by counting brackets outside strings; a broken element spoils no other."""
    buffer, depth, start, line, at, dropped = "", 0, -1, 1, 0, False
    # A string without end is scanned again with every read, so reads grow with what is waiting.
    while chunk := file.read(max(_CHUNK, len(buffer))):
        buffer += chunk
        for match in _TOKEN.finditer(buffer, at):
            token = match[0]
            if token == '"':
                at = match.start()
                break
            at = match.end()
            if token in "{[":
                depth += 1
                start = match.start() if depth == 2 else start
            elif token in "}]":
                depth -= 1
                if depth == 1 and start >= 0:
                    where = line + buffer.count("\n", 0, start)
                    yield where, _too_long(MAX_LINE) if dropped else _parsed(buffer[start : match.end()])
                    start, dropped = -1, False
        else:
            at = len(buffer)
        keep = start if start >= 0 else at
        if len(buffer) - keep > MAX_LINE:
            dropped, keep = True, at
        line += buffer.count("\n", 0, keep)
        buffer, at, start = buffer[keep:], at - keep, 0 if start >= 0 else -1
        if len(buffer) > 2 * MAX_LINE:
            yield line, _too_long(MAX_LINE)
            return
    if depth > 0:
        yield line, RecordError("the file ends within a record")


def _too_long(limit: int) -> RecordError:
    return RecordError(f"longer than {limit} characters")
