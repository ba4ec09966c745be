"""Packing: training samples to micro-batches of tensors, with as little padding as a rectangle allows.

Three things keep the work small.  Each sample ends at its last trained token (what follows cannot influence a causal
model's earlier positions), and that token itself is a target only, never an input.  Samples are sorted by length before
they are cut into micro-batches.  Padding stands on the right, where a causal model's real tokens cannot see it, so no
attention mask is needed; and because trained positions are listed explicitly, the pad id may equal any real token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B samples as a rectangle of T inputs, and the N trained tokens in it.

    token_ids_BT: int64, right padded.  positions_N: int64, index row * T + column of the input that predicts the token.
    target_ids_N: int64, the trained tokens themselves.  behaviour_logprobs_N, advantages_N, sequence_tokens_N (trained
    tokens of the sequence): float32.  sample_indices_B: places of the rows in the sequence that was packed.
    trained_tokens_B: trained tokens of each row; they stand row by row in the N-tensors.

    Example: ids [5, 6, 7, 8] with loss mask [0, 0, 1, 1] become inputs [5, 6, 7], positions [1, 2], targets [7, 8].
    """

    token_ids_BT: Tensor
    positions_N: Tensor
    target_ids_N: Tensor
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    sequence_tokens_N: Tensor
    sample_indices_B: tuple[int, ...]
    trained_tokens_B: tuple[int, ...]

    @property
    def rows(self) -> int:
        """B."""
        return len(self.sample_indices_B)

    @property
    def padded_tokens(self) -> int:
        """B * T: what the budget counts."""
        return self.token_ids_BT.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`; itself where it is there already."""
        if self.token_ids_BT.device == device:
            return self
        return MicroBatch(
            token_ids_BT=self.token_ids_BT.to(device),
            positions_N=self.positions_N.to(device),
            target_ids_N=self.target_ids_N.to(device),
            behaviour_logprobs_N=self.behaviour_logprobs_N.to(device),
            advantages_N=self.advantages_N.to(device),
            sequence_tokens_N=self.sequence_tokens_N.to(device),
            sample_indices_B=self.sample_indices_B,
            trained_tokens_B=self.trained_tokens_B,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A sample with its trained columns.  `_Row(index=0, sample=..., columns=array([2, 3]))`"""

    index: int
    sample: TrainingSample
    columns: NDArray[np.intp]

    @property
    def inputs(self) -> int:
        """Input tokens: everything before the last trained token."""
        return int(self.columns[-1])


PADDING_WORTH_A_PASS = 100
"""Padded tokens that cost about as much as one more forward and backward pass of a tiny model on a CPU."""

PADDING_SHARE = 0.1
"""Share of a micro-batch that may be padding in any case: on long samples more passes cost more than they save."""


def micro_batches(samples: Sequence[TrainingSample], *, max_tokens: int, pad_id: int) -> list[MicroBatch]:
    """Cut `samples` into micro-batches of at most `max_tokens` padded input tokens, longest first; a micro-batch also
    ends where its padding would cost more than another pass.

    Pure and deterministic: ties are broken by the order of `samples`.  A sample longer than `max_tokens` gets a
    micro-batch of its own; one without trained tokens appears in none.  Raises ValueError for max_tokens < 1 and for
    a trained first token, which nothing predicts.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is at least 1, got {max_tokens}")
    rows = [row for index, sample in enumerate(samples) if (row := _row(index, sample)) is not None]
    rows.sort(key=lambda row: (-row.inputs, row.index))
    batches: list[MicroBatch] = []
    start = 0
    while start < len(rows):
        count = _rows_that_fit(rows, start, max_tokens)
        batches.append(_pack(rows[start : start + count], pad_id))
        start += count
    return batches


def _rows_that_fit(rows: Sequence[_Row], start: int, max_tokens: int) -> int:
    """How many rows from `start` go together: within the budget, and until padding costs more than another pass."""
    width = rows[start].inputs
    count, padding = 1, 0
    while start + count < len(rows) and (count + 1) * width <= max_tokens:
        padding += width - rows[start + count].inputs
        if padding > max(PADDING_WORTH_A_PASS, PADDING_SHARE * (count + 1) * width):
            break
        count += 1
    return count


def _row(index: int, sample: TrainingSample) -> _Row | None:
    if not sample.length:
        return None
    columns = np.flatnonzero(np.frombuffer(sample.loss_mask, dtype=np.int8))
    if not columns.size:
        return None
    if columns[0] == 0:
        raise ValueError(f"the first token of {sample.trajectory_id} is trained, but nothing comes before it")
    return _Row(index=index, sample=sample, columns=columns)


def _pack(rows: Sequence[_Row], pad_id: int) -> MicroBatch:
    width = rows[0].inputs
    ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions, targets, behaviour, advantages = [], [], [], []
    for place, row in enumerate(rows):
        ids = np.frombuffer(row.sample.token_ids, dtype=np.intc)
        ids_BT[place, : row.inputs] = ids[: row.inputs]
        positions.append(row.columns + (place * width - 1))
        targets.append(ids[row.columns])
        behaviour.append(np.frombuffer(row.sample.behaviour_logprobs, dtype=np.float32)[row.columns])
        advantages.append(np.frombuffer(row.sample.advantages, dtype=np.float32)[row.columns])
    counts = [row.columns.size for row in rows]
    return MicroBatch(
        token_ids_BT=torch.from_numpy(ids_BT),
        positions_N=torch.from_numpy(np.concatenate(positions).astype(np.int64, copy=False)),
        target_ids_N=torch.from_numpy(np.concatenate(targets).astype(np.int64)),
        behaviour_logprobs_N=torch.from_numpy(np.concatenate(behaviour)),
        advantages_N=torch.from_numpy(np.concatenate(advantages)),
        sequence_tokens_N=torch.from_numpy(np.repeat(np.asarray(counts, dtype=np.float32), counts)),
        sample_indices_B=tuple(row.index for row in rows),
        trained_tokens_B=tuple(counts),
    )
