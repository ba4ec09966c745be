"""What enters a trajectory is made storable once, at the boundary: text without lone surrogates, plain finite JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from burnish.core.hashing import canonical_json
from burnish.core.message import Message, Part, TextPart, ToolCall
from burnish.core.text import clean_text

MAX_ARGUMENT_DEPTH = 32
MAX_STATE_DEPTH = 200


def clean_message(message: Message) -> Message:
    r"""The message as everything downstream can store it.

    Text loses lone surrogates and NUL.  A tool call whose arguments are no plain finite JSON, or are nested more than
    32 deep, becomes an unreadable call: `error` says why and the arguments are empty.

    >>> clean_message(Message.user("a\x00")).text
    'a\ufffd'
    """
    if not message.tool_calls and all(isinstance(part, TextPart) and _is_clean(part.text) for part in message.parts):
        return message
    parts = tuple([_clean_part(part) for part in message.parts])
    return Message(
        role=message.role,
        parts=parts,
        tool_calls=tuple([_clean_call(call) for call in message.tool_calls]),
        tool_call_id=message.tool_call_id,
        name=message.name,
        is_error=message.is_error,
    )


def _is_clean(text: str) -> bool:
    return clean_text(text) is text


def _clean_part(part: Part) -> Part:
    if not isinstance(part, TextPart) or _is_clean(part.text):
        return part
    return TextPart(text=clean_text(part.text))


def _clean_call(call: ToolCall) -> ToolCall:
    error, arguments = call.error, {}
    try:
        arguments = clean_plain(call.arguments)
    except ValueError as problem:
        error = error or f"arguments: {problem}"
    return ToolCall(id=clean_text(call.id), name=clean_text(call.name), arguments=arguments, error=clean_text(error))


def clean_plain(value: Any, *, max_depth: int = MAX_ARGUMENT_DEPTH) -> Any:
    r"""A copy of a JSON value with clean text.  Raises ValueError where it is not plain, finite, or is too deep.

    >>> clean_plain({"a": ["x\x00", 1.5, None]})
    {'a': ['x\ufffd', 1.5, None]}
    """
    if max_depth < 0:
        raise ValueError("nested too deep")
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return value
    if isinstance(value, Mapping):
        return {_clean_key(key): clean_plain(item, max_depth=max_depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_plain(item, max_depth=max_depth - 1) for item in value]
    raise ValueError(f"a {type(value).__name__} has no JSON form")


def _clean_key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"names must be text, got {type(key).__name__}")
    return clean_text(key)


def stored_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A final state as it will be read back from disk: plain JSON, a copy.

    Raises TypeError or ValueError where it has no such form.

    >>> stored_state({"rows": (1, 2)})
    {'rows': [1, 2]}
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"the final state is a mapping, got {type(state).__name__}")
    plain: Mapping[str, Any] = clean_plain(json.loads(canonical_json(state)), max_depth=MAX_STATE_DEPTH)
    return plain
