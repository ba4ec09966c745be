"""Hermes-style tool calls: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Format as introduced by the Hermes function-calling models and used by Qwen (2.5 and 3).
Whatever text a model samples, reading it is total: a call that cannot be read comes back with
`ToolCall.error` set and its text stays in the message.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from burnish.core.message import ToolCall
from burnish.core.text import clean_json, json_depth

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
THINK_CLOSE = "</think>"

MAX_CALL_CHARS = 65_536
MAX_DEPTH = 32
MAX_INTEGER_CHARS = 100

_HERMES_MARKS = re.compile("|".join(re.escape(mark) for mark in (CALL_OPEN, CALL_CLOSE, THINK_CLOSE)))
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,64})"')


class CallStyle(StrEnum):
    """How the JSON of a call is laid out; the content is the same.

    compact: `<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>`, our own template.
    spaced: the same with a newline inside each marker and after the text, and spaces after `:` and `,`, as Qwen and
    Hermes models were trained on.
    """

    COMPACT = "compact"
    SPACED = "spaced"


def format_call(call: ToolCall, *, style: CallStyle = CallStyle.COMPACT, marks: re.Pattern[str] = _HERMES_MARKS) -> str:
    r"""The text of one call.

    `marks` are strings with a meaning to the tokenizer; inside the JSON their first character is written as a \u
    escape, so that no argument value can end the call or the turn.  Raises ValueError where the arguments hold NaN or
    infinity, TypeError where they are not JSON-able.

    >>> format_call(ToolCall(id="call_0", name="add", arguments={"a": 1}))
    '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>'
    """
    compact = style is CallStyle.COMPACT
    body = json.dumps(
        {"name": call.name, "arguments": dict(call.arguments)},
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":") if compact else (", ", ": "),
    )
    while marks.search(body):
        body = marks.sub(_escape_first, body)
    return f"{CALL_OPEN}{body}{CALL_CLOSE}" if compact else f"{CALL_OPEN}\n{body}\n{CALL_CLOSE}"


def _escape_first(match: re.Match[str]) -> str:
    mark = match.group()
    return f"\\u{ord(mark[0]):04x}{mark[1:]}"


def format_action(
    text: str,
    calls: Sequence[ToolCall],
    *,
    style: CallStyle = CallStyle.COMPACT,
    marks: re.Pattern[str] = _HERMES_MARKS,
) -> str:
    """The text of an assistant turn, without its end marker.  Calls with an `error` are skipped: `text` holds them.

    >>> format_action("Let me see.", [ToolCall(id="call_0", name="now")])
    'Let me see.<tool_call>{"name":"now","arguments":{}}</tool_call>'
    """
    blocks = [format_call(call, style=style, marks=marks) for call in calls if not call.error]
    if style is CallStyle.COMPACT:
        return text + "".join(blocks)
    return "\n".join([text, *blocks] if text else blocks)


def parse_action(text: str, *, style: CallStyle = CallStyle.COMPACT) -> tuple[str, tuple[ToolCall, ...]]:
    r"""Split the text of an assistant turn into plain text and tool calls; total, any text will do.

    The text keeps everything outside readable calls, unreadable calls included; whitespace alone between calls goes.
    Calls inside a finished `<think>` block are thoughts, not calls.  Ids are "call_0", "call_1", ... in order.

    >>> text, calls = parse_action('Hm.<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>')
    >>> text, calls[0].name, dict(calls[0].arguments)
    ('Hm.', 'add', {'a': 1})
    >>> parse_action('<tool_call>{oops}</tool_call>')[1][0].error.startswith('invalid JSON')
    True
    """
    start = text.find(CALL_OPEN, text.rfind(THINK_CLOSE) + 1)
    if start < 0:
        return text, ()
    lead = text[:start]
    if style is CallStyle.SPACED and lead.endswith("\n"):
        lead = lead[:-1]
    kept = [lead]
    calls: list[ToolCall] = []
    while start >= 0:
        end = text.find(CALL_CLOSE, start)
        raw = text[start + len(CALL_OPEN) : end if end >= 0 else None]
        call = _read_call(raw, f"call_{len(calls)}", closed=end >= 0)
        calls.append(call)
        after = end + len(CALL_CLOSE) if end >= 0 else len(text)
        if call.error:
            kept.append(text[start:after])
        start = text.find(CALL_OPEN, after)
        gap = text[after : start if start >= 0 else None]
        if gap.strip():
            kept.append(gap)
    return "".join(kept), tuple(calls)


def _read_call(raw: str, call_id: str, *, closed: bool) -> ToolCall:
    try:
        if not closed:
            raise ValueError(f"the call is not closed by {CALL_CLOSE}")
        name, arguments = _checked(_loads(raw))
    except ValueError as error:
        found = _NAME.search(raw[:MAX_CALL_CHARS])
        return ToolCall(id=call_id, name=found.group(1) if found else "", error=str(error))
    return ToolCall(id=call_id, name=name, arguments=arguments)


def _checked(data: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(data, dict):
        raise ValueError(f"a call must be a JSON object, got {type(data).__name__}")
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError('a call needs a "name" that is a non-empty string')
    arguments = data.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError(f'"arguments" must be a JSON object, got {type(arguments).__name__}')
    return name, arguments


def _loads(raw: str) -> Any:
    """Guarded JSON: bounded size, depth and integers; no NaN, infinity, repeated keys or lone surrogates."""
    if len(raw) > MAX_CALL_CHARS:
        raise ValueError(f"the call is longer than {MAX_CALL_CHARS} characters")
    if raw.count("{") + raw.count("[") > MAX_DEPTH and json_depth(raw) > MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH}")
    try:
        data = _DECODER.decode(raw.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON: {error.msg} at character {error.pos}") from error
    return clean_json(data) if "\\u" in raw else data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"repeated key {repeated[:64]!r}")
    return data


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_CHARS:
        raise ValueError(f"integer of {len(digits)} characters")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"number {digits[:32]} is not finite")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_refuse)
