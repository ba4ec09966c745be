"""Which tokens a truncated distribution (top-k, top-p) could have drawn, token by token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSets:
    """The kept set of each of T tokens, so that the learner can renormalise over the same set as the sampler did.

    counts: array('i') of T, how many tokens of the vocabulary could be drawn there, 0 for all of them (and for
    tokens that were not sampled).  ids: array('i') of sum(counts), the sets one after another.

    Example: counts [0, 2, 3], ids [4, 9, 1, 4, 7]: nothing was cut for the first token; the second came from {4, 9}.
    Raises ValueError where the counts do not add up to the number of ids.
    """

    counts: array[int]
    ids: array[int]

    def __post_init__(self) -> None:
        if sum(self.counts) != len(self.ids):
            raise ValueError(f"kept sets count {sum(self.counts)} ids and hold {len(self.ids)}")

    def part(self, start: int, end: int) -> KeptSets:
        """The sets of tokens start to end."""
        before, counts = sum(self.counts[:start]), self.counts[start:end]
        return KeptSets(counts=counts, ids=self.ids[before : before + sum(counts)])

    @staticmethod
    def join(parts: Sequence[tuple[KeptSets | None, int]]) -> KeptSets | None:
        """Sets of (sets, number of tokens) one after another; None where every part is.

        >>> one = KeptSets(counts=array("i", [2]), ids=array("i", [4, 9]))
        >>> KeptSets.join([(None, 2), (one, 1)])
        KeptSets(counts=array('i', [0, 0, 2]), ids=array('i', [4, 9]))
        """
        if all(part is None for part, _ in parts):
            return None
        counts, ids = array("i"), array("i")
        for part, tokens in parts:
            counts.extend(part.counts if part is not None else array("i", bytes(4 * tokens)))
            ids.extend(part.ids if part is not None else ())
        return KeptSets(counts=counts, ids=ids)
