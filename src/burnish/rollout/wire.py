"""The chat-completions form of messages and tool calls, written and read: for endpoints that are asked and for the
proxy that is one."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.message import ImagePart, Message, Part, Role, TextPart, ToolCall
from burnish.core.text import clean_json, clean_text


def message_to_openai(message: Message, load_image: Callable[[ImagePart], bytes] | None = None) -> dict[str, Any]:
    """The chat-completions form of a message.

    >>> message_to_openai(Message.user("hi"))
    {'role': 'user', 'content': 'hi'}

    Raises ConfigError for an image where `load_image` is None.
    """
    if message.role is Role.TOOL:
        return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.text}
    if message.role is Role.ASSISTANT:
        data: dict[str, Any] = {"role": "assistant", "content": message.text or None}
        if message.tool_calls:
            data["tool_calls"] = [_call_to_openai(call) for call in message.tool_calls]
        elif not message.text:
            data["content"] = ""
        return data
    if message.images:
        return {"role": message.role.value, "content": [_part_to_openai(part, load_image) for part in message.parts]}
    return {"role": message.role.value, "content": message.text}


def message_from_openai(data: Mapping[str, Any], *, turn: int = 0) -> Message:
    """The assistant message in a completion; a call that cannot be read has `ToolCall.error` set.

    turn: index of this action in the episode, used to name calls that came without an id.

    >>> message_from_openai({"content": "4"}).text
    '4'

    Raises TypeError or ValueError where `data` is no such message.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"a message is an object, got {type(data).__name__}")
    content = data.get("content") or data.get("refusal") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise TypeError(f"the content of a message is text, got {type(content).__name__}")
    calls = data.get("tool_calls") or []
    if not isinstance(calls, list):
        raise TypeError(f"tool_calls is a list, got {type(calls).__name__}")
    return Message.assistant(
        clean_text(content), tuple(call_from_openai(call, f"call_{turn}_{i}") for i, call in enumerate(calls))
    )


def _call_to_openai(call: ToolCall) -> dict[str, Any]:
    # A call that could not be read goes back without arguments: servers reject a history with invalid JSON in it.
    function = {"name": call.name or "unreadable", "arguments": json.dumps(dict(call.arguments), allow_nan=False)}
    return {"id": call.id, "type": "function", "function": function}


def call_from_openai(data: Any, default_id: str) -> ToolCall:
    """One entry of `tool_calls`; what cannot be read is said in `ToolCall.error`."""
    if not isinstance(data, Mapping):
        return ToolCall(id=default_id, name="", error="the call is not an object")
    given_id, function = data.get("id"), data.get("function")
    call_id = clean_text(given_id) if isinstance(given_id, str) and given_id else default_id
    if not isinstance(function, Mapping):
        return ToolCall(id=call_id, name="", error="the call has no function")
    given_name = function.get("name")
    name = clean_text(given_name) if isinstance(given_name, str) else ""
    if not name:
        return ToolCall(id=call_id, name="", error="the call has no name")
    try:
        arguments = _arguments(function.get("arguments"))
    except (ValueError, RecursionError) as error:
        return ToolCall(id=call_id, name=name, error=f"the arguments cannot be read: {error}")
    return ToolCall(id=call_id, name=name, arguments=arguments)


def _arguments(raw: Any) -> dict[str, Any]:
    """Arguments as an object.  Raises ValueError for anything else, RecursionError for absurd nesting."""
    if raw in (None, ""):
        return {}
    # Some servers send the object itself instead of its text; it must be as strict.
    value = strict_json(raw if isinstance(raw, str) else json.dumps(raw, allow_nan=False))
    if not isinstance(value, dict):
        raise ValueError(f"arguments are a JSON object, got {type(value).__name__}")
    return value


def strict_json(text: str) -> Any:
    """JSON without what Python's parser lets pass: NaN, infinities, repeated keys, lone surrogates."""

    def no_constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def finite(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise ValueError(f"{literal} is too large")
        return value

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is repeated")
        return dict(pairs)

    return clean_json(json.loads(text, parse_constant=no_constant, parse_float=finite, object_pairs_hook=unique))


def _part_to_openai(part: Part, load_image: Callable[[ImagePart], bytes] | None) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if load_image is None:
        raise ConfigError(f"a message holds image {part.sha256[:12]}; give load_image to send images")
    data = base64.b64encode(load_image(part)).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{data}"}}
