"""What every slot of the engine has drawn and may draw, as tensors beside the keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row that starts in slot `slot`: its prompt (int32 [T]), the column where it ends at the latest, the uniforms
    (float64; rounded to float32 here) of its first draws, and the number of its stop set."""

    slot: int
    prompt: npt.NDArray[np.int32]
    last_column: int
    uniforms: npt.NDArray[np.float64]
    stop_set: int


class Front(NamedTuple):
    """Views of the first n slots [n], and of whole tables as one row; see `Ledger`."""

    rows: int
    position: Tensor
    flat: Tensor
    both: Tensor
    stride: Tensor
    last: Tensor
    stop_set: Tensor
    ids: Tensor
    logprobs: Tensor
    uniforms: Tensor


class Ledger:
    """Per slot (S) and column (T): ids, the log-probabilities of those drawn, the uniforms of those to come.

    `position[s]` is the column of the last known token of slot s, which the next step feeds to the model; a row that
    has ended stands still (`stride` 0), so that a step may run over it without harm.

    Example: a prompt of 3 tokens stands at position 2; after one draw at position 3, its id in column 3.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.rows, self.columns = device, 0, 0
        self.ids = torch.zeros(0, 0, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(0, 0, device=device)
        self.uniforms = torch.zeros(0, 0, device=device)
        self.stride, self.last, self.stop_set = (torch.zeros(0, dtype=torch.long, device=device) for _ in range(3))
        # position and flat move together
        self.both = torch.zeros(2, 0, dtype=torch.long, device=device)
        self.position, self.flat = self.both
        self._front: Front | None = None

    def ensure(self, rows: int, columns: int) -> bool:
        """Grow to so many slots and columns; True where the columns grew."""
        if (rows, columns) == (self.rows, self.columns):
            return False
        wider = columns > self.columns
        for name in ("ids", "logprobs", "uniforms"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(rows, columns)
            new[: self.rows, : self.columns] = old
            setattr(self, name, new)
        for name in ("both", "stride", "last", "stop_set"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(*old.shape[:-1], rows - self.rows)], dim=-1))
        self.position, self.flat = self.both
        self.rows, self.columns, self._front = rows, columns, None
        torch.add(torch.arange(rows, device=self.device) * columns, self.position, out=self.flat)
        return wider

    def start(self, entries: Sequence[Entry]) -> None:
        """Rows begin: each stands on the last token of its prompt."""
        width = max(max(len(entry.prompt), len(entry.prompt) + len(entry.uniforms)) for entry in entries)
        ids = np.zeros((len(entries), width), np.int64)
        uniforms = np.zeros((len(entries), width), np.float32)
        for row, entry in enumerate(entries):
            length = len(entry.prompt)
            ids[row, :length] = entry.prompt
            uniforms[row, length : length + len(entry.uniforms)] = entry.uniforms
        numbers = [[e.slot, len(e.prompt) - 1, e.last_column, e.stop_set] for e in entries]
        slots, position, last, stops = torch.tensor(numbers, dtype=torch.long).t().to(self.device)
        self.ids[:, :width].index_copy_(0, slots, torch.from_numpy(ids).to(self.device))
        self.uniforms[:, :width].index_copy_(0, slots, torch.from_numpy(uniforms).to(self.device))
        self.position[slots], self.last[slots], self.stop_set[slots] = position, last, stops
        self.flat[slots] = slots * self.columns + position
        self.stride[slots] = 1

    def supply(self, slots: Sequence[int], columns: Sequence[int], uniforms: Sequence[npt.NDArray[np.float64]]) -> None:
        """More uniforms for some slots, from a column on."""
        for slot, column, values in zip(slots, columns, uniforms, strict=True):
            self.uniforms[slot, column : column + len(values)] = torch.from_numpy(values).to(self.device)

    def front(self, rows: int) -> Front:
        """The first slots, as a step sees them."""
        if self._front is None or self._front.rows != rows:
            parts = (self.position, self.flat, self.both, self.stride, self.last, self.stop_set)
            tables = (self.ids, self.logprobs, self.uniforms)
            self._front = Front(rows, *(part[..., :rows] for part in parts), *(table.view(-1) for table in tables))
        return self._front

    def tokens(self, rows: int) -> Tensor:
        """The ids [rows] that the next step feeds."""
        front = self.front(rows)
        return front.ids.index_select(0, front.flat)

    def advance(self, rows: int) -> Tensor:
        """Step to the next column; the uniforms [rows] that decide it."""
        front = self.front(rows)
        front.both.add_(front.stride)
        return front.uniforms.index_select(0, front.flat)

    def record(self, rows: int, tokens: Tensor, logprobs: Tensor) -> None:
        """Note what was drawn for the first slots."""
        front = self.front(rows)
        front.ids.index_copy_(0, front.flat, tokens)
        front.logprobs.index_copy_(0, front.flat, logprobs)

    def advance_some(self, slots: Tensor) -> Tensor:
        """The same as `advance` for chosen slots."""
        self.both[:, slots] += 1
        return self.uniforms.view(-1)[self.flat[slots]]

    def record_some(self, slots: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """The same as `record` for chosen slots."""
        flat = self.flat[slots]
        self.ids.view(-1)[flat] = tokens
        self.logprobs.view(-1)[flat] = logprobs

    def stop(self, slots: Sequence[int]) -> None:
        """These rows have ended, and will not end again."""
        index = torch.tensor(list(slots), dtype=torch.long, device=self.device)
        self.stride[index] = 0
        self.last[index] = torch.iinfo(torch.long).max

    def read(
        self, slots: Sequence[int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Positions [k], ids [k, T] and log-probabilities [k, T] of some slots, on the host."""
        index = torch.tensor(list(slots), dtype=torch.long, device=self.device)
        position = self.position[index].cpu().numpy()
        width = int(position.max()) + 1
        ids, logprobs = self.ids[:, :width][index].cpu().numpy(), self.logprobs[:, :width][index].cpu().numpy()
        return position, ids, logprobs

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Rows take other slots; what stood there is overwritten, and the old places stand still."""
        numbers = torch.tensor([list(source), list(target)], dtype=torch.long, device=self.device)
        left, right = numbers
        for table in (self.ids, self.logprobs, self.uniforms, self.position, self.last, self.stop_set, self.stride):
            table.index_copy_(0, right, table.index_select(0, left))
        self.flat[right] = right * self.columns + self.position[right]
        self.stride[left] = 0
