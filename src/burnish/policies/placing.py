"""Which slots new rows take, and what has to move for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from burnish.policies.prefixes import Held, Prefixes


class _HasPrompt(Protocol):
    prompt: npt.NDArray[np.int32]


R = TypeVar("R", bound=_HasPrompt)


@dataclass(slots=True, eq=False)
class Unit(Generic[R]):
    """One distinct prompt: the rows that share it, what is held of it, and the slots that the rows get.

    held: the texts that begin it.  held_tokens: how many tokens need not go through the model, at most all but one.
    taken: those of the texts, at most one a row, that end there: their slots become the first of the unit's own.
    source: the slot to copy the held tokens from, -1 where they stand in the first slot already (or there are none).

    Example: a group of 8 with one prompt of 40 tokens is one unit with 8 slots and 40 new tokens.  If 5 of them said
    the same, their next turn is a unit of 5 rows that takes over the 5 slots where it stands.
    """

    prompt: npt.NDArray[np.int32]
    rows: list[R]
    held: list[Held] = field(default_factory=list)
    held_tokens: int = 0
    taken: list[Held] = field(default_factory=list)
    source: int = -1
    slots: list[int] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        """Tokens that have to go through the model, at least 1."""
        return len(self.prompt) - self.held_tokens

    @staticmethod
    def group(rows: Sequence[R], prefixes: Prefixes) -> list[Unit[R]]:
        """Equal prompts become one unit.  A warm text is taken over by the first unit that goes on from its end; other
        rows copy what they share with it."""
        by_prompt: dict[bytes, list[R]] = {}
        for row in rows:
            by_prompt.setdefault(row.prompt.tobytes(), []).append(row)
        units: list[Unit[R]] = []
        taken: set[Held] = set()
        for members in by_prompt.values():
            unit = Unit(members[0].prompt, members)
            unit.held, unit.held_tokens = prefixes.longest(unit.prompt)
            ends = [held for held in unit.held if held.warm and unit.held_tokens == len(held.ids) and held not in taken]
            unit.taken = ends[: len(members)]
            taken.update(unit.taken)
            units.append(unit)
        return units


@dataclass(slots=True, kw_only=True)
class Placement:
    """end: slots of the batch from now on.  rows: slots that have to exist.  swaps: slots whose texts change places,
    parked: texts copied from a slot to a free one; `moved` are these texts."""

    end: int
    rows: int
    swaps: list[tuple[int, int]]
    parked: list[tuple[int, int]]
    moved: list[Held]


def place(units: Sequence[Unit[R]], *, live: set[int], end: int, rows: int, prefixes: Prefixes) -> Placement:
    """Give every row a slot within the batch, moving as little as possible; `prefixes` follows.

    Warm texts within the batch are taken over where they stand, those parked behind it change places with a slot
    inside.  Other rows take slots that hold nothing, or nothing of their own, then warm ones, whose text is parked
    behind the batch.
    """
    total = len(live) + sum(len(unit.rows) for unit in units)
    end = max(end, total)
    claimed = {held.slot for unit in units for held in unit.taken}
    open_slots = [slot for slot in range(end) if slot not in live and slot not in claimed]
    ages = {slot: held.age for slot in open_slots if (held := prefixes.at(slot)) is not None}
    open_slots.sort(key=lambda slot: (ages.get(slot, 0), slot))
    plan = Placement(end=end, rows=max(rows, end), swaps=[], parked=[], moved=[])
    chosen: list[int] = []
    for unit in units:
        for held in unit.taken:
            slot = held.slot
            if slot >= end:
                slot = open_slots.pop(0)
                plan.swaps.append((slot, held.slot))
            unit.slots.append(slot)
        others = [open_slots.pop(0) for _ in range(len(unit.rows) - len(unit.taken))]
        unit.slots += others
        chosen += others
    plan.moved = [held for pair in plan.swaps for held in map(prefixes.at, pair) if held is not None]
    prefixes.exchange(plan.swaps)
    _park(plan, [slot for slot in chosen if prefixes.is_warm(slot)], prefixes)
    for unit in units:
        if unit.held and not unit.taken:
            unit.source = next((held.slot for held in unit.held if held.slot >= 0), -1)
            unit.held_tokens = unit.held_tokens if unit.source >= 0 else 0
    for unit in units:
        for slot in unit.slots:
            prefixes.drop(slot)
    return plan


def _park(plan: Placement, slots: Sequence[int], prefixes: Prefixes) -> None:
    """Copy the texts of `slots` behind the batch, those left out that other slots hold too."""
    worth = []
    for slot in slots:
        if prefixes.is_spare(slot):
            prefixes.drop(slot)
        else:
            worth.append(slot)
    free = prefixes.free_slots(plan.end, plan.rows)
    for slot, target in zip(worth, free, strict=False):
        held = prefixes.at(slot)
        if held is not None:
            plan.moved.append(held)
        plan.parked.append((slot, target))
        plan.rows = max(plan.rows, target + 1)
    prefixes.move(plan.parked)


def prefill_ranges(new_tokens: Sequence[int], max_tokens: int) -> list[tuple[int, int]]:
    """Cut units, ordered by their new tokens, into [first, end) of similar width with at most `max_tokens` padded
    tokens (or one unit).

    >>> prefill_ranges([4, 5, 40, 41], 100)
    [(0, 2), (2, 4)]
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    for index, tokens in enumerate(new_tokens):
        too_many = (index + 1 - start) * tokens > max_tokens
        too_wide = tokens > 8 + new_tokens[start] * 3 // 2
        if index > start and (too_many or too_wide):
            ranges.append((start, index))
            start = index
    return [*ranges, (start, len(new_tokens))]
