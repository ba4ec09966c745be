"""Chat messages with tool calls, as OpenAI, Hugging Face datasets, Inspect and tau-bench write them.

Lost on the way in: log-probabilities, usage, annotations, audio and image bytes (a part that is no text becomes
"[type]").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from burnish.diagnosis.plain import (
    RecordError,
    bounded,
    listed,
    mapping,
    name_of,
    parse_json,
    real,
    whole,
    worded,
)
from burnish.diagnosis.record import Call, Item, Record, Reference, Tool

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "environment": "tool",
    "grader": "system",
    "autograder": "system",
    "scorer": "system",
    "harness": "system",
    "runner": "system",
}


def role_of(name: Any) -> str:
    """One of the four roles; raises RecordError for a role that is none of them.

    >>> role_of("human"), role_of("Developer")
    ('user', 'system')
    """
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) and len(name) < 40 else None
    if role is None:
        raise RecordError(f"unknown role {str(name)[:40]!r}; known are {', '.join(sorted(_ROLES))}")
    return role


def call_of(data: Any) -> Call:
    """A call in OpenAI's form (`function.arguments` is text), or flat with `function`/`name` and an object."""
    data = mapping(data, "a tool call")
    inner = data.get("function")
    spec: Mapping[str, Any] = inner if isinstance(inner, Mapping) else data
    name = name_of(spec.get("name")) or name_of(inner) or name_of(data.get("tool_name"))
    given = next((spec[key] for key in ("arguments", "args", "input", "parameters") if key in spec), None)
    arguments, raw = arguments_of(given)
    return Call(id=name_of(data.get("id") or data.get("tool_call_id")), name=name, arguments=arguments, raw=raw)


def arguments_of(given: Any) -> tuple[dict[str, Any] | None, str]:
    """(arguments, "") of an object or its text; (None, the text) where it is no JSON object.

    >>> arguments_of('{"a": 1}'), arguments_of("{a}")
    (({'a': 1}, ''), (None, '{a}'))
    """
    if given is None or given == "":
        return {}, ""
    try:
        value = bounded(parse_json(given) if isinstance(given, str) else given)
    except RecordError:
        return None, worded(given) if isinstance(given, str) else "unreadable"
    return (value, "") if isinstance(value, dict) else (None, worded(given))


def item_of(data: Any, position: int) -> Item:
    """One message; position: its number from 1 where it brings none of its own."""
    data = mapping(data, f"message {position}")
    role = role_of(data.get("role", data.get("from")))
    calls = [call_of(call) for call in listed(data.get("tool_calls"), "tool_calls")]
    if isinstance(data.get("function_call"), Mapping):
        calls.append(call_of(data["function_call"]))
    text = worded(data.get("content", data.get("value")))
    reason = data.get("reasoning_content") or data.get("reasoning")
    if isinstance(reason, str) and role == "assistant" and not text and not calls:
        text = worded(reason)
    error = data.get("error", data.get("is_error")) if role == "tool" else None
    index = whole(data.get("index"))
    return Item(
        index=position if index is None else index,
        role=role,
        text=text,
        calls=tuple(calls) if role == "assistant" else (),
        call_id=name_of(data.get("tool_call_id")) if role == "tool" else "",
        name=(name_of(data.get("name")) or name_of(data.get("function"))) if role == "tool" else "",
        is_error=None if error is None else bool(error),
        agent=name_of(data.get("name")) if role != "tool" else "",
    )


def items_of(messages: Any) -> tuple[Item, ...]:
    """Messages in order; their own `index` counts only where it is strictly ascending throughout."""
    rows = listed(messages, "messages")
    items = [item_of(row, position) for position, row in enumerate(rows, start=1)]
    if any(a.index >= b.index for a, b in pairwise(items)):
        return tuple(_renumbered(item, position) for position, item in enumerate(items, start=1))
    return tuple(items)


def _renumbered(item: Item, index: int) -> Item:
    return replace(item, index=index)


