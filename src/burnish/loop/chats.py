"""A user's chats as demonstrations: JSONL with one {"messages": [...]} a line, in the OpenAI form."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.core.errors import RenderError, TaskError
from burnish.core.hashing import content_hash
from burnish.core.message import Message, Role, TextPart, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.sampling import Renderer, Sample
from burnish.core.tool import ToolSpec
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.rollout.graph import GraphBuilder
from burnish.tasks.lines import read_lines

MAX_BAD_SHARE = 0.1
log = logging.getLogger(__name__)


def read_chats(path: str, renderer: Renderer) -> list[Trajectory]:
    """One demonstration for each usable line; every assistant turn is an action.

    A malformed line is reported by file, line and reason, and the rest goes on.  Raises TaskError where no line or
    fewer than nine in ten are usable.
    """
    found: list[Trajectory] = []
    problems: list[str] = []
    for line in read_lines(Path(path)):
        try:
            if line.value is None:
                raise ValueError(line.problem)
            found.append(_demonstration(line.value, f"sft/chat/{line.number:06d}", renderer))
        except (ValueError, KeyError, TypeError, RenderError) as error:
            problems.append(f"{path}:{line.number}: {error}")
    for problem in problems[:5]:
        log.warning("left out %s", problem)
    if not found or len(problems) > MAX_BAD_SHARE * (len(found) + len(problems)):
        listed = "; ".join(problems[:5]) or "the file is empty"
        raise TaskError(f"{path}: {len(problems)} of {len(found) + len(problems)} lines are unusable: {listed}")
    return found


def _demonstration(row: Mapping[str, Any], name: str, renderer: Renderer) -> Trajectory:
    items = row.get("messages")
    if not isinstance(items, list) or not items:
        raise ValueError('expected {"messages": [...]} with at least one message')
    messages = [_message(item) for item in items]
    if messages[0].role is Role.ASSISTANT or not any(m.role is Role.ASSISTANT for m in messages):
        raise ValueError("a chat starts with another role and holds at least one assistant message")
    graph = _graph(messages, tuple(_tool(item) for item in row.get("tools") or ()), renderer)
    return Trajectory(
        id=name,
        task_id=name,
        task_hash=content_hash(items),
        group_id=name,
        sample_index=0,
        seed=0,
        nodes=tuple(graph.nodes),
        outcome=COMPLETED,
        answer=next(m.text for m in reversed(messages) if m.role is Role.ASSISTANT),
    )


def _graph(messages: Sequence[Message], tools: Sequence[ToolSpec], renderer: Renderer) -> GraphBuilder:
    graph = GraphBuilder()
    said: list[Message] = []
    for message in messages:
        if message.role is not Role.ASSISTANT:
            said.append(message)
            continue
        if not graph.nodes:
            graph.add_prompt(said, renderer.open(said, tools))
        elif said:
            graph.add_observation(said, renderer.extend(graph.messages, said, tools))
        else:
            raise ValueError("two assistant messages follow each other")
        said = []
        ids = renderer.encode_action(message)
        logprobs = array("f", bytes(4 * len(ids)))
        graph.add_action(message, Sample(token_ids=ids, logprobs=logprobs, version=NO_VERSION))
    return graph


def _message(item: Any) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"a message is an object, got {type(item).__name__}")
    role = Role(item["role"])
    content = item.get("content") or ""
    if not isinstance(content, str):
        raise ValueError("message content must be text")
    calls = tuple(_call(call, index) for index, call in enumerate(item.get("tool_calls") or ()))
    return Message(
        role=role,
        parts=(TextPart(text=content),) if content else (),
        tool_calls=calls,
        tool_call_id=str(item.get("tool_call_id", "")) if role is Role.TOOL else "",
        name=str(item.get("name", "")) if role is Role.TOOL else "",
    )


def _call(item: Any, index: int) -> ToolCall:
    function = item.get("function", item)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments of tool call {function.get('name')!r} must be an object")
    return ToolCall(id=str(item.get("id") or f"call_{index}"), name=str(function["name"]), arguments=dict(arguments))


def _tool(item: Any) -> ToolSpec:
    function = item.get("function", item)
    return ToolSpec(
        name=str(function["name"]),
        description=str(function.get("description", "")),
        parameters=function.get("parameters") or {"type": "object", "properties": {}},
    )
