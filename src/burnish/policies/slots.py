"""Key-value memory of many sequences side by side: slot s holds one sequence, token c of it in column c.

A decoding batch is the first n slots, read in place as views.  A sequence that waits for its next turn stays where it
is; rows are copied or exchanged only to keep the batch together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from burnish.policies.pages import zeroed_bytes

_LANE = 16
_LINE_BYTES = 64


def fit_columns(columns: int) -> int:
    """The next odd multiple of 16: whole cache lines, and never a power of two, at which the rows of a batch would
    fall into the same cache sets (measured: three times slower reads).

    >>> fit_columns(60), fit_columns(64), fit_columns(80)
    (80, 80, 80)
    """
    lanes = -(-columns // _LANE)
    return _LANE * (lanes + 1 - lanes % 2)


class SlotStore:
    """Keys and values of `layers` layers for `rows` slots of `columns` tokens; grows, never shrinks but by `clear`.

    Keys are held [rows, kv_heads, head_dim, columns] where `keys_across` (a decode step then reads them along its
    columns) and [rows, kv_heads, columns, head_dim] otherwise; values always the latter.  Buffers are zeroed: columns
    that are masked but were never written must be finite.  `generation` changes whenever buffers are replaced.

    Example: `SlotStore(layers=3, device=..., keys_across=True)` is empty; `allocate` gives a layer its heads.
    """

    def __init__(self, *, layers: int, device: torch.device, keys_across: bool) -> None:
        self.device, self.keys_across = device, keys_across
        self.rows, self.columns, self.generation = 0, 0, 0
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._shapes: list[tuple[int, int, int, torch.dtype] | None] = [None] * layers

    @property
    def row_bytes(self) -> int:
        """Bytes of keys and values of one slot."""
        tokens = (heads * (d_k + d_v) * dtype.itemsize for heads, d_k, d_v, dtype in filter(None, self._shapes))
        return self.columns * sum(tokens)

    @property
    def bytes_held(self) -> int:
        """Bytes of all buffers."""
        return self.rows * self.row_bytes

    def allocate(self, layer: int, *, heads: int, key_dim: int, value_dim: int, dtype: torch.dtype) -> None:
        """Give a layer its buffers, if it has none yet."""
        if self._shapes[layer] is None:
            self._shapes[layer] = (heads, key_dim, value_dim, dtype)
            self._replace([layer])

    def layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that was allocated."""
        keys, values = self.keys[layer], self.values[layer]
        if keys is None or values is None:
            raise RuntimeError(f"layer {layer} has no buffers yet; allocate it first")
        return keys, values

    def ensure(self, rows: int, columns: int) -> None:
        """Room for so many slots and columns, keeping what is written; by a half or a quarter at least."""
        new_rows = self.rows if rows <= self.rows else max(rows, self.rows * 3 // 2)
        new_columns = self.columns if columns <= self.columns else fit_columns(max(columns, self.columns * 5 // 4))
        if (new_rows, new_columns) == (self.rows, self.columns):
            return
        self.rows, self.columns = new_rows, new_columns
        self._replace(range(len(self.keys)))

    def clear(self) -> None:
        """Give all memory back."""
        self.rows, self.columns = 0, 0
        for index in range(len(self.keys)):
            self.keys[index] = self.values[index] = None
        self._replace(range(len(self.keys)))

    def copy(self, source: Sequence[int], target: Sequence[int], columns: int, *, first: int = 0) -> None:
        """Copy the columns [first, columns) of some slots to as many others, all at once."""
        if source:
            left, right = self._index(source), self._index(target)
            for part in self._written(first, columns):
                part.index_copy_(0, right, part.index_select(0, left))

    def swap(self, left: Sequence[int], right: Sequence[int], columns: int) -> None:
        """Exchange the first `columns` columns of disjoint slots, pair by pair."""
        self.copy([*left, *right], [*right, *left], columns)

    def _index(self, slots: Sequence[int]) -> Tensor:
        return torch.tensor(list(slots), dtype=torch.long, device=self.device)

    def _written(self, first: int, end: int) -> list[Tensor]:
        """Some columns of every buffer, as they lie in memory: copying a transposed view takes twice as long."""
        across = slice(first, end) if self.keys_across else slice(None)
        down = slice(None) if self.keys_across else slice(first, end)
        keys = [buffer[:, :, down, across] for buffer in self.keys if buffer is not None]
        return keys + [buffer[:, :, first:end] for buffer in self.values if buffer is not None]

    def _replace(self, layers: Sequence[int]) -> None:
        """New buffers for some layers, side by side in one block, with what was written before."""
        self.generation += 1
        wanted: list[tuple[list[Tensor | None], int, tuple[int, ...], torch.dtype]] = []
        for layer in layers:
            fixed = self._shapes[layer]
            if fixed is not None:
                heads, key_dim, value_dim, dtype = fixed
                sides = (self.columns, key_dim) if not self.keys_across else (key_dim, self.columns)
                wanted.append((self.keys, layer, (self.rows, heads, *sides), dtype))
                wanted.append((self.values, layer, (self.rows, heads, self.columns, value_dim), dtype))
        sizes = [_whole_lines(math.prod(shape) * dtype.itemsize) for _, _, shape, dtype in wanted]
        block, end = zeroed_bytes(sum(sizes), self.device), 0
        for (buffers, layer, shape, dtype), size in zip(wanted, sizes, strict=True):
            start, end = end, end + size
            new = block[start:end].view(dtype)[: math.prod(shape)].view(shape)
            old = buffers[layer]
            if old is not None:
                new[tuple(slice(length) for length in old.shape)] = old
            buffers[layer] = new


def _whole_lines(count: int) -> int:
    """Bytes of whole cache lines."""
    return -(-count // _LINE_BYTES) * _LINE_BYTES
