"""ATIF, the interchange format: one trajectory a line, turns hold their tool results, Burnish's extras in `extra`.

Versions 1.4 to 1.7 are read; 1.7 is written.  A step counts turns, a record counts messages: every step keeps
`extra.src_index` (and its results theirs), so that labels of either count map exactly.  Lost on the way in: token ids,
metrics, timestamps, images; embedded sub-agents are kept as they are in `extra.atif`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.diagnosis.formats.chat import (
    arguments_of,
    passed_of,
    reference_of,
    tools_of,
    write_reference,
    write_tool,
)
from burnish.diagnosis.plain import RecordError, bounded, listed, mapping, name_of, real, whole, worded
from burnish.diagnosis.record import Call, Item, Label, Record
from burnish.diagnosis.taxonomy import category_of, fault_of

VERSION = "ATIF-v1.7"
_SOURCES = {"system": "system", "user": "user", "agent": "assistant"}
_ROLES = {role: source for source, role in _SOURCES.items()}


def step_of_message(roles: list[str]) -> list[int]:
    """1-based message position -> 1-based ATIF step.

    >>> step_of_message(["system", "user", "assistant", "tool", "tool", "assistant"])
    [1, 2, 3, 3, 3, 4]
    """
    step, out = 0, []
    for role in roles:
        step += role != "tool" or step == 0
        out.append(step)
    return out


def read_atif(row: Any, position: int) -> Record:
    """A trajectory in ATIF.  Raises RecordError where it has no usable steps."""
    data = mapping(row, "a trajectory")
    own = _own(data.get("extra"))
    items: list[Item] = []
    for number, step in enumerate(listed(data.get("steps"), "steps"), start=1):
        items += _items_of_step(mapping(step, f"step {number}"), len(items) + 1)
    if not items:
        raise RecordError("steps is empty")
    agent = data.get("agent")
    reward, passed = passed_of(own)
    extra = {key: bounded(own[key]) for key in ("fields",) if isinstance(own.get(key), Mapping)}
    return Record(
        id=name_of(data.get("trajectory_id")) or name_of(data.get("session_id")) or str(position),
        items=tuple(items),
        source=name_of(own.get("source")) or "atif",
        task_id=name_of(own.get("task_id")),
        instruction=worded(own.get("instruction")),
        tools=tools_of(agent.get("tool_definitions") if isinstance(agent, Mapping) else None),
        reference=reference_of(own.get("reference")),
        reward=reward,
        passed=passed,
        outcome=name_of(own.get("outcome")),
        labels=tuple(_label(label) for label in listed(own.get("labels"), "extra.burnish.labels")),
        extra=dict(extra.get("fields", {})),
    )


def _table(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    return value if isinstance(value, Mapping) else {}


def _own(extra: Any) -> Mapping[str, Any]:
    """What Burnish wrote, or `extra.rl` of others."""
    if not isinstance(extra, Mapping):
        return {}
    for key in ("burnish", "rl"):
        if isinstance(extra.get(key), Mapping):
            found: Mapping[str, Any] = extra[key]
            return found
    return {}


def _items_of_step(step: Mapping[str, Any], index: int) -> list[Item]:
    extra = _table(step, "extra")
    role = _SOURCES.get(str(step.get("source")), "")
    results = listed(mapping(step.get("observation") or {}, "observation").get("results"), "results")
    items: list[Item] = []
    if not extra.get("results_only"):
        if not role:
            raise RecordError(f"a step's source is system, user or agent, got {str(step.get('source'))[:40]!r}")
        items.append(
            Item(
                index=_at(extra, index),
                role=role,
                text=worded(step.get("message")),
                calls=tuple(_call(call) for call in listed(step.get("tool_calls"), "tool_calls")),
                agent=name_of(extra.get("agent")),
                sub=whole(extra.get("src_sub")) or 0,
            )
        )
    names = {call.id: call.name for item in items for call in item.calls}
    for offset, result in enumerate(results, start=len(items)):
        result = mapping(result, "a result")
        own = _table(result, "extra")
        call_id = name_of(result.get("source_call_id"))
        error = own.get("is_error")
        items.append(
            Item(
                index=_at(own, index + offset),
                role="tool",
                text=worded(result.get("content")),
                call_id=call_id,
                name=name_of(own.get("name")) or names.get(call_id, ""),
                is_error=error if isinstance(error, bool) else None,
                agent=name_of(own.get("agent")),
                sub=whole(own.get("src_sub")) or 0,
            )
        )
    return items


def _at(extra: Mapping[str, Any], index: int) -> int:
    found = whole(extra.get("src_index"))
    return index if found is None else found


def _call(data: Any) -> Call:
    data = mapping(data, "a tool call")
    extra = _table(data, "extra")
    arguments, raw = arguments_of(data.get("arguments"))
    if isinstance(extra.get("raw_arguments"), str):
        arguments, raw = None, extra["raw_arguments"]
    name = name_of(data.get("function_name"))
    return Call(id=name_of(data.get("tool_call_id")), name=name, arguments=arguments, raw=raw)


def _label(data: Any) -> Label:
    data = mapping(data, "a label")
    index = whole(data.get("index"))
    if index is None:
        raise RecordError(f"a label needs the index of its message, got {data.get('index')!r}")
    return Label(
        index=index,
        category=category_of(data.get("category")),
        owner=fault_of(data.get("owner")),
        party=name_of(data.get("party")),
        reason=worded(data.get("reason")),
        is_root=data.get("is_root") is True,
    )


def write_atif(record: Record) -> dict[str, Any]:
    """The trajectory as ATIF 1.7; `read_atif` gives the same record back."""
    own: dict[str, Any] = {"source": record.source, "task_id": record.task_id, "outcome": record.outcome}
    if record.instruction:
        own["instruction"] = record.instruction
    if record.reward is not None:
        own["reward"] = real(record.reward)
    if record.passed is not None:
        own["passed"] = record.passed
    if record.reference is not None:
        own["reference"] = write_reference(record.reference)
    if record.labels:
        own["labels"] = [_label_json(label) for label in record.labels]
    if record.extra:
        own["fields"] = dict(record.extra)
    agent: dict[str, Any] = {"name": "agent", "version": ""}
    if record.tools:
        agent["tool_definitions"] = [write_tool(tool) for tool in record.tools]
    return {
        "schema_version": VERSION,
        "session_id": record.id,
        "trajectory_id": record.id,
        "agent": agent,
        "steps": _steps(record),
        "extra": {"burnish": own},
    }


def _label_json(label: Label) -> dict[str, Any]:
    row: dict[str, Any] = {"index": label.index, "is_root": label.is_root, "party": label.party, "reason": label.reason}
    if label.category is not None:
        row["category"] = str(label.category)
    if label.owner is not None:
        row["owner"] = str(label.owner)
    return row


def _steps(record: Record) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for item in record.items:
        where = _where(item)
        if item.role == "tool":
            if not steps or steps[-1]["source"] != "agent":
                steps.append({"source": "agent", "message": "", "extra": {"results_only": True}})
            results = steps[-1].setdefault("observation", {"results": []})["results"]
            extra = where | {"name": item.name} | ({} if item.is_error is None else {"is_error": item.is_error})
            results.append({"source_call_id": item.call_id, "content": item.text, "extra": extra})
            continue
        step: dict[str, Any] = {"source": _ROLES[item.role], "message": item.text, "extra": where}
        if item.calls:
            step["tool_calls"] = [_call_json(call) for call in item.calls]
        steps.append(step)
    return [{"step_id": number} | step for number, step in enumerate(steps, start=1)]


def _where(item: Item) -> dict[str, Any]:
    where: dict[str, Any] = {"src_index": item.index}
    if item.sub:
        where["src_sub"] = item.sub
    if item.agent:
        where["agent"] = item.agent
    return where


def _call_json(call: Call) -> dict[str, Any]:
    row: dict[str, Any] = {"tool_call_id": call.id, "function_name": call.name, "arguments": dict(call.arguments or {})}
    if call.arguments is None:
        row["extra"] = {"raw_arguments": call.raw}
    return row
