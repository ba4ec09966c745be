"""Tasks, trajectories, grades and graders as JSON, for graders that run in a process of their own."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import math
import sys
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.core.grade import Grade, Grader
from burnish.core.message import Message, Role, message_from_json, message_to_json
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.function import FunctionGrader

_PLAIN_TASK = ("system", "id")
_PLAIN_TRAJECTORY = ("id", "task_id", "task_hash", "group_id", "sample_index", "seed", "answer", "tool_s", "total_s")


def task_to_json(task: Task) -> dict[str, Any]:
    """`task_from_json` is its inverse."""
    data: dict[str, Any] = {name: getattr(task, name) for name in _PLAIN_TASK}
    data |= {name: dict(getattr(task, name)) for name in ("setup", "reference", "tags")}
    data["prompt"] = message_to_json(Message(role=Role.USER, parts=task.parts))
    data["is_text"] = isinstance(task.prompt, str)
    data["limits"] = None if task.limits is None else dataclasses.asdict(task.limits)
    data["tools"] = None if task.tools is None else list(task.tools)
    return data


def task_from_json(data: Mapping[str, Any]) -> Task:
    """Inverse of `task_to_json`."""
    prompt = message_from_json(data["prompt"])
    return Task(
        prompt=prompt.text if data["is_text"] else prompt.parts,
        limits=None if data["limits"] is None else Limits(**data["limits"]),
        tools=None if data["tools"] is None else tuple(data["tools"]),
        **{name: data[name] for name in (*_PLAIN_TASK, "setup", "reference", "tags")},
    )


def trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    """`trajectory_from_json` is its inverse; NaN log-probabilities become null."""
    data: dict[str, Any] = {name: getattr(trajectory, name) for name in _PLAIN_TRAJECTORY}
    data |= {name: dict(getattr(trajectory, name)) for name in ("final_state", "counters", "tags")}
    data["outcome"] = dataclasses.asdict(trajectory.outcome)
    data["nodes"] = [_node_to_json(node) for node in trajectory.nodes]
    return data


def trajectory_from_json(data: Mapping[str, Any]) -> Trajectory:
    """Inverse of `trajectory_to_json`."""
    return Trajectory(
        nodes=tuple(_node_from_json(node) for node in data["nodes"]),
        outcome=_outcome_from_json(data["outcome"]),
        **{name: data[name] for name in (*_PLAIN_TRAJECTORY, "final_state", "counters", "tags")},
    )


def grader_reference(grader: Grader) -> dict[str, Any] | None:
    """How another process can make an equal grader, or None where that cannot be said as JSON.

    `{"module": "burnish.graders.rules", "file": "...", "attribute": "NumericGrader", "fields": {"tolerance": 0.01}}`;
    the attribute is a class or, for a `FunctionGrader`, the function.
    """
    made_elsewhere: dict[str, Any] | None = getattr(grader, "reference", None)
    if made_elsewhere is not None:
        return made_elsewhere
    source = grader.function if isinstance(grader, FunctionGrader) else type(grader)
    fields = {} if isinstance(grader, FunctionGrader) else _fields_of(grader)
    module = sys.modules.get(source.__module__)
    if module is None or module.__name__ == "__main__" or fields is None:
        return None
    if getattr(module, getattr(source, "__name__", ""), None) is not source:
        return None
    file = getattr(module, "__file__", None) or ""
    return {"module": module.__name__, "file": file, "attribute": source.__name__, "fields": fields}


def grader_from_reference(reference: Mapping[str, Any]) -> Grader:
    """The grader that `grader_reference` described."""
    source = getattr(_module(reference["module"], reference["file"]), reference["attribute"])
    grader: Grader = source(**reference["fields"]) if isinstance(source, type) else FunctionGrader(source)
    return grader


def _module(name: str, file: str) -> Any:
    """A user's environment file is imported under a name that only its path leads to."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file) if Path(file).is_file() else None
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module


def _fields_of(grader: Grader) -> dict[str, Any] | None:
    """The arguments that make an equal grader: fields of a dataclass, or none where instances hold nothing."""
    if dataclasses.is_dataclass(grader):
        fields = {item.name: getattr(grader, item.name) for item in dataclasses.fields(grader) if item.init}
        try:
            return fields if json.loads(json.dumps(fields, allow_nan=False)) == fields else None
        except (TypeError, ValueError):
            return None
    return None if getattr(grader, "__dict__", None) else {}


def grade_to_json(grade: Grade) -> dict[str, Any]:
    """`grade_from_json` is its inverse."""
    return {item.name: getattr(grade, item.name) for item in dataclasses.fields(grade)} | {
        "evidence": dict(grade.evidence)
    }


def grade_from_json(data: Mapping[str, Any]) -> Grade:
    """Inverse of `grade_to_json`."""
    return Grade(**data)


def _outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    return Outcome(
        ending=Ending(data["ending"]),
        limit=None if data["limit"] is None else Limit(data["limit"]),
        owner=None if data["owner"] is None else Owner(data["owner"]),
        cause=data["cause"],
        detail=data["detail"],
    )


def _node_to_json(node: Node) -> dict[str, Any]:
    return {
        "parent": node.parent,
        "messages": [message_to_json(message) for message in node.messages],
        "token_ids": list(node.token_ids),
        "action_mask": list(node.action_mask),
        "logprobs": [value if math.isfinite(value) else None for value in node.logprobs],
        "versions": list(node.versions),
        "is_action": node.is_action,
        "fork": node.fork,
        "started_s": node.started_s,
        "duration_s": node.duration_s,
    }


def _node_from_json(data: Mapping[str, Any]) -> Node:
    return Node(
        messages=tuple(message_from_json(message) for message in data["messages"]),
        token_ids=array("i", data["token_ids"]),
        action_mask=array("b", data["action_mask"]),
        logprobs=array("f", [math.nan if value is None else value for value in data["logprobs"]]),
        versions=array("i", data["versions"]),
        **{name: data[name] for name in ("parent", "is_action", "fork", "started_s", "duration_s")},
    )
