"""Where the JSON values of a file stand: on lines, in one array, or one after another over many lines.

JSONL is read line by line and an array element by element, so that memory holds one record; objects over many lines (an
Inspect log, an OTLP export) are read whole, up to `MAX_WHOLE` characters.  What is broken is reported at its line, and
whole values on later lines that it would swallow are found again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from burnish.core.errors import StoreError
from burnish.diagnosis.plain import RecordError, json_at, parse_json

MAX_LINE = 64 * 1024 * 1024
MAX_WHOLE = 1024 * 1024 * 1024
_CHUNK = 1 << 18
_TOKEN = re.compile(r'"[^"\\\n]*(?:\\[^\n][^"\\\n]*)*(?:"|\\?\n)|["{}\[\]]')
"""A string, which an open one is to the end of its line, or a bracket; a quote alone waits for the rest of its line."""
_SPACE = re.compile(r"\s*")
Values = Iterator[tuple[int, Any]]
"""(line from 1, JSON value or the RecordError that stands for it)"""


def values_of(path: Path) -> Values:
    """The values of a file in order.  Raises StoreError where it cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
            start = file.read(_CHUNK)
            file.seek(0)
            layout = _layout(start)
            if layout == "array":
                yield from _elements(file)
            elif layout == "objects":
                yield from _objects(file.read(MAX_WHOLE + 1))
            else:
                yield from _lines(file)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _layout(start: str) -> str:
    """ "array", "objects" (that go over many lines) or "lines"."""
    text = start.lstrip()
    first, newline, rest = text.partition("\n")
    if text.startswith("["):
        # A list on each line is a chat per line; a list that its first line does not close is the whole file.
        return "lines" if _whole(first.strip()) is not None and rest.strip() else "array"
    if not text.startswith("{") or not newline or not rest.strip() or _whole(first) is not None:
        return "lines"
    # A first line that is broken tells nothing: objects that others begin at the margin and end on the line do.
    return "lines" if any(_whole(line) is not None for line in rest.split("\n")) else "objects"


def _whole(line: str) -> Any:
    """The object or list that fills a line from its margin, None where there is none."""
    if line[:1] not in ("{", "["):
        return None
    value = _parsed(line.rstrip().removesuffix(","))
    return value if isinstance(value, Mapping | list) else None


def _lines(file: TextIO) -> Values:
    line = 0
    while text := file.readline(MAX_LINE):
        line += 1
        if len(text) == MAX_LINE and not text.endswith("\n"):
            while rest := file.readline(MAX_LINE):
                if rest.endswith("\n"):
                    break
            yield line, _too_long(MAX_LINE)
        elif text.strip():
            yield line, _of_line(text)


def _of_line(text: str) -> Any:
    """The value of a line, a comma after it left out; RecordError where there is none."""
    value = _parsed(text)
    found = _whole(text) if isinstance(value, RecordError) else None
    return value if found is None else found


def _after(text: str, file: TextIO, line: int) -> Values:
    """What follows the end of an array, by lines.  text, line: what was read of it, and the number of its first."""
    text += file.readline(MAX_LINE)
    for number, one in enumerate(text.split("\n")):
        if one.strip():
            yield line + number, _of_line(one)
    line += text.count("\n")
    for number, value in _lines(file):
        yield line + number - 1, value


def _objects(text: str) -> Values:
    """Values one after another, with nothing but space between them."""
    if len(text) > MAX_WHOLE:
        yield 1, _too_long(MAX_WHOLE)
        return
    end, line = 0, 1
    while (at := _end_of_space(text, end)) < len(text):
        line += text.count("\n", end, at)
        try:
            value, end = json_at(text, at)
        except RecordError as error:
            yield line, error
            yield from _found_again(text[at:], line)
            return
        yield line, value
        line += text.count("\n", at, end)


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at


def _found_again(text: str, line: int) -> Values:
    """Values that fill a later line of something broken, from the margin on.  line: of the first one of the text."""
    for number, one in enumerate(text.split("\n")[1:], start=1):
        value = _whole(one)
        if value is None:
            value = _whole(one.rstrip().removesuffix("]"))
        if value is not None:
            yield line + number, value


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except RecordError as error:
        return error


def _elements(file: TextIO) -> Values:
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
                if depth <= 0:
                    where = line + buffer.count("\n", 0, match.end())
                    yield from _after(buffer[match.end() :], file, where)
                    return
                if depth == 1 and start >= 0:
                    where = line + buffer.count("\n", 0, start)
                    yield from _element(buffer[start : match.end()], where, dropped=dropped)
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
        yield from _found_again("" if dropped else buffer, line)


def _element(text: str, line: int, *, dropped: bool) -> Values:
    value = _too_long(MAX_LINE) if dropped else _parsed(text)
    yield line, value
    if isinstance(value, RecordError) and not dropped:
        yield from _found_again(text, line)


def _too_long(limit: int) -> RecordError:
    return RecordError(f"longer than {limit} characters")