def tools_of(value: Any) -> tuple[Tool, ...]:
    """Tool schemas in OpenAI's, Anthropic's or a flat form, or as JSON text; what cannot be read is left out."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except RecordError:
            return ()
    tools = []
    for row in value if isinstance(value, list) else ():
        spec = row.get("function") if isinstance(row, Mapping) and isinstance(row.get("function"), Mapping) else row
        if not isinstance(spec, Mapping) or not name_of(spec.get("name")):
            continue
        parameters: Any = next((spec[k] for k in ("parameters", "input_schema", "inputSchema") if k in spec), {})
        try:
            schema = bounded(parameters)
        except RecordError:
            schema = {}
        tools.append(
            Tool(
                name=name_of(spec["name"]),
                description=worded(spec.get("description"))[:10_000],
                parameters=schema if isinstance(schema, dict) else {},
            )
        )
    return tuple(tools[:1000])


def passed_of(data: Mapping[str, Any]) -> tuple[float | None, bool | None]:
    """(reward, passed) by the usual names; a reward of 1 or more, or a true flag, is a pass."""
    for key in ("passed", "success", "correct", "is_correct"):
        if isinstance(data.get(key), bool):
            return real(data.get("reward")), data[key]
    for key in ("reward", "score"):
        value = real(data.get(key))
        if value is not None:
            return value, value >= 1.0 - 1e-9
    return None, None


def reference_of(data: Any) -> Reference | None:
    """Gold actions `[{name, kwargs|arguments}]`, outputs and instruction under the names that tau-bench uses."""
    if not isinstance(data, Mapping):
        return None
    actions = data.get("actions")
    calls: tuple[Call, ...] | None = None
    if isinstance(actions, list):
        calls = tuple(_action(row) for row in actions[:1000] if isinstance(row, Mapping))
    outputs = data.get("outputs")
    texts = tuple(worded(text) for text in outputs[:100]) if isinstance(outputs, list) else ()
    instruction = worded(data.get("instruction")) if isinstance(data.get("instruction"), str) else ""
    state = data.get("state")
    if calls is None and not texts and not instruction and not isinstance(state, Mapping):
        return None
    return Reference(
        actions=calls,
        outputs=texts,
        instruction=instruction,
        state=bounded(state) if isinstance(state, Mapping) else None,
    )


def task_of(data: Mapping[str, Any]) -> Any:
    """The hidden task of a record: under `reference`, `info.task` as tau-bench has it, or `task`."""
    info = data.get("info")
    inner = info.get("task") if isinstance(info, Mapping) else None
    given = (data.get("reference"), inner, data.get("task"))
    return next((found for found in given if isinstance(found, Mapping)), None)


def _action(row: Mapping[str, Any]) -> Call:
    arguments, raw = arguments_of(row.get("kwargs", row.get("arguments")))
    return Call(name=name_of(row.get("name")), arguments=arguments, raw=raw)


def read_chat(row: Any, position: int) -> Record:
    """A row of chat JSONL: `messages` (or `conversations`, `prompt` + `completion`, `chosen`), `tools`, any reward; or
    the list of messages alone."""
    data = mapping({"messages": row} if isinstance(row, list) else row, "a record")
    key = next((k for k in ("messages", "conversations", "traj", "trajectory", "chosen") if k in data), "")
    messages = data.get(key)
    if not key and isinstance(data.get("prompt"), list):
        completion = data.get("completion")
        messages = data["prompt"] + (completion if isinstance(completion, list) else [])
    if messages is None:
        raise RecordError("no messages: none of messages, conversations, traj, trajectory, prompt stands in it")
    items = items_of(messages)
    if not items:
        raise RecordError("it has no messages")
    reward, passed = passed_of(data)
    return Record(
        id=next((name for k in ("id", "trajectory_id", "task_id", "uuid") if (name := name_of(data.get(k)))), "")
        or str(position),
        task_id=name_of(data.get("task_id")),
        items=items,
        source="chat",
        tools=tools_of(data.get("tools")),
        reference=reference_of(task_of(data)),
        reward=reward,
        passed=passed,
        outcome=name_of(data.get("outcome")),
    )


def read_tau(row: Any, position: int) -> Record:
    """A tau-bench result: `traj`, `reward`, and the hidden task with gold actions under `info.task`."""
    data = mapping(row, "a record")
    items = items_of(data.get("traj", data.get("messages")))
    if not items:
        raise RecordError("traj has no messages")
    reward = real(data.get("reward"))
    trial = whole(data.get("trial"))
    task_id = name_of(data.get("task_id")) or str(position)
    return Record(
        id=name_of(data.get("trajectory_id")) or task_id,
        task_id=task_id,
        items=items,
        source="tau",
        tools=tools_of(data.get("tools")),
        reference=reference_of(task_of(data)),
        reward=reward,
        passed=None if reward is None else reward >= 1.0 - 1e-9,
        extra={} if trial is None else {"trial": trial},
    )


def write_chat(record: Record) -> dict[str, Any]:
    """The record as a row of OpenAI chat JSONL; labels, agents' names of tool results and source indices are lost."""
    row: dict[str, Any] = {"id": record.id, "messages": [_message(item) for item in record.items]}
    if record.task_id:
        row["task_id"] = record.task_id
    if record.tools:
        row["tools"] = [write_tool(tool) for tool in record.tools]
    if record.reward is not None:
        row["reward"] = record.reward
    if record.passed is not None:
        row["passed"] = record.passed
    if record.outcome:
        row["outcome"] = record.outcome
    if record.reference is not None:
        row["reference"] = write_reference(record.reference)
    return row


def write_tool(tool: Tool) -> dict[str, Any]:
    """OpenAI's form of a tool."""
    spec = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": spec}


def write_reference(reference: Reference) -> dict[str, Any]:
    """The form that `reference_of` reads."""
    row: dict[str, Any] = {}
    if reference.actions is not None:
        row["actions"] = [{"name": call.name, "kwargs": arguments_json(call)} for call in reference.actions]
    if reference.outputs:
        row["outputs"] = list(reference.outputs)
    if reference.instruction:
        row["instruction"] = reference.instruction
    if reference.state is not None:
        row["state"] = dict(reference.state)
    return row


def arguments_json(call: Call) -> Any:
    """The arguments as an object, or the text that could not be read."""
    return dict(call.arguments) if call.arguments is not None else call.raw


def _message(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"role": item.role, "content": item.text}
    if item.agent:
        row["name"] = item.agent
    if item.calls:
        row["tool_calls"] = [write_call(call) for call in item.calls]
    if item.role == "tool":
        row |= {"tool_call_id": item.call_id, "name": item.name}
        if item.is_error is not None:
            row["is_error"] = item.is_error
    return row


def write_call(call: Call) -> dict[str, Any]:
    """OpenAI's form of a call: the arguments are JSON text."""
    arguments = call.raw if call.arguments is None else json.dumps(dict(call.arguments), ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
