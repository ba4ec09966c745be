"""Which texts the slots hold, found by their exact token ids.

The next turn of an episode starts with the tokens of the turn before, so only what the tools added has to go through
the model; members of a group that come later start with a prompt that a slot already holds.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import numpy.typing as npt

_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(slots=True, eq=False, kw_only=True)
class Held:
    """The tokens `ids` (int32 [T]) in columns [0, T) of slot `slot`; -1 once they are gone.

    warm: the row has ended, so that its slot may be taken over; a row that still grows can only be copied from.
    marks: (hash, length) of the beginnings by which it can be found.  age: higher for texts that came later.
    """

    slot: int
    ids: npt.NDArray[np.int32]
    warm: bool
    marks: tuple[tuple[int, int], ...]
    age: int


class Prefixes:
    """Finds the longest held beginning of a prompt.  Warm slots are listed oldest first.

    A beginning is found by a polynomial hash of its ids modulo 2**64, of which one pass over a prompt gives all, and
    then compared id by id.  Several slots may hold the same text: members of a group that said the same.
    """

    def __init__(self) -> None:
        self._by_slot: dict[int, Held] = {}
        self._warm: OrderedDict[Held, None] = OrderedDict()
        self._added = 0
        self._next_free = 0
        self._by_hash: dict[int, dict[Held, int]] = {}
        self._lengths: Counter[int] = Counter()
        self._powers = np.ones(1, np.uint64)

    def __len__(self) -> int:
        return len(self._warm)

    def is_warm(self, slot: int) -> bool:
        """Whether the slot holds a finished text."""
        held = self._by_slot.get(slot)
        return held is not None and held.warm

    def at(self, slot: int) -> Held | None:
        """What the slot holds, if it can be found."""
        return self._by_slot.get(slot)

    def is_spare(self, slot: int) -> bool:
        """Whether all by which the slot's text can be found is found in other slots too; also where it holds none."""
        held = self._by_slot.get(slot)
        return held is None or all(len(self._by_hash[value]) > 1 for value, _ in held.marks)

    def held_ids(self, slot: int) -> npt.NDArray[np.int32]:
        """The ids that the slot holds, none where it holds nothing."""
        held = self._by_slot.get(slot)
        return np.zeros(0, np.int32) if held is None else held.ids

    def warm_slots(self) -> Iterator[int]:
        """Oldest first."""
        return (held.slot for held in self._warm)

    def free_slots(self, first: int, end: int) -> Iterator[int]:
        """Slots from `first` on that hold nothing warm: those before `end`, then as many beyond as are asked for.

        The search goes on where the last one ended, since texts leave in about the order in which they came.
        """
        start = min(max(first, self._next_free), max(first, end))
        for slot in chain(range(start, end), range(first, start), count(max(first, end))):
            if not self.is_warm(slot):
                self._next_free = slot + 1
                yield slot

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        for held in self._by_slot.values():
            held.slot = -1
        self._by_slot.clear()
        self._warm.clear()
        self._by_hash.clear()
        self._lengths.clear()

    def add(self, slot: int, ids: npt.NDArray[np.int32], lengths: Sequence[int], *, warm: bool) -> None:
        """Slot `slot` now holds `ids`, which can be found by its first `lengths` tokens."""
        self.drop(slot)
        lengths = [length for length in dict.fromkeys(lengths) if length > 0]
        if not lengths:
            return
        values = self._hashes(ids)
        marks = tuple((int(values[length - 1]), length) for length in lengths)
        self._added += 1
        held = Held(slot=slot, ids=ids, warm=warm, marks=marks, age=self._added)
        self._by_slot[slot] = held
        if warm:
            self._warm[held] = None
        for value, length in marks:
            self._by_hash.setdefault(value, {})[held] = length
            self._lengths[length] += 1

    def drop(self, slot: int) -> None:
        """What the slot holds is about to be overwritten."""
        held = self._by_slot.pop(slot, None)
        if held is None:
            return
        held.slot = -1
        if held.warm:
            del self._warm[held]
        for value, length in held.marks:
            self._lengths[length] -= 1
            if not self._lengths[length]:
                del self._lengths[length]
            holders = self._by_hash[value]
            del holders[held]
            if not holders:
                del self._by_hash[value]

    def move(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Texts moved from slot to slot, all at once; what the targets held before is forgotten unless it moved."""
        moved = [(self._by_slot.pop(source, None), target) for source, target in pairs]
        for _, target in pairs:
            self.drop(target)
        for held, target in moved:
            if held is not None:
                held.slot = target
                self._by_slot[target] = held

    def exchange(self, pairs: Sequence[tuple[int, int]]) -> None:
        """The texts of disjoint slots change places, pair by pair."""
        self.move([pair for left, right in pairs for pair in ((left, right), (right, left))])

    def longest(self, prompt: npt.NDArray[np.int32]) -> tuple[list[Held], int]:
        """All that hold the longest beginning that the prompt (int32 [T]) strictly extends, newest first, and how long
        this is; nothing and 0 where none is held."""
        lengths = sorted((length for length in self._lengths if length < len(prompt)), reverse=True)
        if not lengths:
            return [], 0
        values = self._hashes(prompt[: lengths[0]])
        for length in lengths:
            holders = self._by_hash.get(int(values[length - 1]), {})
            found = [
                held
                for held, marked in reversed(holders.items())
                if marked == length and np.array_equal(held.ids[:length], prompt[:length])
            ]
            if found:
                return found, length
        return [], 0

    def _hashes(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.uint64]:
        """The hash of every beginning of `ids`, the empty one left out."""
        if len(self._powers) < len(ids):
            self._powers = np.multiply.accumulate(np.full(2 * len(ids), _MULTIPLIER, np.uint64))
        return np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * self._powers[: len(ids)], dtype=np.uint64)
