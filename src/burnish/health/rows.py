"""Rows of files to token streams: Burnish's own columns, TRL-style and verl-style ones.  docs/health.md is the schema.

The two adapters take columns over the completion (answer and tool results together) and keep what the policy sampled:

TRL-style   `completion_mask` (1: not padding) and `tool_mask` (1: model token, 0: token of a tool result).  TRL pads
            `tool_mask` with 1, so a token counts only where both are 1.
verl-style  `response_mask` (1: model token); zeros between model tokens are tool results, zeros after the last are
padding.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.streams import ActionSpan, TokenStream

Row = Mapping[str, Any]
Bools = npt.NDArray[np.bool_]

FLOATS = ("behaviour", "learner", "proximal", "reference", "entropy", "score_norm")
SCALARS = ("advantage", "reward", "success", "progress")
COUNTS = ("turns", "tool_calls", "tool_errors", "retries")
TEXTS = ("source", "skill", "outcome")

TRL_STREAMS = {
    "learner": ("per_token_logps", "logps"),
    "proximal": ("old_per_token_logps",),
    "behaviour": ("sampling_per_token_logps", "old_per_token_logps"),
    "reference": ("ref_per_token_logps",),
    "entropy": ("entropies", "entropy"),
    "score_norm": ("score_norm",),
}
VERL_STREAMS = {
    "learner": ("log_probs", "log_prob", "old_log_probs"),
    "proximal": ("old_log_probs",),
    "behaviour": ("rollout_log_probs", "old_log_probs"),
    "reference": ("ref_log_prob", "ref_log_probs"),
    "entropy": ("entropys", "entropy"),
    "score_norm": ("score_norm",),
}
"""Columns that each stream is taken from, the first that the row has."""


class RowError(ValueError):
    """A row that cannot be used; says which column and why."""


def stream_of_row(row: Row, number: int) -> TokenStream:
    """The stream of one row of any of the three styles.  number: of the row, for rows without an id.

    Raises RowError.

    >>> row = {"step": 3, "response_mask": [1, 0, 1], "rollout_log_probs": [-1.0, 0.0, -2.0]}
    >>> stream = stream_of_row(row, 7)
    >>> stream.id, [span.after_tool for span in stream.spans], list(stream.behaviour)
    ('row-7', [False, True], [-1.0, -2.0])
    """
    try:
        if row.get("behaviour") is not None:
            return _own(row, number)
        if row.get("completion_mask") is not None:
            mask = _bits(row, "completion_mask")
            tool = _bits(row, "tool_mask") if row.get("tool_mask") is not None else np.ones_like(mask)
            if len(tool) != len(mask):
                raise RowError(f"tool_mask has {len(tool)} entries and completion_mask {len(mask)}")
            return _masked(row, number, mask & tool, mask, TRL_STREAMS)
        if row.get("response_mask") is not None:
            sampled = _bits(row, "response_mask")
            real = np.arange(len(sampled)) <= (np.flatnonzero(sampled)[-1] if sampled.any() else -1)
            return _masked(row, number, sampled, real, VERL_STREAMS)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"{type(error).__name__}: {error}") from error
    raise RowError(
        "none of the columns behaviour (Burnish), completion_mask (TRL), response_mask (verl) is there; "
        f"it has {', '.join(sorted(row)[:12])}"
    )


def _own(row: Row, number: int) -> TokenStream:
    spans = _spans(row, len(row["behaviour"]))
    known: dict[str, Any] = {name: array("f", _numbers(row[name])) for name in FLOATS if row.get(name) is not None}
    control, staleness = row.get("control"), row.get("staleness")
    return TokenStream(
        **_common(row, number, len(spans)),
        **known,
        spans=spans,
        control=None if control is None else array("b", [int(bit) for bit in control]),
        staleness=_ages(staleness, len(row["behaviour"])),
    )


def _masked(row: Row, number: int, sampled: Bools, real: Bools, columns: Mapping[str, tuple[str, ...]]) -> TokenStream:
    """A row over the completion.  sampled, real: [T], which tokens the policy drew, and which are no padding."""
    if not sampled.any():
        raise RowError("no token is marked as sampled (the whole row is masked)")
    known: dict[str, Any] = {}
    for stream, names in columns.items():
        name = next((name for name in names if row.get(name) is not None), None)
        if name is not None:
            values = np.array(_numbers(row[name]), dtype=np.float32)
            if len(values) != len(sampled):
                raise RowError(f"{name} has {len(values)} entries and the mask {len(sampled)}")
            known[stream] = array("f", values[sampled].tobytes())
    if "behaviour" not in known:
        raise RowError(f"behaviour log-probabilities are missing: one of {', '.join(columns['behaviour'])}")
    spans = _cut(row, sampled, real)
    common = _common(row, number, len(spans))
    common["tool_calls"] = common["tool_calls"] or len(spans) - 1
    age = row.get("staleness")
    ages = _ages(age, len(sampled))
    kept = None if ages is None else array("i", np.asarray(ages, dtype=np.int32)[sampled].tobytes())
    return TokenStream(**common, **known, spans=spans, staleness=kept)


def _cut(row: Row, sampled: Bools, real: Bools) -> tuple[ActionSpan, ...]:
    """Actions: stretches of sampled tokens; whatever real tokens lie between are a tool's result."""
    shown = real & ~sampled
    # results seen so far, at each sampled token: it changes exactly where a new action begins
    seen = np.cumsum(np.diff(shown.astype(np.int8), prepend=0) == 1)[sampled]
    begins = np.flatnonzero(np.diff(seen, prepend=-1))
    tools = row.get("tool_names") or ()
    errors = row.get("tool_error_flags") or ()
    spans = []
    for turn, (start, end) in enumerate(zip(begins, [*begins[1:], len(seen)], strict=True)):
        results = int(seen[start])
        spans.append(
            ActionSpan(
                start=int(start),
                end=int(end),
                turn=turn,
                tool=(str(tools[results - 1]) if results <= len(tools) else "tool") if results else "",
                after_tool=results > 0,
                after_error=0 < results <= len(errors) and bool(errors[results - 1]),
            )
        )
    return tuple(spans)


