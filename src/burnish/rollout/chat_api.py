"""The chat-completions protocol as the capturing proxy speaks it: requests read and checked, answers written.

No HTTP and no state here.  What a program asks for is either done exactly, ignored by name (how tokens are drawn is the
run's business: the learner must know the distribution), or refused with an error that names the parameter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from burnish.core.errors import BurnishError
from burnish.core.message import Message, Role, TextPart
from burnish.core.sampling import SamplingParams
from burnish.core.text import clean_text
from burnish.core.tool import ToolSpec
from burnish.rollout.hygiene import clean_plain
from burnish.rollout.wire import call_from_openai, message_to_openai

CONTEXT_CODE = "context_length_exceeded"
LIMIT_CODE = "episode_limit_reached"

MAX_STOPS = 16
MAX_DEPTH = 100

_DRAWING = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "seed": None,
    "reasoning_effort": None,
    "verbosity": None,
    "parallel_tool_calls": True,
}
"""Ignored, with the value that changes nothing: the run's sampling parameters hold."""

_WITHOUT_EFFECT = frozenset(
    {"model", "store", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key"}
)
_READ = frozenset({"messages", "tools", "max_tokens", "max_completion_tokens", "stop", "stream", "stream_options"})
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "modalities": (["text"],),
    "functions": ([],),
}
"""Parameters that are not supported, with the values of them that ask for nothing."""

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}


