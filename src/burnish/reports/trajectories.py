"""Trajectories as JSON-able values: lists by filter, and one whole with its tokens.  Read by SQL over the views."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import ConfigError, StoreError
from burnish.reports.series import number
from burnish.store.reader import RunReader

MAX_PAGE = 200
MAX_TEXT_CHARS = 200
MAX_IMAGE_BYTES = 2**18
"""Of one image in a page."""

_SHOWN_TYPES = ("image/png", "image/jpeg", "image/gif")

_LABEL = """outcome || CASE WHEN "limit" <> '' THEN ':' || "limit" WHEN owner <> '' THEN ':' || owner ELSE '' END"""
_ROW = f"""trajectory_id AS id, phase, step, group_id, task_id, fate, {_LABEL} AS outcome, reward, advantage,
left(answer, 160) AS answer, len(nodes) AS n_nodes, len(token_ids) AS n_tokens, action_tokens"""
_ORDER = "CASE phase WHEN 'rl' THEN 0 WHEN 'eval' THEN 1 ELSE 2 END, step DESC, trajectory_id"
_REWARDS = {
    "full": "reward >= 1",
    "positive": "reward > 0",
    "zero": "reward <= 0",
    "none": "reward IS NULL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which trajectories to list; an empty field lets all through.

    `Filter(phase="rl", step=12, fate="trained", outcome="completed", reward="zero", text="refund", offset=0, limit=50)`

    reward: full (>= 1), positive (> 0), zero (<= 0) or none.  text: somewhere in the messages, the answer, the id or
    the task id, whatever its case.  limit: at most 200.
    """

    phase: str = ""
    step: int | None = None
    fate: str = ""
    outcome: str = ""
    reward: str = ""
    text: str = ""
    offset: int = 0
    limit: int = 50

    @staticmethod
    def parse(values: Mapping[str, str]) -> Filter:
        """A filter from texts, such as the query of a URL.  Raises ConfigError for a value that cannot be one."""
        try:
            step = int(values["step"]) if values.get("step") else None
            offset, limit = int(values.get("offset") or 0), int(values.get("limit") or 50)
        except ValueError as error:
            raise ConfigError(f"step, offset and limit are whole numbers: {error}") from error
        reward = values.get("reward", "")
        if reward and reward not in _REWARDS:
            raise ConfigError(f"reward is one of {', '.join(_REWARDS)}, got {reward!r}")
        return Filter(
            phase=values.get("phase", ""),
            step=step,
            fate=values.get("fate", ""),
            outcome=values.get("outcome", ""),
            reward=reward,
            text=values.get("text", "")[:MAX_TEXT_CHARS],
            offset=max(0, offset),
            limit=min(max(1, limit), MAX_PAGE),
        )


def list_trajectories(reader: RunReader, wanted: Filter) -> dict[str, Any]:
    """A page of light rows, the newest RL steps first: `{"total": 640, "offset": 0, "rows": [...]}`."""
    where, parameters = _where(wanted)
    total = reader.query(f"SELECT count(*) AS n FROM trajectories WHERE {where}", parameters).to_pylist()[0]["n"]
    rows = reader.query(
        f"SELECT {_ROW} FROM trajectories WHERE {where} ORDER BY {_ORDER} LIMIT ? OFFSET ?",
        [*parameters, wanted.limit, wanted.offset],
    ).to_pylist()
    return {"total": total, "offset": wanted.offset, "rows": [_light(row) for row in rows]}


def _where(wanted: Filter) -> tuple[str, list[Any]]:
    clauses, parameters = ["true"], list[Any]()
    for column, value in (("phase", wanted.phase), ("step", wanted.step), ("fate", wanted.fate)):
        if value not in ("", None):
            clauses.append(f"{column} = ?")
            parameters.append(value)
    if wanted.outcome:
        clauses.append(f"({_LABEL}) = ?")
        parameters.append(wanted.outcome)
    if wanted.reward:
        clauses.append(_REWARDS[wanted.reward])
    if wanted.text:
        # Messages are JSON, so the text is looked for as JSON spells it.
        spelled = json.dumps(wanted.text, ensure_ascii=False)[1:-1].lower()
        plain = wanted.text.lower()
        clauses.append(
            "(contains(lower(array_to_string([node.messages for node in nodes], chr(10))), ?) "
            "OR contains(lower(answer), ?) OR contains(lower(trajectory_id), ?) OR contains(lower(task_id), ?))"
        )
        parameters += [spelled, plain, plain, plain]
    return " AND ".join(clauses), parameters


