"""A user's chats as demonstrations: JSONL with one {"messages": [...]} a line, in the OpenAI form, images included."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.core.content import read_content
from burnish.core.errors import RenderError, TaskError
from burnish.core.hashing import content_hash
from burnish.core.images import ImageError
from burnish.core.message import ImagePart, Message, Role, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.sampling import Renderer, Sample, opened
from burnish.core.tool import ToolSpec
from burnish.core.trajectory import NO_VERSION, Trajectory
from burnish.rollout.graph import GraphBuilder
from burnish.tasks.lines import read_lines, strict_json

MAX_BAD_SHARE = 0.1
_LISTED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Chats:
    """What a file of chats holds.  `Chats(trajectories=(...), problems=("chats.jsonl:7: not JSON (...)",))`

    problems: one "file:line: reason" for each line that was left out.
    """

    trajectories: tuple[Trajectory, ...]
    problems: tuple[str, ...]


def read_chats(path: str, renderer: Renderer, *, max_tokens: int) -> Chats:
    """One demonstration for each usable line; every assistant turn is an action.

    `{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}`, with `tool_calls`,
    messages of role tool, and `tools` (schemas) as in the OpenAI form; images as `core.content` reads them, which go on
    the shelf.  A malformed line, or a chat of more than `max_tokens`, is left out and reported.  Raises TaskError where
    no line or fewer than nine in ten are usable.
    """
    found: list[Trajectory] = []
    problems: list[str] = []
    for line in read_lines(Path(path)):
        try:
            if line.value is None:
                raise ValueError(line.problem)
            chat = _demonstration(line.value, f"sft/chat/{line.number:06d}", renderer, Path(path))
            longest = max(sum(len(chat.nodes[i].token_ids) for i in chat.path(leaf)) for leaf in chat.leaves())
            if longest > max_tokens:
                raise ValueError(f"{longest} tokens, and limits.max_context_tokens is {max_tokens}")
            found.append(chat)
        except (ValueError, RenderError, ImageError) as error:
            problems.append(f"{path}:{line.number}: {error}")
    if not found or len(problems) > MAX_BAD_SHARE * (len(found) + len(problems)):
        listed = "; ".join(problems[:_LISTED]) or "the file is empty"
        raise TaskError(f"{path}: {len(problems)} of {len(found) + len(problems)} lines are unusable: {listed}")
    return Chats(trajectories=tuple(found), problems=tuple(problems))


def _demonstration(row: Mapping[str, Any], name: str, renderer: Renderer, path: Path) -> Trajectory:
    items = row.get("messages")
    if not isinstance(items, list) or not items:
        raise ValueError('expected {"messages": [...]} with at least one message')
    messages = [_message(item, path) for item in items]
    if messages[0].role is Role.ASSISTANT or not any(m.role is Role.ASSISTANT for m in messages):
        raise ValueError("a chat starts with another role and holds at least one assistant message")
    tools = tuple(_tool(item) for item in _listed(row, "tools"))
    graph = _graph(messages, tools, renderer)
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
            ids, images = opened(renderer, said, tools)
            graph.add_prompt(said, ids, images=images)
        elif said:
            graph.add_observation(said, renderer.extend(graph.messages, said, tools))
        else:
            raise ValueError("two assistant messages follow each other")
        said = []
        ids = renderer.encode_action(message)
        logprobs = array("f", bytes(4 * len(ids)))
        graph.add_action(
            message, Sample(token_ids=ids, logprobs=logprobs, versions=array("i", [NO_VERSION]) * len(ids))
        )
    return graph


def _message(item: Any, path: Path) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"a message is an object, got {type(item).__name__}")
    if item.get("role") not in list(Role):
        raise ValueError(f"the role of a message is one of {', '.join(Role)}, got {item.get('role')!r}")
    role = Role(item["role"])
    parts = read_content(item.get("content"), path)
    calls = tuple(_call(call, index) for index, call in enumerate(_listed(item, "tool_calls")))
    if calls and role is not Role.ASSISTANT:
        raise ValueError(f"a {role} message cannot call tools")
    if role is Role.ASSISTANT and any(isinstance(part, ImagePart) for part in parts):
        raise ValueError("an assistant message holds no image: nothing here learns to make one")
    return Message(
        role=role,
        parts=parts,
        tool_calls=calls,
        tool_call_id=str(item.get("tool_call_id", "")) if role is Role.TOOL else "",
        name=str(item.get("name", "")) if role is Role.TOOL else "",
    )


def _listed(item: Mapping[str, Any], key: str) -> list[Any]:
    value = item.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{key!r} must be a list, got {type(value).__name__}")
    return value


def _function(item: Any, what: str) -> Mapping[str, Any]:
    """The inner object of `{"type": "function", "function": {...}}`, which some write without the wrapping."""
    function = item.get("function", item) if isinstance(item, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f'{what} must be an object {{"function": {{"name": ...}}}}')
    return function


def _call(item: Any, index: int) -> ToolCall:
    function = _function(item, "a tool call")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = strict_json(arguments)
    if not isinstance(arguments, Mapping):
        raise ValueError(f"arguments of tool call {function['name']!r} must be an object")
    return ToolCall(id=str(item.get("id") or f"call_{index}"), name=function["name"], arguments=dict(arguments))


def _tool(item: Any) -> ToolSpec:
    function = _function(item, "a tool")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise ValueError(f"parameters of tool {function['name']!r} must be an object")
    return ToolSpec(name=function["name"], description=str(function.get("description", "")), parameters=parameters)
