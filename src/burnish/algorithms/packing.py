"""Packing: training samples to micro-batches of tensors, with as little padding as a rectangle allows.

Three things keep the work small.  Each sample ends at its last trained token (what follows cannot influence a causal
model's earlier positions), and that token itself is a target only, never an input.  Samples are sorted by length before
they are cut into micro-batches.  Padding stands on the right, where a causal model's real tokens cannot see it, so no
attention mask is needed; and because trained positions are listed explicitly, the pad id may equal any real token.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.algorithms.kept import KeptTokens
from burnish.core.learning import TrainingSample

NumberImages = Callable[[NDArray[np.intc], TrainingSample], NDArray[np.intc]]
"""Ids of a sample with the tokens of its images numbered below -1: a number says which image and which part of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTree:
    """U nodes, the distinct prefixes of some samples, and the R rows (root-to-leaf paths) that they make up.

    columns_U: int64, place of a node's token in its sequence.  nodes_RT: int64, node of each column of each row, any
    node beyond the row's end.  shared_R: leading columns of a row whose nodes stand in rows above it.  inputs_R:
    columns of a row.  A row that is wholly shared is left out.

    Example: rows [5, 6, 7] and [5, 6, 8, 9] are the nodes 5, 6, 7, 8, 9 with columns [0, 1, 2, 2, 3], nodes_RT
    [[0, 1, 2, .], [0, 1, 3, 4]], shared_R [0, 2], inputs_R [3, 4].
    """

    columns_U: NDArray[np.int64]
    nodes_RT: NDArray[np.int64]
    shared_R: NDArray[np.int64]
    inputs_R: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """B samples as a rectangle of T inputs or as a tree, and the N trained tokens in it.

    token_ids_BT: int64, right padded; [1, U] for a tree.  positions_N: int64, index row * T + column of the input that
    predicts the token, or its node.
    target_ids_N: int64, the trained tokens themselves.  behaviour_logprobs_N, advantages_N, sequence_tokens_N (trained
    tokens of the sequence): float32.  sequence_N, versions_N: int64, row of the token and the policy version that drew
    it.  sample_indices_B: places of the rows in the sequence that was packed.  trained_tokens_B: trained tokens of each
    row; they stand row by row in the N-tensors.  proximal_logprobs_N: float32, None where the samples carry none.
    kept: None where nothing was cut from any token's vocabulary.  tree: None for a rectangle.

    Example: ids [5, 6, 7, 8] with loss mask [0, 0, 1, 1] become inputs [5, 6, 7], positions [1, 2], targets [7, 8].
    """

    token_ids_BT: Tensor
    positions_N: Tensor
    target_ids_N: Tensor
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    sequence_tokens_N: Tensor
    sequence_N: Tensor
    versions_N: Tensor
    sample_indices_B: tuple[int, ...]
    trained_tokens_B: tuple[int, ...]
    proximal_logprobs_N: Tensor | None = None
    kept: KeptTokens | None = None
    tree: TokenTree | None = None

    @property
    def rows(self) -> int:
        """B."""
        return len(self.sample_indices_B)

    @property
    def padded_tokens(self) -> int:
        """B * T, or the nodes of a tree: what the budget counts."""
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
            sequence_N=self.sequence_N.to(device),
            versions_N=self.versions_N.to(device),
            sample_indices_B=self.sample_indices_B,
            trained_tokens_B=self.trained_tokens_B,
            proximal_logprobs_N=None if self.proximal_logprobs_N is None else self.proximal_logprobs_N.to(device),
            kept=None if self.kept is None else self.kept.to(device),
            tree=self.tree,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """A sample with its ids and trained columns.  `PackedRow(index=0, sample=..., ids=array([5, 6, 7, 8]),
    columns=array([2, 3]))`"""

    index: int
    sample: TrainingSample
    ids: NDArray[np.intc]
    columns: NDArray[np.intp]

    @property
    def inputs(self) -> int:
        """Input tokens: everything before the last trained token."""
        return int(self.columns[-1])


PADDING_WORTH_A_PASS = 100
"""Padded tokens that cost about as much as one more forward and backward pass of a tiny model on a CPU."""

PADDING_SHARE = 0.1
"""Share of a micro-batch that may be padding in any case: on long samples more passes cost more than they save."""


