"""The tokens of a step cut into runs of equal slices, and each stream over them as an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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
    family of slices that exclude each other, S for none.  sign: of the advantage of each class, ascending.
    """

    start: Ints
    length: Ints
    trajectory: Ints
    cell: Ints
    post_tool: Bools
    staleness: npt.NDArray[np.float64]
    families: Ints
    sign: Ints

    def only(self, chosen: Bools) -> Runs:
        """Some of the runs, as if there were no other tokens; chosen: [R]."""
        length = self.length[chosen]
        return replace(
            self,
            start=np.cumsum(length) - length,
            length=length,
            trajectory=self.trajectory[chosen],
            cell=self.cell[chosen],
            post_tool=self.post_tool[chosen],
            staleness=self.staleness[chosen],
        )


def ints(values: Any) -> Ints:
    """Machine integers, such as the bytes of an array('i'), as int64."""
    return np.frombuffer(values, dtype=np.intc).astype(np.int64)


def join(columns: TokenColumns, name: str) -> Joined | None:
    """One stream of all trajectories, None where no trajectory has it."""
    values = columns.streams.get(name)
    if values is None:
        return None
    return Joined(
        values=np.frombuffer(values, dtype=STREAMS[name]), has=np.frombuffer(columns.has[name], dtype=np.bool_)
    )


def cut(columns: TokenColumns, names: SliceNames, sign: Ints) -> Runs:
    """Runs of the N tokens.  sign: of the advantage of each of the B trajectories."""
    lookup = _Lookup.of(names)
    span_length, lengths = ints(columns.span_lengths), ints(columns.lengths)
    span_start = np.cumsum(span_length) - span_length
    trajectory, of_span = np.repeat(np.arange(len(lengths)), ints(columns.actions)), _of_spans(columns, names)
    if not span_length.all():
        kept = np.flatnonzero(span_length)
        span_start, trajectory, of_span = span_start[kept], trajectory[kept], of_span[kept]
    start, run_span, of_token, staleness = _runs(columns, lengths, span_start)
    run_trajectory = trajectory[run_span]
    of_trajectory = _of_trajectories(columns, names, lengths) + lookup.trajectories * sign
    # the sign stands highest, so that classes of one sign follow each other
    keys = (of_trajectory[run_trajectory] * lookup.spans + of_span[run_span]) * lookup.tokens + of_token
    classes, cell = np.unique(keys, return_inverse=True)
    rest, of_token = np.divmod(classes, lookup.tokens)
    of_trajectory, of_span = np.divmod(rest, lookup.spans)
    sign_of_class, of_trajectory = np.divmod(of_trajectory, lookup.trajectories)
    families = np.concatenate(
        [
            lookup.families_of_span.take(of_span, axis=1),
            lookup.families_of_trajectory.take(of_trajectory, axis=1),
            lookup.families_of_token.take(of_token, axis=1),
        ]
    )
    return Runs(
        start=start,
        length=_differences(start, columns.tokens),
        trajectory=run_trajectory,
        cell=cell,
        staleness=staleness,
        post_tool=of_span[cell] % 3 > 0,
        families=families,
        sign=sign_of_class,
    )


def _differences(start: Ints, end: int) -> Ints:
    """Lengths of stretches that follow each other up to `end`."""
    found = np.empty_like(start)
    np.subtract(start[1:], start[:-1], out=found[:-1])
    found[-1:] = end - start[-1:]
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Lookup:
    """What decides the slices of a token is a key of its span, one of its trajectory and one of its own.

    spans, trajectories, tokens: how many values each can take.  families_of_...: [F, that many], the slice of each key
    in each family of slices that exclude each other, S for none; unions of slices are left out.
    """

    spans: int
    trajectories: int
    tokens: int
    families_of_span: Ints
    families_of_trajectory: Ints
    families_of_token: Ints

    @staticmethod
    @lru_cache(maxsize=8)
    def of(names: SliceNames) -> _Lookup:
        at = {name: i for i, name in enumerate(names.names)}
        none = len(at)
        first_tool, first_source = len(PRINCIPAL) + len(AFTER), len(PRINCIPAL) + len(AFTER) + len(names.tools) + 1
        first_turn = first_source + len(names.sources) + 1
        first_horizon = first_turn + len(TURN_FROM)
        first_age = first_horizon + len(HORIZON_FROM)
        first_length = first_age + len(STALENESS_FROM)
        spans, trajectories = _span_radices(names), _trajectory_radices(names)
        turn, tool, bits, position = np.indices(spans).reshape(len(spans), -1)
        length, horizon, source = np.indices(trajectories).reshape(len(trajectories), -1)
        control, age = np.indices(_TOKEN_RADICES).reshape(len(_TOKEN_RADICES), -1)
        principal = np.array([at["text"], at["post_tool_first"], at["post_tool_later"]])
        of_span = [
            principal[position],
            np.where(bits & AFTER_ERROR, at["post_tool_error"], none),
            np.where(bits & AFTER_IMAGE, at["after_image"], none),
            np.where(bits & AFTER_COMPACTION, at["after_compaction"], none),
            np.where(tool > 0, first_tool + tool - 1, none),
            first_turn + turn,
        ]
        of_token = [
            np.where(control > 0, at["control"], none),
            np.where(age < len(STALENESS_FROM), first_age + age, none),
        ]
        return _Lookup(
            spans=math.prod(spans),
            trajectories=math.prod(trajectories),
            tokens=math.prod(_TOKEN_RADICES),
            families_of_span=np.stack(of_span),
            families_of_trajectory=np.stack([first_source + source, first_horizon + horizon, first_length + length]),
            families_of_token=np.stack(of_token),
        )


