"""Reading JSON Lines that somebody else wrote: nothing in a file may hang, crash or slip through."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.text import clean_text

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a file: its object, or why it has none.  `Line(number=3, value={"prompt": "2 + 2?"})`"""

    number: int
    value: dict[str, Any] | None = None
    problem: str = ""


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a JSONL file, blank ones left out; texts are free of lone surrogates and NUL.

    A line that is no JSON object, repeats a key, holds NaN or a number out of range, nests deeper than 64 or is longer
    than 16 MiB comes with its `problem`.  Raises TaskError where the file cannot be read at all.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                whole = raw
                while len(whole) > MAX_LINE_BYTES and not whole.endswith(b"\n"):
                    whole = file.readline(MAX_LINE_BYTES + 1) or b"\n"
                if len(raw) > MAX_LINE_BYTES:
                    yield Line(number=number, problem=f"the line is longer than {MAX_LINE_BYTES} bytes")
                elif raw.strip():
                    yield _line(number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from error


def _line(number: int, raw: bytes) -> Line:
    try:
        value = strict_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number=number, problem=f"not UTF-8 (byte {error.start} of the line)")
    except json.JSONDecodeError as error:
        return Line(number=number, problem=f"not JSON ({error.msg} at column {error.colno})")
    except ValueError as error:
        return Line(number=number, problem=str(error))
    if not isinstance(value, dict):
        return Line(number=number, problem=f"expected an object {{...}}, got {type(value).__name__}")
    return Line(number=number, value=value)


def strict_json(text: str) -> Any:
    """Parse JSON; ValueError for what `json.loads` lets pass: NaN, infinities, repeated keys; and for deep nesting."""
    _check_depth(text)
    return json.loads(
        text, parse_constant=_no_constant, parse_float=_finite, parse_int=_bounded_int, object_pairs_hook=_unique
    )


def _check_depth(text: str) -> None:
    """Before parsing, since the parser's own answer to deep nesting is a RecursionError."""
    depth = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif char in "]}":
            depth -= 1


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 400:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        result[clean_text(key)] = _cleaned(value)
    return result


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return value