class Refusal(BurnishError):
    """A request that is not answered, in the words of the protocol.

    `Refusal("n is 4; this proxy gives one choice", code="unsupported_parameter", param="n")`

    status: 400 unless given.  Clients of this protocol try again after 408, 409, 429 and 5xx and pass 400 on to the
    program, so nothing here is ever one of the former.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None, status: int = 400) -> None:
        self.status, self.code, self.param = status, code, param
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What a program asked for.  `ChatRequest(messages=(Message.user("hi"),))`

    Tool calls in `messages` have the ids that the program knows them by.  max_tokens: its own cap on the action, None
    for none.  stop: texts that end the action.  hides_calls: tool_choice was "none".  ignored: parameters that asked
    for another distribution than the run's.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    hides_calls: bool = False
    stream: bool = False
    include_usage: bool = False
    model: str = "policy"
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a program is told.  finish_reason: "stop", "tool_calls" or "length"; prompt_tokens: of the exact path.

    `Completion(id="rl/000012/0003/05/2", message=Message.assistant("4"), finish_reason="stop", prompt_tokens=9,
    completion_tokens=2)`
    """

    id: str
    message: Message
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """Token counts as the protocol names them."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


# -- reading ---------------------------------------------------------------------------------------------------------


def read_request(body: bytes, params: SamplingParams) -> ChatRequest:
    """The request in the body of a POST.  Raises Refusal.

    params: the run's; asking for the same is not counted as ignored.

    >>> read_request(b'{"messages": [{"role": "user", "content": "hi"}], "n": 2}', SamplingParams())
    Traceback (most recent call last):
    burnish.rollout.chat_api.Refusal: n is 2; this proxy supports only 1
    """
    data = _object(body)
    for name, value in data.items():
        if value is not None:
            _check_parameter(name, value)
    tools = _tools(data.get("tools"))
    stream_options = data.get("stream_options")
    return ChatRequest(
        messages=_messages(data.get("messages")),
        tools=tools,
        max_tokens=_max_tokens(data),
        stop=_stops(data.get("stop")),
        hides_calls=data.get("tool_choice") == "none",
        stream=data.get("stream") is True,
        include_usage=isinstance(stream_options, Mapping) and stream_options.get("include_usage") is True,
        model=data["model"] if isinstance(data.get("model"), str) else "policy",
        ignored=tuple(name for name in _DRAWING if _differs(name, data.get(name), params)),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = clean_plain(json.loads(body), max_depth=MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON that can be read: {error}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise Refusal(f"the body is a JSON object, got {type(data).__name__}", code="invalid_json")
    return data


def _check_parameter(name: str, value: Any) -> None:
    if name in _READ or name in _WITHOUT_EFFECT or name in _DRAWING:
        return
    neutral = _NEUTRAL.get(name)
    if neutral is None:
        raise Refusal(f"{name} is not supported by this proxy; leave it out", code="unsupported_parameter", param=name)
    if not any(type(value) is type(one) and value == one for one in neutral):
        allowed = " or ".join(json.dumps(one) for one in neutral)
        shown = json.dumps(value)[:80]
        raise Refusal(
            f"{name} is {shown}; this proxy supports only {allowed}", code="unsupported_parameter", param=name
        )


def _differs(name: str, value: Any, params: SamplingParams) -> bool:
    if value is None or value == "":
        return False
    run = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    return bool(value != run.get(name, _DRAWING[name]))


def _max_tokens(data: Mapping[str, Any]) -> int | None:
    caps = []
    for name in ("max_tokens", "max_completion_tokens"):
        value = data.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            _invalid(name, f"is a whole number of at least 1, got {value!r:.40}")
        caps.append(value)
    return min(caps, default=None)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops) or len(stops) > MAX_STOPS:
        _invalid("stop", f"is a text or a list of up to {MAX_STOPS} texts")
    return tuple(one for one in stops if one)


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        _invalid("tools", "is a list")
    return tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(value))


def _tool(item: Any, where: str) -> ToolSpec:
    function = item.get("function") if isinstance(item, dict) else None
    if not isinstance(function, dict) or item.get("type", "function") != "function":
        _invalid(where, 'is {"type": "function", "function": {...}}; no other kind of tool is supported')
    name, description = function.get("name"), function.get("description") or ""
    parameters = function.get("parameters")
    if not isinstance(name, str) or not name or not isinstance(description, str):
        _invalid(where, "has a name and a description that are texts")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        _invalid(f"{where}.function.parameters", "is a JSON schema of an object")
    return ToolSpec(name=name, description=description, parameters=parameters)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        _invalid("messages", "is a list of at least one message")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(value))


def _message(item: Any, where: str) -> Message:
    role = _ROLES.get(str(item.get("role"))) if isinstance(item, dict) else None
    if role is None:
        _invalid(where, f"is an object whose role is one of {', '.join(_ROLES)}")
    for name in ("function_call", "audio"):
        if item.get(name) is not None:
            _invalid(f"{where}.{name}", "is not supported")
    text = _text(item.get("content"), f"{where}.content", may_lack=role in (Role.ASSISTANT, Role.TOOL))
    if role is Role.ASSISTANT:
        return _assistant(item, text, where)
    parts = (TextPart(text=text),)
    if role is not Role.TOOL:
        return Message(role=role, parts=parts)
    call_id, name = item.get("tool_call_id"), item.get("name") or ""
    if not isinstance(call_id, str) or not isinstance(name, str):
        _invalid(where, "answers a tool call and has its tool_call_id")
    return Message(role=role, parts=parts, tool_call_id=call_id, name=name)


def _assistant(item: Mapping[str, Any], text: str, where: str) -> Message:
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list):
        _invalid(f"{where}.tool_calls", "is a list")
    read = tuple(call_from_openai(call, f"{where}.{index}") for index, call in enumerate(calls))
    for index, call in enumerate(read):
        if call.error:
            _invalid(f"{where}.tool_calls[{index}]", f"cannot be read: {call.error}")
    return Message.assistant(text or _text(item.get("refusal"), f"{where}.refusal", may_lack=True), read)


def _text(content: Any, where: str, *, may_lack: bool) -> str:
    if content is None and may_lack:
        return ""
    if isinstance(content, str):
        return clean_text(content)
    if not isinstance(content, list):
        _invalid(where, "is a text or a list of text parts")
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind == "text" else part.get("refusal") if kind == "refusal" else None
        if not isinstance(text, str):
            _invalid(f"{where}[{index}]", f"is a text part, got {kind!r:.40}; the policy here reads text only")
        texts.append(clean_text(text))
    return "".join(texts)


def _invalid(param: str, what: str) -> NoReturn:
    raise Refusal(f"{param} {what}", code="invalid_request", param=param)


# -- writing ---------------------------------------------------------------------------------------------------------


def completion_body(completion: Completion, *, model: str, created_s: int) -> dict[str, Any]:
    """The JSON of an answer in one piece."""
    choice = {
        "index": 0,
        "message": message_to_openai(completion.message) | {"refusal": None},
        "logprobs": None,
        "finish_reason": completion.finish_reason,
    }
    return _envelope(completion, "chat.completion", model, created_s) | {
        "choices": [choice],
        "usage": completion.usage,
    }


def completion_events(
    completion: Completion, *, model: str, created_s: int, include_usage: bool = False
) -> Iterator[bytes]:
    """The same answer as server-sent events: who speaks, what it says, why it ended, the usage where asked for."""
    envelope = _envelope(completion, "chat.completion.chunk", model, created_s)
    said = message_to_openai(completion.message)
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if said["content"] is not None else None}]
    if said["content"]:
        deltas.append({"content": said["content"]})
    deltas += [{"tool_calls": [{"index": index, **call}]} for index, call in enumerate(said.get("tool_calls", ()))]
    for delta in deltas:
        yield _event(envelope | {"choices": [_chunk_choice(delta, None)]})
    yield _event(envelope | {"choices": [_chunk_choice({}, completion.finish_reason)]})
    if include_usage:
        yield _event(envelope | {"choices": [], "usage": completion.usage})
    yield b"data: [DONE]\n\n"


def models_body(names: Sequence[str]) -> dict[str, Any]:
    """The JSON of the list of models."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "burnish"} for name in names]
    return {"object": "list", "data": models}


def _envelope(completion: Completion, kind: str, model: str, created_s: int) -> dict[str, Any]:
    return {"id": f"chatcmpl-{completion.id}", "object": kind, "created": created_s, "model": model}


def _chunk_choice(delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=True).encode() + b"\n\n"
