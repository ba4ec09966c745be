"""Packing without repetition: the samples of a batch as a tree of distinct prefixes.

In a causal model everything at a token depends on the tokens up to it alone, so two samples that begin alike compute
the same thing until they part.  The members of a group share at least their prompt, and where a policy is sure of
itself also most of its actions and what the tools answered.  Here every distinct prefix is one node, and only nodes go
through the model, once and without padding; a trained token points at the node that predicts it.  The gradient is the
same sum.

Samples are sorted by their tokens, which puts those that begin alike next to each other; the node of a column is then
shared with the row above as far as the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from burnish.algorithms.packing import MicroBatch, NumberImages, PackedRow, TokenTree, pack_streams, trained_rows
from burnish.core.learning import TrainingSample

_NO_TOKEN = -1
"""Beyond a row's end; tokens of images are numbered below it."""

TARGETS_PER_TOKEN = 4
"""A micro-batch of at most n nodes has at most this times n trained tokens, for what is held for each of them."""


def tree_batches(
    samples: Sequence[TrainingSample], *, max_tokens: int, number: NumberImages | None = None
) -> list[MicroBatch]:
    """Cut `samples` into micro-batches of at most `max_tokens` nodes each; `token_ids_BT` is [1, U], the nodes' tokens.

    Pure and deterministic.  A sample longer than `max_tokens` gets a micro-batch of its own; one without trained tokens
    appears in none.  Raises ValueError for max_tokens < 1 and for a trained first token.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is at least 1, got {max_tokens}")
    rows = trained_rows(samples, number)
    rows.sort(key=lambda row: (row.ids[: row.inputs].tobytes(), row.index))
    if not rows:
        return []
    ids_RT, inputs_R = _rectangle(rows)
    shared_R = _shared_with_the_row_above(ids_RT)
    batches, start = [], 0
    while start < len(rows):
        end = _rows_that_fit(rows, start, inputs_R, shared_R, max_tokens)
        width = int(inputs_R[start:end].max())
        shared = shared_R[start:end].copy()
        shared[0] = 0
        batches.append(_pack(rows[start:end], ids_RT[start:end, :width], inputs_R[start:end], shared))
        start = end
    return batches


def _rectangle(rows: Sequence[PackedRow]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Input ids [R, T], `_NO_TOKEN` beyond a row's end, and the rows' lengths."""
    inputs_R = np.asarray([row.inputs for row in rows], dtype=np.int64)
    ids_RT = np.full((len(rows), int(inputs_R.max())), _NO_TOKEN, dtype=np.int64)
    ids_RT[np.arange(ids_RT.shape[1]) < inputs_R[:, None]] = np.concatenate([row.ids[: row.inputs] for row in rows])
    return ids_RT, inputs_R


def _shared_with_the_row_above(ids_RT: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many leading tokens each row has in common with the one above it; 0 for the first."""
    differs = np.ones((len(ids_RT), ids_RT.shape[1] + 1), dtype=np.bool_)
    differs[1:, :-1] = (ids_RT[1:] != ids_RT[:-1]) | (ids_RT[1:] == _NO_TOKEN)
    shared_R: NDArray[np.int64] = differs.argmax(axis=1)
    shared_R[0] = 0
    return shared_R


def _rows_that_fit(
    rows: Sequence[PackedRow],
    start: int,
    inputs_R: NDArray[np.int64],
    shared_R: NDArray[np.int64],
    max_tokens: int,
) -> int:
    """The end of the micro-batch that begins with row `start`."""
    nodes, targets = int(inputs_R[start]), rows[start].columns.size
    end = start + 1
    while end < len(rows):
        nodes += int(inputs_R[end] - shared_R[end])
        targets += rows[end].columns.size
        if nodes > max_tokens or targets > TARGETS_PER_TOKEN * max_tokens:
            break
        end += 1
    return end


def _pack(
    rows: Sequence[PackedRow],
    ids_RT: NDArray[np.int64],
    inputs_R: NDArray[np.int64],
    shared_R: NDArray[np.int64],
) -> MicroBatch:
    columns = np.arange(ids_RT.shape[1])
    new_RT = (columns >= shared_R[:, None]) & (columns < inputs_R[:, None])
    numbered_RT = np.zeros(ids_RT.shape, dtype=np.int64)
    numbered_RT[new_RT] = np.arange(np.count_nonzero(new_RT))
    # A shared column has the node of the nearest row above that made one there, which is the largest so far.
    nodes_RT = np.maximum.accumulate(numbered_RT, axis=0)
    positions = [nodes[row.columns - 1] for nodes, row in zip(nodes_RT, rows, strict=True)]
    fresh_R = shared_R < inputs_R
    tree = TokenTree(
        columns_U=np.nonzero(new_RT)[1],
        nodes_RT=nodes_RT[fresh_R],
        shared_R=shared_R[fresh_R],
        inputs_R=inputs_R[fresh_R],
    )
    return pack_streams(rows, ids_RT[new_RT][None], np.concatenate(positions), tree)
