"""New tokens of several rows that differ in number and in where they start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Ragged:
    """Where N new tokens of U rows go; each tensor is int64 on `device`.

    unit_N, offset_N: the row among the U and the place among its new tokens.  padded_N: the place where rows of `width`
    tokens stand one after another.  slots_N, positions_N: slot and column.
    slots_U, starts_U, lengths_U: of the rows; last_U: index of each row's last token among the N.
    width: new tokens of the longest; columns: columns that the longest row fills afterwards.

    Example: 2 rows with 3 and 1 new tokens from columns 0 and 9: positions_N is [0, 1, 2, 9], last_U is [2, 3].
    """

    def __init__(
        self, slots: Sequence[int], starts: Sequence[int], lengths: Sequence[int], device: torch.device
    ) -> None:
        ends = np.cumsum(lengths)
        offsets = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        positions = np.repeat(starts, lengths) + offsets
        self.width = max(lengths)
        units = np.repeat(np.arange(len(slots)), lengths)
        by_token = [units, offsets, units * self.width + offsets, np.repeat(slots, lengths), positions]
        by_row = [np.asarray(slots), np.asarray(starts), np.asarray(lengths), ends - 1]
        self.unit_N, self.offset_N, self.padded_N, self.slots_N, self.positions_N = _tensor(by_token, device)
        self.slots_U, self.starts_U, self.lengths_U, self.last_U = _tensor(by_row, device)
        self.columns = int(positions.max()) + 1

    def hidden(self, positions_UQ: Tensor, *, window: int | None = None, chunk: int | None = None) -> Tensor:
        """Bool [U, Q, columns]: what a query at each position must not see: later columns, those `window` or more
        before it, those of another chunk.  A query of padding sees at least something."""
        columns = torch.arange(self.columns, device=self.slots_U.device)
        at = positions_UQ.clamp(0, self.columns - 1)[:, :, None]
        hidden = columns > at
        if window is not None:
            hidden |= columns <= at - window
        if chunk is not None:
            hidden |= columns // chunk != at // chunk
        return hidden


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a column is seen, the lowest number where it is hidden."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


def _tensor(columns: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(columns).astype(np.int64)).to(device)
