"""The tokens of a step cut into runs of equal slices, and each stream over them as an array."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.streams import AFTER_COMPACTION, AFTER_ERROR, AFTER_IMAGE, AFTER_TOOL, STREAMS, TokenColumns
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

    values: npt.NDArray[Any]
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


def ints(values: Any) -> Ints:
    """An array of machine integers, such as array('i'), as int64."""
    return np.frombuffer(values, dtype=np.intc).astype(np.int64)


def join(columns: TokenColumns, name: str) -> Joined | None:
    """One stream of all trajectories, None where no trajectory has it."""
    column = columns.streams.get(name)
    if column is None:
        return None
    return Joined(
        values=np.frombuffer(column.values, dtype=STREAMS[name]), has=np.frombuffer(column.has, dtype=np.bool_)
    )


def cut(columns: TokenColumns, names: SliceNames, sign: Ints) -> Runs:
    """Runs of the N tokens.  sign: of the advantage of each of the B trajectories."""
    span_length, lengths = ints(columns.span_lengths), ints(columns.lengths)
    kept = np.flatnonzero(span_length)
    trajectory = np.repeat(np.arange(len(lengths)), ints(columns.actions))[kept]
    attributes = [values if len(values) == len(kept) else values[kept] for values in _of_spans(columns, names)]
    attributes += [values[trajectory] for values in _of_trajectories(columns, names, lengths, sign)]
    keys = attributes[0]
    for values, radix in zip(attributes[1:], _radices(names)[1:], strict=True):
        keys = keys * radix + values
    classes, span_class = np.unique(keys, return_inverse=True)
    span_start = (np.cumsum(span_length) - span_length)[kept]
    start, run_span, token_class, staleness = _runs(columns, lengths, span_start)
    # control takes 2 values and staleness 6 (its ranges, and unknown)
    key = span_class[run_span] * 12 + token_class
    is_used = np.bincount(key, minlength=12 * len(classes)) > 0
    used, cell = np.flatnonzero(is_used), (np.cumsum(is_used) - 1)[key]
    decoded = np.unravel_index(classes[used // 12], _radices(names))
    return Runs(
        start=start,
        length=np.diff(start, append=columns.tokens),
        trajectory=trajectory[run_span],
        cell=cell,
        staleness=staleness,
        post_tool=attributes[0][run_span] > 0,
        families=_families(dict(zip(_ATTRIBUTES, decoded, strict=True)), used % 12 // 6, used % 6, names),
        sign=decoded[-1],
    )


_ATTRIBUTES = ("position", "bits", "tool", "turn", "source", "horizon", "length", "sign")
"""What decides the slices of a span: four of its own, four of its trajectory."""


def _radices(names: SliceNames) -> tuple[int, ...]:
    """How many values each of `_ATTRIBUTES` can take."""
    return (
        *(3, 16, len(names.tools) + 2, len(TURN_FROM)),
        *(len(names.sources) + 1, len(HORIZON_FROM), len(LENGTH_FROM), SIGNS),
    )


def _of_spans(columns: TokenColumns, names: SliceNames) -> list[Ints]:
    """Position, bits, tool and turn of each of the K spans."""
    code, other = {name: i for i, name in enumerate(("", *names.tools))}, len(names.tools) + 1
    bits = np.frombuffer(columns.span_bits, dtype=np.uint8).astype(np.int64)
    tool = np.array([code.get(name, other) for name in columns.span_tools], dtype=np.int64)
    position = np.where(tool > 0, 1, (bits & AFTER_TOOL) * 2)
    return [position, bits, tool, _range_of(ints(columns.span_turns), TURN_FROM)]


def _of_trajectories(columns: TokenColumns, names: SliceNames, lengths: Ints, sign: Ints) -> list[Ints]:
    """Source, horizon, length and sign of each of the B trajectories."""
    code, other = {name: i for i, name in enumerate(names.sources)}, len(names.sources)
    source = np.array([code.get(name, other) for name in columns.source], dtype=np.int64)
    return [source, _range_of(horizons(columns), HORIZON_FROM), _range_of(lengths, LENGTH_FROM), sign]


def horizons(columns: TokenColumns) -> Ints:
    """Turns of each of the B trajectories, the number of its actions where it says none."""
    turns = np.array(columns.turns, dtype=np.int64)
    return np.where(turns == 0, ints(columns.actions), turns)


def _range_of(values: Ints, starts: tuple[int, ...]) -> Ints:
    return np.maximum(np.searchsorted(np.array(starts), values, side="right") - 1, 0)


def _runs(columns: TokenColumns, lengths: Ints, span_start: Ints) -> tuple[Ints, Ints, Ints, npt.NDArray[np.float64]]:
    """Start of each run, its span, 6 x control + range of staleness (5: unknown), and its staleness (NaN: unknown)."""
    opens = np.zeros(columns.tokens, dtype=np.bool_)
    control, age = join(columns, "control"), join(columns, "staleness")
    if control is not None:
        np.not_equal(control.values[1:], control.values[:-1], out=opens[1:])
    if age is not None:
        opens[1:] |= age.values[1:] != age.values[:-1]
    opens[span_start] = True
    start = np.flatnonzero(opens)
    run_span = np.searchsorted(span_start, start, side="right") - 1
    label = np.full(len(start), len(STALENESS_FROM), dtype=np.int64)
    staleness = np.full(len(start), np.nan)
    if age is not None:
        found = age.values[start]
        known = True if age.has.all() else np.repeat(age.has, lengths)[start]
        staleness, label = np.where(known, found, staleness), np.where(known, _range_of(found, STALENESS_FROM), label)
    if control is not None:
        label = label + 6 * (control.values[start] != 0)
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
            np.where(decoded["bits"] & AFTER_ERROR, at["post_tool_error"], total),
            np.where(control > 0, at["control"], total),
            np.where(decoded["bits"] & AFTER_IMAGE, at["after_image"], total),
            np.where(decoded["bits"] & AFTER_COMPACTION, at["after_compaction"], total),
            np.where(decoded["tool"] > 0, first_tool + decoded["tool"] - 1, total),
            first_source + decoded["source"],
            first_turn + decoded["turn"],
            first_horizon + decoded["horizon"],
            np.where(age < len(STALENESS_FROM), first_age + age, total),
            first_length + decoded["length"],
        ]
    )
    return families[(families < total).any(axis=1)]
