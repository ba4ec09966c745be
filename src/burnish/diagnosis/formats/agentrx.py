"""AgentRx: trajectories of steps and substeps, and the labels that people gave them.

`{trajectory_id, instruction, steps: [{index, substeps: [{sub_index, role, content}]}]}`.  A step may hold several
substeps (events of several agents), and a label counts steps; every substep becomes an item with the index of its step.
Tool calls stand in the text as JSON and are read back from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from burnish.diagnosis.formats.chat import arguments_of, call_of, passed_of, reference_of, task_of, tools_of
from burnish.diagnosis.plain import RecordError, listed, mapping, name_of, parse_json, whole, worded
from burnish.diagnosis.record import Call, Item, Label, Record
from burnish.diagnosis.taxonomy import category_of, fault_of

_TOOLS = {"tool", "function", "observation", "environment", "ipython", "computer_terminal", "computerterminal"}
_USERS = {"user", "human", "customer"}
_SYSTEMS = {"system", "developer", "grader", "autograder", "scorer", "harness", "runner"}
"""Who sets the rules, runs or grades: none of them takes part."""
_RESULT = re.compile(r"\((?:tool |function )?(?:result|output|observation|response)s?\)\s*$", re.I)
"""After the name of a member: what follows is not their word but what came of their call."""
_NAMES = ("name", "tool", "tool_name", "action", "function")
_ARGUMENTS = ("arguments", "kwargs", "args", "parameters", "action_input", "input")
_CALLABLE = re.compile(r"[\w.:/-]{1,80}")
_ALONE = ("", "assistant", "agent")
"""Speakers of a record without a team; in a team, they are members like the others."""
_MAX_CALL_TEXT = 200_000
_OF_CALLS = re.compile(r'"(?:tool_calls|function|arguments|kwargs|tool|tool_name|action_input)"')


def read_agentrx(row: Any, position: int) -> Record:
    """One intermediate record of AgentRx; messages may also stand flat in `steps` or under `history`."""
    data = mapping(row, "a record")
    steps = listed(next((data[k] for k in ("steps", "history") if k in data), None), "steps")
    items: list[Item] = []
    for number, step in enumerate(steps, start=1):
        items += _items_of_step(mapping(step, f"step {number}"), number)
    if not items:
        raise RecordError("steps is empty")
    if all(item.agent.lower() in _ALONE for item in items):
        items = [replace(item, agent="") for item in items]
    reward, passed = passed_of(data)
    instruction = worded(data.get("instruction") or data.get("question"))
    return Record(
        id=next((name for k in ("trajectory_id", "task_id", "id") if (name := name_of(data.get(k)))), "")
        or str(position),
        task_id=name_of(data.get("task_id")) or name_of(data.get("trajectory_id")),
        items=tuple(items),
        source="agentrx",
        instruction=instruction,
        tools=tools_of(data.get("tools")),
        reference=reference_of(task_of(data)),
        reward=reward,
        passed=passed,
        labels=tuple(labels_of(data)) if "failures" in data else (),
    )


def _items_of_step(step: Mapping[str, Any], number: int) -> list[Item]:
    index = whole(step.get("index", step.get("step_number")))
    index = number if index is None else index
    substeps = step.get("substeps")
    if substeps is None:
        substeps = [step]
    items = []
    for sub, part in enumerate(listed(substeps, "substeps")):
        part = mapping(part, "a substep")
        found = whole(part.get("sub_index"))
        items.append(_item(part, index, sub if found is None else found))
    return items


def _item(part: Mapping[str, Any], index: int, sub: int) -> Item:
    speaker = name_of(part.get("role")) or name_of(part.get("name")) or name_of(part.get("agent"))
    base = speaker.partition("(")[0].strip()
    letters = base.lower().replace(" ", "")
    text = worded(part.get("content"))
    if letters in _TOOLS:
        name = name_of(part.get("name")) or name_of(part.get("tool_name"))
        call_id = name_of(part.get("tool_call_id"))
        return Item(index=index, sub=sub, role="tool", text=text, name=name, call_id=call_id)
    if _RESULT.search(speaker):
        return Item(index=index, sub=sub, role="tool", text=text, agent=speaker)
    if letters in _USERS or letters in _SYSTEMS:
        return Item(index=index, sub=sub, role="user" if letters in _USERS else "system", text=text)
    calls = [call_of(call) for call in listed(part.get("tool_calls"), "tool_calls")]
    if not calls:
        calls, text = calls_in_text(text)
    return Item(index=index, sub=sub, role="assistant", text=text, calls=tuple(calls), agent=speaker)


def calls_in_text(text: str) -> tuple[list[Call], str]:
    """(calls, the text around them) where a text holds a tool call, or a list of them, as JSON.

    >>> calls_in_text('{"function": {"name": "f", "arguments": "{}"}}')[0][0].name
    'f'
    """
    if len(text) > _MAX_CALL_TEXT or not _OF_CALLS.search(text):
        return [], text
    for start, end in _objects(text):
        try:
            value = parse_json(text[start:end])
        except RecordError:
            continue
        calls = list(_calls(value))
        if calls:
            return calls, (text[:start] + text[end:]).strip()
    return [], text


def _objects(text: str) -> Iterator[tuple[int, int]]:
    """Spans of at most a few balanced JSON values."""
    depth, start, found, quoted, skip = 0, 0, 0, False, False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip, quoted = char == "\\", char != '"'
        elif char == '"' and depth:
            quoted = True
        elif char in "{[":
            start, depth = (at, 1) if not depth else (start, depth + 1)
        elif char in "}]" and depth:
            depth -= 1
            if not depth:
                yield start, at + 1
                found += 1
                if found >= 4:
                    return


def _calls(value: Any) -> Iterator[Call]:
    if isinstance(value, list):
        for row in value[:50]:
            yield from _calls(row)
    elif isinstance(value, Mapping):
        if isinstance(value.get("tool_calls"), list):
            yield from _calls(value["tool_calls"])
        elif isinstance(value.get("function"), Mapping) and name_of(value["function"].get("name")):
            yield call_of(value)
        else:
            name = next((found for key in _NAMES if (found := name_of(value.get(key)))), "")
            key = next((key for key in _ARGUMENTS if key in value), "")
            if key and _CALLABLE.fullmatch(name):
                arguments, raw = arguments_of(value[key])
                yield Call(id=name_of(value.get("id")), name=name, arguments=arguments, raw=raw)


def labels_of(row: Any) -> Iterator[Label]:
    """Labels of one ground-truth row; the root cause is marked.  Raises RecordError where a failure has no step."""
    data = mapping(row, "a label")
    root = data.get("root_cause")
    root_id = name_of(root.get("failure_id")) if isinstance(root, Mapping) else name_of(data.get("root_cause_id"))
    failures = listed(data.get("failures"), "failures")
    for failure in failures:
        failure = mapping(failure, "a failure")
        index = whole(failure.get("step_number", failure.get("step")))
        if index is None:
            raise RecordError(f"a failure needs a step_number, got {str(failure.get('step_number'))[:40]!r}")
        party = name_of(failure.get("failed_agent"))
        yield Label(
            index=index,
            category=category_of(failure.get("failure_category")),
            owner=fault_of(party),
            party=party,
            reason=worded(failure.get("step_reason")),
            is_root=len(failures) == 1 or (root_id != "" and name_of(failure.get("failure_id")) == root_id),
        )


def write_agentrx(record: Record) -> dict[str, Any]:
    """The intermediate form: calls become JSON in the text, ids of calls stay, schemas are lost."""
    steps: dict[int, list[dict[str, Any]]] = {}
    for item in record.items:
        steps.setdefault(item.index, []).append(_substep(item))
    return {
        "trajectory_id": record.id,
        "instruction": record.instruction,
        "steps": [{"index": index, "substeps": substeps} for index, substeps in steps.items()],
    }


def _substep(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"sub_index": item.sub, "role": item.agent or item.role, "content": item.text}
    if item.calls:
        row["tool_calls"] = [
            {
                "id": call.id,
                "function": {
                    "name": call.name,
                    "arguments": call.raw if call.arguments is None else dict(call.arguments),
                },
            }
            for call in item.calls
        ]
    if item.role == "tool":
        row |= {"name": item.name, "tool_call_id": item.call_id}
    return row
