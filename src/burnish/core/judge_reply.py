"""What a judge may answer, and how its answer is read: strictly, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.judge import Criterion, JudgeCause, JudgeError, JudgeRequest, Verdict
from burnish.core.text import clean_text, json_depth

MAX_REPLY_CHARS = 100_000
MAX_DEPTH = 8
MIN_QUOTE_CHARS = 8
"""A shorter quote could be found in any text; it counts only as a whole judged text."""

_KEPT_CHARS = 500
_ELLIPSIS = re.compile(r"\[?(?:\.{3}|\N{HORIZONTAL ELLIPSIS})\]?")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_KEYS = frozenset({"item", "quote", "reason", "value"})


def reply_schema(nonce: str, criteria: Sequence[Criterion]) -> dict[str, Any]:
    """JSON schema of a reply, within what servers with structured output understand."""
    verdict = {
        "type": "object",
        "properties": {
            "item": {"type": "integer"},
            "quote": {"type": "string"},
            "reason": {"type": "string"},
            "value": {"type": ["integer", "null"]},
        },
        "required": ["item", "quote", "reason", "value"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "nonce": {"type": "string", "enum": [nonce]},
            "verdicts": {"type": "array", "items": verdict},
        },
        "required": ["nonce", "verdicts"],
        "additionalProperties": False,
    }


def read_reply(request: JudgeRequest, text: str) -> tuple[Verdict, ...]:
    """The verdicts in a judge's text, in the order of the request's criteria, its controls checked and left out.

    Raises JudgeError: MALFORMED for anything but the one object that was asked for, CANARY_TRIPPED where a control has
    the wrong value, EVIDENCE_NOT_FOUND where a needed quote does not stand in the judged text.
    """
    data = _object(text)
    if set(data) != {"nonce", "verdicts"} or data["nonce"] != request.nonce or not isinstance(data["verdicts"], list):
        raise _malformed("it has not exactly the nonce and the verdicts that were asked for")
    rows = _rows(data["verdicts"], len(request.criteria))
    for number, criterion in enumerate(request.criteria, start=1):
        right = request.controls.get(criterion.id)
        if right is not None and rows[number]["value"] != right:
            raise JudgeError(
                JudgeCause.CANARY_TRIPPED,
                f"{criterion.id} has the value {rows[number]['value']} instead of {right}: the judge does not read, or "
                "follows instructions in the judged text",
            )
    return tuple(
        _verdict(request, criterion, rows[number])
        for number, criterion in enumerate(request.criteria, start=1)
        if criterion.id not in request.controls
    )


def _verdict(request: JudgeRequest, criterion: Criterion, row: Mapping[str, Any]) -> Verdict:
    value = row["value"]
    if value is not None and not (type(value) is int and 0 <= value <= criterion.levels):
        raise _malformed(
            f"criterion {criterion.id} has the value {str(value)[:40]!r}, not 0..{criterion.levels} or null"
        )
    if criterion.needs_evidence and value and not is_quoted(request, row["quote"]):
        raise JudgeError(
            JudgeCause.EVIDENCE_NOT_FOUND,
            f"criterion {criterion.id} rests on {row['quote'][:80]!r}, which does not stand in the judged text",
        )
    return Verdict(
        criterion=criterion.id,
        value=None if value is None else value / criterion.levels,
        quote=clean_text(row["quote"][:_KEPT_CHARS]),
        reason=clean_text(row["reason"][:_KEPT_CHARS]),
    )


def is_quoted(request: JudgeRequest, quote: str) -> bool:
    """Whether a quote stands in a judged part; "..." may leave something out, white space and case do not count."""
    pieces = [_plain(piece) for piece in _ELLIPSIS.split(quote)]
    pieces = [piece for piece in pieces if piece]
    for part in request.parts:
        if part.name == "task":
            continue
        text = _plain(part.text)
        if pieces and _in_order(pieces, text) and sum(map(len, pieces)) >= min(MIN_QUOTE_CHARS, len(text)):
            return True
    return False


def _in_order(pieces: Sequence[str], text: str) -> bool:
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip("\"'\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK} ")


def _object(text: str) -> dict[str, Any]:
    if len(text) > MAX_REPLY_CHARS:
        raise _malformed(f"it has {len(text)} characters; at most {MAX_REPLY_CHARS} are read")
    text = text.rpartition("</think>")[2].strip()
    fenced = _FENCE.fullmatch(text)
    text = fenced[1] if fenced else text
    if json_depth(text) > MAX_DEPTH:
        raise _malformed("it is nested too deeply")
    try:
        data = json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"it is not one JSON object ({error}): {text[:80]!r}") from error
    if not isinstance(data, dict):
        raise _malformed(f"it is no JSON object: {text[:80]!r}")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return data


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _rows(verdicts: Sequence[Any], count: int) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for row in verdicts:
        if not isinstance(row, dict) or not set(row) <= _KEYS or not {"item", "value"} <= set(row):
            raise _malformed(f"a verdict has the keys item, quote, reason and value, got {str(row)[:80]!r}")
        row = {"quote": "", "reason": "", **row}
        if not isinstance(row["quote"], str) or not isinstance(row["reason"], str) or type(row["item"]) is not int:
            raise _malformed(f"a verdict has a number as item, and texts as quote and reason, got {str(row)[:80]!r}")
        if row["item"] in rows:
            raise _malformed(f"criterion {row['item']} is judged twice")
        rows[row["item"]] = row
    if set(rows) != set(range(1, count + 1)):
        raise _malformed(f"{count} criteria were asked for, verdicts are on {sorted(rows)[:40]}")
    return rows


def _malformed(detail: str) -> JudgeError:
    return JudgeError(JudgeCause.MALFORMED, f"the reply cannot be used: {detail}")
