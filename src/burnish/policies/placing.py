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

    held_tokens: how many tokens need not go through the model, at most all but one.  source: the slot to copy them
    from, -1 where they stand in the first slot already (or there are none).

    Example: a group of 8 with one prompt of 40 tokens is one unit with 8 slots and 40 new tokens.
    """

    prompt: npt.NDArray[np.int32]
    rows: list[R]
    held: Held | None = None
    held_tokens: int = 0
    takes_over: bool = False
    source: int = -1
    slots: list[int] = field(default_factory=list)

    @property
    def new_tokens(self) -> int:
        """Tokens that have to go through the model, at least 1."""
        return len(self.prompt) - self.held_tokens

    @staticmethod
    def group(rows: Sequence[R], prefixes: Prefixes) -> list[Unit[R]]:
        """Equal prompts become one unit.  A warm text is taken over by the first unit that goes on from its end; all
        others copy what they share with it."""
        by_prompt: dict[bytes, list[R]] = {}
        for row in rows:
            by_prompt.setdefault(row.prompt.tobytes(), []).append(row)
        units, taken = [], set()
        for members in by_prompt.values():
            unit = Unit(members[0].prompt, members)
            found = prefixes.longest(unit.prompt)
            if found is not None:
                unit.held, unit.held_tokens = found
                unit.takes_over = (
                    unit.held.warm and unit.held_tokens == len(unit.held.ids) and id(unit.held) not in taken
                )
                if unit.takes_over:
                    taken.add(id(unit.held))
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
    inside.  Other rows take slots that hold nothing, then warm ones, whose text is parked behind the batch.
    """
    total = len(live) + sum(len(unit.rows) for unit in units)
    end = max(end, total)
    claimed = {unit.held.slot for unit in units if unit.takes_over and unit.held is not None}
    open_slots = [slot for slot in range(end) if slot not in live and slot not in claimed]
    ages = {slot: held.age for slot in open_slots if (held := prefixes.at(slot)) is not None}
    open_slots.sort(key=lambda slot: (ages.get(slot, 0), slot))
    plan = Placement(end=end, rows=max(rows, end), swaps=[], parked=[], moved=[])
    chosen: list[int] = []
    for unit in units:
        if unit.takes_over and unit.held is not None:
            slot = unit.held.slot
            if slot >= end:
                target = open_slots.pop(0)
                plan.swaps.append((target, slot))
                slot = target
            unit.slots.append(slot)
        else:
            unit.slots.append(open_slots.pop(0))
            chosen.append(unit.slots[0])
        unit.slots += [open_slots.pop(0) for _ in unit.rows[1:]]
        chosen += unit.slots[1:]
    plan.moved = [held for pair in plan.swaps for held in map(prefixes.at, pair) if held is not None]
    prefixes.exchange(plan.swaps)
    _park(plan, [slot for slot in chosen if prefixes.is_warm(slot)], prefixes)
    for unit in units:
        if unit.held is not None and not unit.takes_over:
            unit.source = unit.held.slot
            unit.held_tokens = unit.held_tokens if unit.source >= 0 else 0
    for unit in units:
        for slot in unit.slots:
            prefixes.drop(slot)
    return plan


def _park(plan: Placement, slots: Sequence[int], prefixes: Prefixes) -> None:
    """Copy the texts of `slots` behind the batch."""
    free = prefixes.free_slots(plan.end, plan.rows)
    for slot, target in zip(slots, free, strict=False):
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
