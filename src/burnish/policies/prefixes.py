"""Conversations whose keys and values are still at hand, found by their exact token ids.

The next turn of an episode starts with the tokens of the turn before, so only what the tools added has to go
through the model.  Entries are valid for one set of weights; the owner empties the store when these change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from burnish.policies.cache import RowCache

_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The tokens `ids` (int32 [T]) in columns [first_column, first_column + T) of row `row` of `cache`.

    Example: prompt of 40 tokens, 12 sampled: T is 51, since the last sampled token was never fed back.
    """

    cache: RowCache
    row: int
    first_column: int
    ids: npt.NDArray[np.int32]

    @property
    def length(self) -> int:
        """T."""
        return len(self.ids)


class PrefixStore:
    """Finds the longest held prefix of a prompt; holds at most `max_bytes` of keys and values, oldest batch out first.

    A prefix is found by a polynomial hash of its ids modulo 2**64, of which one pass over a prompt gives all, and
    then compared id by id.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._by_hash: dict[int, Prefix] = {}
        self._batches: dict[int, tuple[RowCache, list[int]]] = {}
        self._powers = np.ones(1, np.uint64)

    def __len__(self) -> int:
        return len(self._by_hash)

    @property
    def bytes_held(self) -> int:
        """Bytes of keys and values that are kept alive."""
        return sum(cache.bytes_held for cache, _ in self._batches.values())

    def clear(self) -> None:
        """Forget everything: the weights have changed."""
        self._by_hash.clear()
        self._batches.clear()

    def add(self, cache: RowCache, prefixes: Iterable[Prefix]) -> None:
        """Hold one finished batch, all of whose `prefixes` lie in `cache`."""
        if cache.bytes_held > self.max_bytes:
            return
        hashes = []
        for prefix in prefixes:
            if prefix.length:
                hashes.append(self._hashes(prefix.ids)[-1])
                self._by_hash[hashes[-1]] = prefix
        self._batches[id(cache)] = (cache, hashes)
        while self.bytes_held > self.max_bytes:
            self._drop(next(iter(self._batches)))

    def longest(self, prompt: npt.NDArray[np.int32]) -> Prefix | None:
        """The longest held sequence that the prompt (int32 [T]) strictly extends."""
        if not self._by_hash:
            return None
        for value in reversed(self._hashes(prompt[:-1])):
            prefix = self._by_hash.get(value)
            if prefix is not None and np.array_equal(prefix.ids, prompt[: prefix.length]):
                return prefix
        return None

    def _hashes(self, ids: npt.NDArray[np.int32]) -> list[int]:
        """The hash of every prefix of `ids`, the empty one left out."""
        if len(self._powers) < len(ids):
            steps = np.full(2 * len(ids), _MULTIPLIER, np.uint64)
            self._powers = np.multiply.accumulate(steps)
        values: list[int] = np.cumsum((ids.astype(np.uint64) + np.uint64(1)) * self._powers[: len(ids)]).tolist()
        return values

    def _drop(self, batch: int) -> None:
        cache, hashes = self._batches.pop(batch)
        for value in hashes:
            if value in self._by_hash and self._by_hash[value].cache is cache:
                del self._by_hash[value]