def read_trajectory(reader: RunReader, trajectory_id: str) -> dict[str, Any]:
    """One trajectory whole, its group beside it.  Raises StoreError where there is none."""
    found = read_trajectories(reader, [trajectory_id])
    if not found:
        raise StoreError(f"{reader.layout.root.name} has no trajectory {trajectory_id!r}")
    return found[0]


def read_trajectories(reader: RunReader, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Trajectories by id, in the order of the ids; unknown ones are left out."""
    rows = reader.query(
        f"SELECT *, {_LABEL} AS label FROM trajectories WHERE trajectory_id IN (SELECT unnest(?))", [list(ids)]
    ).to_pylist()
    by_id = {row["trajectory_id"]: row for row in rows}
    members = _groups(reader, {row["group_id"] for row in rows})
    found = [_whole(by_id[one], members.get(by_id[one]["group_id"], [])) for one in ids if one in by_id]
    for one in found:
        one["images"] = _images(reader, one["nodes"])
    return found


def _images(reader: RunReader, nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The images of a trajectory as data URLs, by hash; those that are too large or lost are left out."""
    found: dict[str, str] = {}
    for part in (part for node in nodes for message in node["messages"] for part in message["parts"]):
        sha256 = part.get("sha256", "")
        if not sha256 or sha256 in found or part["media_type"] not in _SHOWN_TYPES:
            continue
        try:
            data = reader.artefact(sha256)
        except StoreError:
            continue
        if len(data) <= MAX_IMAGE_BYTES:
            found[sha256] = f"data:{part['media_type']};base64,{base64.b64encode(data).decode('ascii')}"
    return found


def _groups(reader: RunReader, ids: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The members of each group in sample order, lightly."""
    rows = reader.query(
        "SELECT group_id, trajectory_id AS id, reward, advantage, fate FROM trajectories "
        "WHERE group_id IN (SELECT unnest(?)) ORDER BY group_id, sample_index",
        [sorted(ids)],
    ).to_pylist()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row.pop("group_id"), []).append(
            {**row, "reward": number(row["reward"]), "advantage": number(row["advantage"])}
        )
    return groups


def _light(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "reward": number(row["reward"]), "advantage": number(row["advantage"])}


def _whole(row: Mapping[str, Any], group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "id": row["trajectory_id"],
        "phase": row["phase"],
        "step": row["step"],
        "attempt": row["attempt"],
        "fate": row["fate"],
        "policy_version": row["policy_version"],
        "group_id": row["group_id"],
        "sample_index": row["sample_index"],
        "task_id": row["task_id"],
        "tags": json.loads(row["tags"]),
        "seed": str(row["seed"]),  # 63 bits are more than a number in a browser holds.
        "outcome": row["label"],
        "cause": row["cause"],
        "detail": row["detail"],
        "answer": row["answer"],
        "reward": number(row["reward"]),
        "advantage": number(row["advantage"]),
        "grades": [_grade(grade) for grade in row["grades"]],
        "final_state": json.loads(row["final_state"]),
        "counters": json.loads(row["counters"]),
        "tool_s": number(row["tool_s"]),
        "total_s": number(row["total_s"]),
        "n_tokens": len(row["token_ids"]),
        "action_tokens": row["action_tokens"],
        "context_tokens": row["context_tokens"],
        "turns": row["turns"],
        "nodes": _nodes(row),
        "group": list(group),
    }


def _grade(grade: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **grade,
        "score": number(grade["score"]),
        "cost_s": number(grade["cost_s"]),
        "evidence": json.loads(grade["evidence"]),
    }


def _nodes(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Nodes with their own part of the token streams.

    ids: of the tokens.  logprobs: None for a node that was only shown; None in place of a token that was not sampled.
    versions: one number where all its tokens have the same.
    """
    nodes, start = [], 0
    for node in row["nodes"]:
        end = start + node["n_tokens"]
        sampled = row["action_mask"][start:end]
        logprobs = [
            round(value, 3) if mask and math.isfinite(value) else None
            for value, mask in zip(row["logprobs"][start:end], sampled, strict=True)
        ]
        versions = row["versions"][start:end]
        nodes.append(
            {
                "parent": node["parent"],
                "is_action": node["is_action"],
                "fork": node["fork"],
                "messages": json.loads(node["messages"]),
                "started_s": number(node["started_s"]),
                "duration_s": number(node["duration_s"]),
                "ids": row["token_ids"][start:end],
                "logprobs": logprobs if any(sampled) else None,
                "versions": versions[0] if len(set(versions)) == 1 else versions,
            }
        )
        start = end
    return nodes


def token_ids(trajectories: Iterable[Mapping[str, Any]]) -> set[int]:
    """Every token id in whole trajectories."""
    return {token for one in trajectories for node in one["nodes"] for token in node["ids"]}