def _common(row: Row, number: int, turns: int) -> dict[str, Any]:
    """The fields that all styles share, under their several names."""
    if row.get("step") is None or int(row["step"]) != row["step"]:
        raise RowError(f"step must be a whole number, got {row.get('step')!r}")
    name = _first(row, "id", "trajectory_id", "completion_id")
    group = _first(row, "group_id", "uid", "prompt_id")
    parts = row.get("reward_parts") or {}
    parts = json.loads(parts) if isinstance(parts, str) else parts
    found: dict[str, Any] = {
        "id": f"row-{number}" if name is None else str(name),
        "group_id": "" if group is None else str(group),
        "step": int(row["step"]),
        "reward_parts": {str(key): float(value) for key, value in parts.items() if value is not None},
    }
    for field, others in (("advantage", ("advantages",)), ("reward", ("rewards", "token_level_scores"))):
        found[field] = _scalar(_first(row, field, *others), of_tokens=sum if field == "reward" else _first_nonzero)
    for field in ("success", "progress"):
        found[field] = _scalar(row.get(field), of_tokens=sum)
    for field in COUNTS:
        found[field] = int(row.get(field) or 0)
    found["turns"] = found["turns"] or turns
    for field in TEXTS:
        found[field] = str(_first(row, field, "data_source" if field == "source" else field) or "")
    return found


def _spans(row: Row, length: int) -> tuple[ActionSpan, ...]:
    """The row's actions; one of text where it has none."""
    stored = row.get("spans")
    if isinstance(stored, str):
        stored = json.loads(stored)
    if stored is None:
        return (ActionSpan(start=0, end=length, turn=0),)
    known = {field.name for field in fields(ActionSpan)}
    for span in stored:
        if unknown := set(span) - known:
            raise RowError(f"a span has unknown fields {sorted(unknown)}; it can have {sorted(known)}")
    return tuple(ActionSpan(**{key: value for key, value in span.items() if value is not None}) for span in stored)


def _numbers(values: Sequence[Any]) -> list[float]:
    """Floats; null and the texts "NaN", "Infinity" and "-Infinity" are what they say: they must be seen."""
    return [math.nan if value is None else float(value) for value in values]


def _bits(row: Row, name: str) -> Bools:
    return np.array([bool(value) for value in row[name]], dtype=np.bool_)


def _ages(values: Any, length: int) -> array[int] | None:
    if values is None:
        return None
    return array("i", [int(values)] * length if isinstance(values, int | float) else [int(value) for value in values])


def _first(row: Row, *names: str) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _first_nonzero(values: Sequence[float]) -> float:
    """Advantage of a trajectory from those of its tokens: trainers repeat it, and put 0 outside the mask."""
    return next((value for value in values if value != 0), 0.0)


def _scalar(value: Any, of_tokens: Any) -> float | None:
    """A number; a list over tokens is reduced."""
    if value is None:
        return None
    return float(of_tokens(_numbers(value)) if isinstance(value, list | tuple) else float(value))
