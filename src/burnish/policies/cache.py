"""The key-value cache of a decoding batch: preallocated, right-aligned, driven through transformers' own `Cache`.

Every prompt of a batch ends in the same column, so that all rows write their next token to one column and a plain
two-dimensional mask of left padding describes the batch.  Every attention model of transformers understands that,
sliding windows and alternating local and global layers included.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class Window:
    """The part of the buffers that the next forward pass sees: rows [first_row, end_row), columns from first_column.

    `Window(rows=128, columns=64)` holds 128 sequences of up to 64 tokens and starts at row 0, column 0.
    """

    __slots__ = ("columns", "end_row", "first_column", "first_row", "rows")

    def __init__(self, *, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self.first_row = 0
        self.end_row = rows
        self.first_column = 0


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, each stored [rows, columns, heads, head size]; allocated at the first write.

    The model is shown the usual [rows, heads, columns, head size]; columns come before heads in memory so that one
    token of one row is one stretch, which is what moves between caches.
    """

    is_sliding = False
    is_compileable = False

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window
        self.next_column = 0
        self.is_initialized = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        """Zeroed buffers: columns that are masked but never written must still be finite."""
        values = key_states if value_states is None else value_states
        self.allocate(key_states.transpose(1, 2), values.transpose(1, 2))

    def allocate(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Buffers for tokens like those of `keys` and `values`, [..., heads, head size]."""
        shape = (self.window.rows, self.window.columns)
        self.keys = keys.new_zeros((*shape, *keys.shape[2:]))
        self.values = values.new_zeros((*shape, *values.shape[2:]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new columns of the window's rows; return everything the window sees."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window, start = self.window, self.next_column
        end = start + key_states.shape[2]
        keys = self.keys[window.first_row : window.end_row].transpose(1, 2)
        values = self.values[window.first_row : window.end_row].transpose(1, 2)
        keys[:, :, start:end] = key_states
        values[:, :, start:end] = value_states
        self.next_column = end
        return keys[:, :, window.first_column : end], values[:, :, window.first_column : end]

    def get_seq_length(self, *args: Any) -> int:
        """Columns before the next write, as the model sees them."""
        return self.next_column - self.window.first_column

    def get_mask_sizes(self, query: int | torch.Tensor) -> tuple[int, int]:
        """Length and offset of the keys for a query of so many columns (older releases pass their positions)."""
        width = query if isinstance(query, int) else query.shape[0]
        return self.get_seq_length() + width, 0

    def get_max_length(self) -> int:
        """No limit that a model should know of; the owner grows the buffers."""
        return -1

    get_max_cache_shape = get_max_length

    def grow(self, columns: int) -> None:
        """Make room for `columns` columns, keeping what is written."""
        if self.is_initialized:
            self.keys = _widened(self.keys, columns)
            self.values = _widened(self.values, columns)


def _widened(buffer: torch.Tensor, columns: int) -> torch.Tensor:
    wide = buffer.new_zeros((buffer.shape[0], columns, *buffer.shape[2:]))
    wide[:, : buffer.shape[1]] = buffer
    return wide


class RowCache(Cache):  # type: ignore[misc]
    """The cache of one batch: `RowCache(layers=3, rows=128, columns=64)`."""

    def __init__(self, *, layers: int, rows: int, columns: int) -> None:
        self.window = Window(rows=rows, columns=columns)
        self.rows: list[RowLayer] = [RowLayer(self.window) for _ in range(layers)]
        super().__init__(layers=list(self.rows))

    @property
    def bytes_held(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.rows if layer.is_initialized)

    def look_at(self, *, rows: tuple[int, int], first_column: int, next_column: int) -> None:
        """Point the next forward pass at rows [rows[0], rows[1]) and columns from `first_column`; it writes from
        `next_column` on."""
        self.window.first_row, self.window.end_row = rows
        self.window.first_column = first_column
        for layer in self.rows:
            layer.next_column = next_column

    def reserve(self, columns: int) -> None:
        """Grow the buffers to at least `columns` columns, by half at a time."""
        if columns > self.window.columns:
            self.window.columns = max(columns, self.window.columns * 3 // 2)
            for layer in self.rows:
                layer.grow(self.window.columns)

    def copy_rows(self, source: torch.Tensor, target: torch.Tensor, columns: int) -> None:
        """Copy the first `columns` columns of the rows `source` to the rows `target`."""
        for buffer in self._buffers():
            buffer[target, :columns] = buffer[source, :columns]

    def swap_rows(self, left: torch.Tensor, right: torch.Tensor, columns: int) -> None:
        """Exchange rows, so that the rows still growing lie together and the finished ones stay readable."""
        for buffer in self._buffers():
            kept = buffer[left, :columns]
            buffer[left, :columns] = buffer[right, :columns]
            buffer[right, :columns] = kept

    def adopt(self, other: RowCache, source: torch.Tensor, target: torch.Tensor) -> None:
        """Take over tokens of another cache; `source` and `target` number a token as row * columns + column, each by
        the columns of its own cache."""
        for mine, theirs in zip(self.rows, other.rows, strict=True):
            if theirs.is_initialized:
                if not mine.is_initialized:
                    mine.allocate(theirs.keys, theirs.values)
                mine.keys.flatten(0, 1).index_copy_(0, target, theirs.keys.flatten(0, 1).index_select(0, source))
                mine.values.flatten(0, 1).index_copy_(0, target, theirs.values.flatten(0, 1).index_select(0, source))

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer for layer in self.rows if layer.is_initialized for buffer in (layer.keys, layer.values)]