def micro_batches(
    samples: Sequence[TrainingSample], *, max_tokens: int, pad_id: int, number: NumberImages | None = None
) -> list[MicroBatch]:
    """Cut `samples` into micro-batches of at most `max_tokens` padded input tokens, longest first; a micro-batch also
    ends where its padding would cost more than another pass.

    Pure and deterministic: ties are broken by the order of `samples`.  A sample longer than `max_tokens` gets a
    micro-batch of its own; one without trained tokens appears in none.  Raises ValueError for max_tokens < 1 and for
    a trained first token, which nothing predicts.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is at least 1, got {max_tokens}")
    rows = trained_rows(samples, number)
    rows.sort(key=lambda row: (-row.inputs, row.index))
    batches: list[MicroBatch] = []
    start = 0
    while start < len(rows):
        count = _rows_that_fit(rows, start, max_tokens)
        batches.append(_pack(rows[start : start + count], pad_id))
        start += count
    return batches


def _rows_that_fit(rows: Sequence[PackedRow], start: int, max_tokens: int) -> int:
    """How many rows from `start` go together: within the budget, and until padding costs more than another pass."""
    width = rows[start].inputs
    count, padding = 1, 0
    while start + count < len(rows) and (count + 1) * width <= max_tokens:
        padding += width - rows[start + count].inputs
        if padding > max(PADDING_WORTH_A_PASS, PADDING_SHARE * (count + 1) * width):
            break
        count += 1
    return count


def trained_rows(samples: Sequence[TrainingSample], number: NumberImages | None = None) -> list[PackedRow]:
    """The samples with trained tokens, in their order.  Raises ValueError for a trained first token, and for images
    where nobody says how these are numbered."""
    rows = []
    for index, sample in enumerate(samples):
        if not sample.length:
            continue
        columns = np.flatnonzero(np.frombuffer(sample.loss_mask, dtype=np.int8))
        if not columns.size:
            continue
        if columns[0] == 0:
            raise ValueError(f"the first token of {sample.trajectory_id} is trained, but nothing comes before it")
        ids = np.frombuffer(sample.token_ids, dtype=np.intc)
        if sample.images:
            if number is None:
                raise ValueError(f"{sample.trajectory_id} shows images, and this model reads text alone")
            ids = number(ids, sample)
        rows.append(PackedRow(index=index, sample=sample, ids=ids, columns=columns))
    return rows


def _pack(rows: Sequence[PackedRow], pad_id: int) -> MicroBatch:
    width = rows[0].inputs
    ids_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    positions = []
    for place, row in enumerate(rows):
        ids_BT[place, : row.inputs] = row.ids[: row.inputs]
        positions.append(row.columns + (place * width - 1))
    return pack_streams(rows, ids_BT, np.concatenate(positions))


def pack_streams(
    rows: Sequence[PackedRow],
    ids_BT: NDArray[np.int64],
    positions_N: NDArray[np.int64],
    tree: TokenTree | None = None,
) -> MicroBatch:
    """A micro-batch of these inputs, with everything that the samples carry for each trained token."""
    counts = [row.columns.size for row in rows]
    starts_R = np.cumsum([0, *(len(row.ids) for row in rows[:-1])])
    places_N = np.concatenate([row.columns for row in rows]) + np.repeat(starts_R, counts)

    def stream(parts: Iterable[array[Any]], dtype: type[np.generic]) -> Tensor:
        """What these parts, one after another, hold for the trained tokens."""
        return torch.from_numpy(np.frombuffer(b"".join(parts), dtype=dtype)[places_N])

    samples = [row.sample for row in rows]
    return MicroBatch(
        token_ids_BT=torch.from_numpy(ids_BT),
        positions_N=torch.from_numpy(positions_N.astype(np.int64, copy=False)),
        target_ids_N=stream((sample.token_ids for sample in samples), np.intc).long(),
        behaviour_logprobs_N=stream((sample.behaviour_logprobs for sample in samples), np.float32),
        advantages_N=stream((sample.advantages for sample in samples), np.float32),
        sequence_tokens_N=torch.from_numpy(np.repeat(np.asarray(counts, dtype=np.float32), counts)),
        sequence_N=torch.from_numpy(np.repeat(np.arange(len(rows), dtype=np.int64), counts)),
        versions_N=stream((sample.versions for sample in samples), np.intc).long(),
        sample_indices_B=tuple(row.index for row in rows),
        trained_tokens_B=tuple(counts),
        proximal_logprobs_N=_proximal(rows),
        kept=_kept(rows),
        tree=tree,
    )


def _proximal(rows: Sequence[PackedRow]) -> Tensor | None:
    """The proximal log-probabilities of the trained tokens; None where no sample carries any."""
    streams = [row.sample.proximal_logprobs for row in rows]
    parts = [
        np.frombuffer(stream, dtype=np.float32)[row.columns]
        for row, stream in zip(rows, streams, strict=True)
        if stream is not None
    ]
    if not parts:
        return None
    if len(parts) < len(rows):
        bare = next(row.sample.trajectory_id for row in rows if row.sample.proximal_logprobs is None)
        raise ValueError(f"{bare} has no proximal log-probabilities, but others of its batch do; score the whole batch")
    return torch.from_numpy(np.concatenate(parts))


def _kept(rows: Sequence[PackedRow]) -> KeptTokens | None:
    """The kept sets of the trained tokens, one after another; None where nothing was cut."""
    if all(row.sample.kept is None for row in rows):
        return None
    counts, ids = [], []
    for row in rows:
        sets = row.sample.kept
        if sets is None:
            counts.append(np.zeros(row.columns.size, dtype=np.intc))
            continue
        every = np.frombuffer(sets.counts, dtype=np.intc)
        trained = np.frombuffer(row.sample.loss_mask, dtype=np.int8) != 0
        counts.append(every[row.columns])
        ids.append(np.frombuffer(sets.ids, dtype=np.intc)[np.repeat(trained, every)])
    return KeptTokens(
        counts_N=torch.from_numpy(np.concatenate(counts).astype(np.int64)),
        ids_K=torch.from_numpy(np.concatenate(ids).astype(np.int64)),
    )
