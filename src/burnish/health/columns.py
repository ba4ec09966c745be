"""Token streams by columns: every stream of a step joined into one array, cut into runs of equal slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.slices import (
    AFTER,
    HORIZON_FROM,
    LENGTH_FROM,
    PRINCIPAL,
    STALENESS_FROM,
    TURN_FROM,
    SliceNames,
)

SIGNS = 3
"""Signs of the advantage: 0 negative, 1 zero or none, 2 positive."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """One stream of all trajectories, N tokens, zeros where a trajectory has none; has: which of the B have it."""

    values: Singles
    has: Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """R runs: consecutive tokens of one action that stand in the same slices.

    start: first token.  length: tokens.  trajectory: its row.  cell: class of the run, in [0, C).  post_tool: after any
    tool result.  staleness: in versions, NaN where unknown.  families: [F, C], the slice of each class in each
    family of slices that exclude each other, S for none. sign: sign of the advantage of each class.
    """

    start: Ints
    length: Ints
    trajectory: Ints
    cell: Ints
    post_tool: Bools
    staleness: npt.NDArray[np.float64]
    families: Ints
    sign: Ints


def join(streams: Sequence[TokenStream], name: str, lengths: Ints) -> Joined | None:
    """One float stream of all trajectories, None where no trajectory has it."""
    parts = [getattr(stream, name) for stream in streams]
    has = np.array([part is not None for part in parts])
    if not has.any():
        return None
    return Joined(values=_joined(parts, lengths, name, np.float32), has=has)


def cut(streams: Sequence[TokenStream], names: SliceNames, sign: Ints, lengths: Ints) -> Runs:
    """Runs of the N tokens.  sign: of the advantage of each of the B trajectories."""
    spans = [span for stream in streams for span in stream.spans]
    per_stream = np.array([len(stream.spans) for stream in streams], dtype=np.int64)
    span_length = np.array([span.end - span.start for span in spans], dtype=np.int64)
    kept = span_length > 0
    span_start = np.cumsum(span_length) - span_length
    trajectory = np.repeat(np.arange(len(streams)), per_stream)
    attributes = _attributes(spans, streams, names, trajectory, sign)
    keys = np.ravel_multi_index(tuple(np.stack(list(attributes.values()))), _radices(names))[kept]
    classes, span_class = np.unique(keys, return_inverse=True)
    start, run_span, token_class, staleness = _runs(streams, lengths, span_start[kept])
    # control takes 2 values and staleness 6 (its ranges, and unknown)
    used, cell = np.unique(span_class[run_span] * 12 + token_class, return_inverse=True)
    decoded = dict(zip(attributes, np.unravel_index(classes[used // 12], _radices(names)), strict=True))
    total = int(lengths.sum())
    return Runs(
        start=start,
        length=np.diff(start, append=total),
        trajectory=trajectory[kept][run_span],
        cell=cell,
        staleness=staleness,
        post_tool=attributes["position"][kept][run_span] > 0,
        families=_families(decoded, used % 12 // 6, used % 6, names),
        sign=decoded["sign"],
    )


def _joined(parts: Sequence[object], lengths: Ints, name: str, kind: type) -> npt.NDArray[Any]:
    size = np.dtype(kind).itemsize
    filled = [part if part is not None else bytes(size * int(n)) for part, n in zip(parts, lengths, strict=True)]
    raw = b"".join(filled)  # type: ignore[arg-type]
    if len(raw) != size * int(lengths.sum()):
        raise ValueError(
            f"the stream {name!r} must hold {size} bytes a token, such as array('f'), got {len(raw)} bytes"
        )
    return np.frombuffer(raw, dtype=kind)


def _radices(names: SliceNames) -> tuple[int, ...]:
    """How many values each attribute of a span can take, in the order of `_attributes`."""
    ranges = len(TURN_FROM), len(HORIZON_FROM), len(LENGTH_FROM)
    return 3, 2, 2, 2, len(names.tools) + 2, len(names.sources) + 1, *ranges, SIGNS


def _attributes(
    spans: Sequence[ActionSpan], streams: Sequence[TokenStream], names: SliceNames, trajectory: Ints, sign: Ints
) -> dict[str, Ints]:
    """What decides the slices of each of the K spans."""
    tool_code = {name: i for i, name in enumerate(("", *names.tools))}
    source_code = {name: i for i, name in enumerate(names.sources)}
    get = attrgetter("after_tool", "after_error", "after_image", "after_compaction", "turn")
    raw = np.fromiter(chain.from_iterable(map(get, spans)), dtype=np.int64, count=5 * len(spans)).reshape(-1, 5)
    other_tool, other_source = len(names.tools) + 1, len(names.sources)
    tool = np.array([tool_code.get(span.tool, other_tool) for span in spans], dtype=np.int64)
    source = np.array([source_code.get(stream.source, other_source) for stream in streams], dtype=np.int64)
    turns = np.array([stream.turns or len(stream.spans) for stream in streams], dtype=np.int64)
    lengths = np.array([stream.length for stream in streams], dtype=np.int64)
    return {
        "position": np.where(tool > 0, 1, np.where(raw[:, 0] > 0, 2, 0)),
        "error": raw[:, 1],
        "image": raw[:, 2],
        "compaction": raw[:, 3],
        "tool": tool,
        "source": source[trajectory],
        "turn": _range_of(raw[:, 4], TURN_FROM),
        "horizon": _range_of(turns, HORIZON_FROM)[trajectory],
        "length": _range_of(lengths, LENGTH_FROM)[trajectory],
        "sign": sign[trajectory],
    }


def _range_of(values: Ints, starts: tuple[int, ...]) -> Ints:
    return np.maximum(np.searchsorted(np.array(starts), values, side="right") - 1, 0)


def _runs(
    streams: Sequence[TokenStream], lengths: Ints, span_start: Ints
) -> tuple[Ints, Ints, Ints, npt.NDArray[np.float64]]:
    """Start of each run, its span, 6 x control + range of staleness (5: unknown), and its staleness (NaN: unknown)."""
    total = int(lengths.sum())
    opens = np.zeros(total, dtype=np.bool_)
    controls = [stream.control for stream in streams]
    ages = [stream.staleness for stream in streams]
    control = age = None
    if any(part is not None for part in controls):
        control = _joined(controls, lengths, "control", np.int8)
        np.not_equal(control[1:], control[:-1], out=opens[1:])
    if any(part is not None for part in ages):
        age = _joined(ages, lengths, "staleness", np.int32)
        opens[1:] |= age[1:] != age[:-1]
    opens[span_start] = True
    start = np.flatnonzero(opens)
    run_span = np.searchsorted(span_start, start, side="right") - 1
    label = np.full(len(start), len(STALENESS_FROM), dtype=np.int64)
    staleness = np.full(len(start), np.nan)
    if age is not None:
        known = np.repeat([part is not None for part in ages], lengths)[start]
        staleness[known] = age[start][known]
        label[known] = _range_of(age[start][known], STALENESS_FROM)
    if control is not None:
        label = label + 6 * (control[start] != 0)
    return start, run_span, label, staleness


def _families(decoded: dict[str, Ints], control: Ints, age: Ints, names: SliceNames) -> Ints:
    """[F, C]: the slice of each class in each family that any class stands in; unions of slices are left out."""
    total = len(names.names)
    at = {name: i for i, name in enumerate(names.names)}
    position = np.array([at["text"], at["post_tool_first"], at["post_tool_later"]])
    first_tool = len(PRINCIPAL) + len(AFTER)
    first_source = first_tool + len(names.tools) + 1
    first_turn = first_source + len(names.sources) + 1
    first_horizon = first_turn + len(TURN_FROM)
    first_age = first_horizon + len(HORIZON_FROM)
    first_length = first_age + len(STALENESS_FROM)
    families = np.stack(
        [
            position[decoded["position"]],
            np.where(decoded["error"] > 0, at["post_tool_error"], total),
            np.where(control > 0, at["control"], total),
            np.where(decoded["image"] > 0, at["after_image"], total),
            np.where(decoded["compaction"] > 0, at["after_compaction"], total),
            np.where(decoded["tool"] > 0, first_tool + decoded["tool"] - 1, total),
            first_source + decoded["source"],
            first_turn + decoded["turn"],
            first_horizon + decoded["horizon"],
            np.where(age < len(STALENESS_FROM), first_age + age, total),
            first_length + decoded["length"],
        ]
    )
    return families[(families < total).any(axis=1)]