_TOKEN_RADICES = (2, len(STALENESS_FROM) + 1)
"""How many values can be taken by whether a token is control, and by its range of staleness (the last: unknown)."""


def _span_radices(names: SliceNames) -> tuple[int, ...]:
    """How many values turn, tool, bits and position of a span can take."""
    return len(TURN_FROM), len(names.tools) + 2, 16, 3


def _trajectory_radices(names: SliceNames) -> tuple[int, ...]:
    """How many values length, horizon and source of a trajectory can take."""
    return len(LENGTH_FROM), len(HORIZON_FROM), len(names.sources) + 1


def _of_spans(columns: TokenColumns, names: SliceNames) -> Ints:
    """The key of each of the K spans."""
    bits = np.frombuffer(columns.span_bits, dtype=np.uint8)
    tool = _coded(columns.span_tools, _codes("", *names.tools))
    position = np.where(tool > 0, 1, (bits & AFTER_TOOL) * 2)
    turn = _range_of(np.frombuffer(columns.span_turns, dtype=np.intc), TURN_FROM)
    _, tools, all_bits, positions = _span_radices(names)
    return ((turn * tools + tool) * all_bits + bits) * positions + position


def _of_trajectories(columns: TokenColumns, names: SliceNames, lengths: Ints) -> Ints:
    """The key of each of the B trajectories."""
    source = _coded(columns.source, _codes(*names.sources))
    _, horizon, sources = _trajectory_radices(names)
    at_horizon = _range_of(horizons(columns), HORIZON_FROM)
    return (_range_of(lengths, LENGTH_FROM) * horizon + at_horizon) * sources + source


class _Codes(dict[str, int]):
    """Names by number; every other name has the number after the last."""

    def __missing__(self, name: str) -> int:
        return len(self)


@lru_cache(maxsize=16)
def _codes(*names: str) -> _Codes:
    return _Codes({name: i for i, name in enumerate(names)})


def _coded(names: Sequence[str], code: _Codes) -> Ints:
    return np.fromiter(map(code.__getitem__, names), np.int64, len(names))


def horizons(columns: TokenColumns) -> Ints:
    """Turns of each of the B trajectories, the number of its actions where it says none."""
    turns = np.array(columns.turns, dtype=np.int64)
    return np.where(turns == 0, ints(columns.actions), turns)


def _range_of(values: npt.NDArray[Any], starts: tuple[int, ...]) -> Ints:
    """Which of the ranges that begin at `starts` each value falls into, the first for values below all."""
    return _ranges(starts).take(values, mode="clip")


@lru_cache(maxsize=8)
def _ranges(starts: tuple[int, ...]) -> Ints:
    """The range of each value from 0 to the last start."""
    return np.maximum(np.searchsorted(np.array(starts), np.arange(starts[-1] + 1), side="right") - 1, 0)


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
    if age is None:
        label, staleness = np.full(len(start), len(STALENESS_FROM), dtype=np.int64), np.full(len(start), np.nan)
    else:
        found = age.values[start]
        label, staleness = _range_of(found, STALENESS_FROM), found.astype(np.float64)
        if not age.has.all():
            unknown = ~np.repeat(age.has, lengths)[start]
            label[unknown], staleness[unknown] = len(STALENESS_FROM), np.nan
    if control is not None:
        label += 6 * (control.values[start] != 0)
    return start, run_span, label, staleness
