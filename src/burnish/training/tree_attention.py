"""Attention over a tree of prefixes, as matrix products over rectangles.

A node's keys and values are computed once, but its query has to see the whole path above it.  Every row of the tree is
cut at multiples of a chunk length; a piece asks with those of its nodes that no row above it holds, and sees its row's
nodes up to its end.  The pieces of one chunk are about equally large and make one rectangle.  Cutting also leaves out
most of what causality forbids.  Shapes: R pieces, Q queries, K keys, H heads in KV groups of G, D values a head; all
vectors of D values of all nodes and heads stand in one table of rows, and indices point into it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.algorithms.packing import TokenTree

CHUNK = 32
"""Columns of a chunk; longer where a row would have more than `MOST_CHUNKS` of them."""

MOST_CHUNKS = 8

KEPT_SCORES = 1 << 25
"""Attention weights of one layer (all heads and pieces) that are kept for the backward pass, 128 MiB in float32; beyond
it they are computed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """A node has heads + 2 * kv_heads rows in the table: queries, keys, values, each of `width` numbers.

    `Heads(heads=4, kv_heads=1, width=32)`
    """

    heads: int
    kv_heads: int
    width: int

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @property
    def rows(self) -> int:
        """Rows of the table for each node."""
        return self.heads + 2 * self.kv_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The pieces of one chunk.  queries, keys, values: rows of the table, int64 [R * KV * Q * G] and [R * KV * K].
    columns_RQ: place of each query's token in its sequence.  first: its first row among the plan's results."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    columns_RQ: Tensor
    key_columns: int
    first: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[R, 1, Q, 1, K]: 0 where a query sees a key, else -inf."""
        if window not in self.masks:
            distance_RQK = self.columns_RQ.unsqueeze(-1) - torch.arange(self.key_columns)
            hidden_RQK = distance_RQK < 0 if window is None else (distance_RQK < 0) | (distance_RQK >= window)
            mask_RQK = torch.zeros(hidden_RQK.shape, dtype=dtype).masked_fill_(hidden_RQK, -torch.inf)
            self.masks[window] = mask_RQK[:, None, :, None, :]
        return self.masks[window]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All buckets of one pass, for M asking nodes.

    asking: the nodes that ask, int64 [M], None for all.  results: row of each of them and each head among the results
    of all buckets, int64 [M * H].  askers: the inverse, any node and head at padding.  padding: the rows of results
    that nobody asked for.
    """

    heads: Heads
    buckets: tuple[Bucket, ...]
    asking: Tensor | None
    results: Tensor
    askers: Tensor
    padding: Tensor
    scores: int


def plan_attention(tree: TokenTree, heads: Heads, asking: NDArray[np.int64] | None = None) -> Plan:
    """asking: sorted nodes whose attention is wanted; None for all."""
    width = tree.nodes_RT.shape[1]
    columns = np.arange(width)
    own_RT = (columns >= tree.shared_R[:, None]) & (columns < tree.inputs_R[:, None])
    place_U = np.arange(len(tree.columns_U))
    if asking is not None:
        place_U = np.full(len(tree.columns_U), -1)
        place_U[asking] = np.arange(len(asking))
        own_RT &= place_U[tree.nodes_RT] >= 0
    chunk = max(CHUNK, -(-width // MOST_CHUNKS))
    buckets: list[Bucket] = []
    askers: list[NDArray[np.int64]] = []
    for start in range(0, width, chunk):
        found = _bucket(tree, own_RT[:, start : start + chunk], start, heads, sum(rows.size for rows in askers))
        if found is not None:
            bucket, asking_RQ = found
            buckets.append(bucket)
            askers.append(_result_rows(asking_RQ, place_U, heads))
    order = np.concatenate(askers)
    real = np.flatnonzero(order >= 0)
    results = np.empty(real.size, dtype=np.int64)
    results[order[real]] = real
    return Plan(
        heads=heads,
        buckets=tuple(buckets),
        asking=None if asking is None else torch.from_numpy(asking),
        results=torch.from_numpy(results),
        askers=torch.from_numpy(np.maximum(order, 0)),
        padding=torch.from_numpy(np.flatnonzero(order < 0)),
        scores=sum(bucket.queries.numel() * bucket.key_columns for bucket in buckets),
    )


def _bucket(
    tree: TokenTree, own_RC: NDArray[np.bool_], start: int, heads: Heads, first: int
) -> tuple[Bucket, NDArray[np.int64]] | None:
    """The pieces of one chunk and the node behind each of their queries, -1 at padding; None where nobody asks."""
    rows = np.flatnonzero(own_RC.any(axis=1))
    if not rows.size:
        return None
    own_RC = own_RC[rows]
    piece, column = np.nonzero(own_RC)
    slot = (own_RC.cumsum(axis=1) - 1)[piece, column]
    shape = (rows.size, int(slot.max()) + 1)
    columns_RQ, asking_RQ = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    columns_RQ[piece, slot] = column + start
    asking_RQ[piece, slot] = tree.nodes_RT[rows[piece], column + start]
    keys_RK = tree.nodes_RT[rows, : int(columns_RQ.max()) + 1]
    kv = np.arange(heads.kv_heads)
    query_head = (kv[:, None] * heads.group + np.arange(heads.group))[:, None, :]
    queries = np.maximum(asking_RQ, 0)[:, None, :, None] * heads.rows + query_head
    keys = keys_RK[:, None, :] * heads.rows + heads.heads + kv[:, None]
    bucket = Bucket(
        queries=torch.from_numpy(queries.reshape(-1)),
        keys=torch.from_numpy(keys.reshape(-1)),
        values=torch.from_numpy((keys + heads.kv_heads).reshape(-1)),
        columns_RQ=torch.from_numpy(columns_RQ),
        key_columns=keys_RK.shape[1],
        first=first,
    )
    return bucket, asking_RQ


def _result_rows(asking_RQ: NDArray[np.int64], place_U: NDArray[np.int64], heads: Heads) -> NDArray[np.int64]:
    """For each result of a bucket, in its order [R, KV, Q, G], asker * H + head; -1 at padding."""
    head = (np.arange(heads.kv_heads)[:, None] * heads.group + np.arange(heads.group))[:, None, :]
    asking = asking_RQ[:, None, :, None]
    rows: NDArray[np.int64] = np.where(asking >= 0, place_U[asking] * heads.heads + head, -1)
    return rows.reshape(-1)


Saved = tuple[Tensor, Tensor, Tensor, Tensor | None]


def attend(table: Tensor, plan: Plan, window: int | None) -> tuple[Tensor, list[Saved]]:
    """Results [M, H * D] from the table [U * rows, D] (queries scaled already), and what the backward pass needs."""
    results = table.new_empty(len(plan.askers), plan.heads.width)
    saved: list[Saved] = []
    for bucket in plan.buckets:
        q, k, v = (
            table.index_select(0, index).view(len(bucket.columns_RQ) * plan.heads.kv_heads, -1, plan.heads.width)
            for index in (bucket.queries, bucket.keys, bucket.values)
        )
        weights = _weights(q, k, bucket, plan.heads, window)
        part = results[bucket.first : bucket.first + len(bucket.queries)]
        torch.bmm(weights, v, out=part.view(q.shape))
        saved.append((q, k, v, weights if plan.scores <= KEPT_SCORES else None))
    return results.index_select(0, plan.results).view(-1, plan.heads.heads * plan.heads.width), saved


def attend_backward(
    gradient: Tensor, plan: Plan, window: int | None, saved: list[Saved], table_gradient: Tensor
) -> None:
    """Set the gradient of the table, [U * rows, D] and zero, from that of the results [M, H * D]."""
    rows = gradient.reshape(-1, plan.heads.width).index_select(0, plan.askers)
    if len(plan.padding):
        rows.index_fill_(0, plan.padding, 0.0)
    for bucket, (q, k, v, kept) in zip(plan.buckets, saved, strict=True):
        weights = _weights(q, k, bucket, plan.heads, window) if kept is None else kept
        to_result = rows[bucket.first : bucket.first + len(bucket.queries)].view(q.shape)
        to_weights = torch.bmm(to_result, v.mT)
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        table_gradient.index_add_(0, bucket.values, torch.bmm(weights.mT, to_result).view(-1, plan.heads.width))
        table_gradient.index_add_(0, bucket.keys, torch.bmm(to_scores.mT, q).view(-1, plan.heads.width))
        torch.bmm(to_scores, k, out=to_result)  # the gradient of the queries, in place of that of their results
    to_queries = rows.index_select(0, plan.results).view(-1, plan.heads.heads, plan.heads.width)
    queries = table_gradient.view(-1, plan.heads.rows, plan.heads.width)[:, : plan.heads.heads]
    if plan.asking is None:
        queries.copy_(to_queries)
    else:
        queries.index_copy_(0, plan.asking, to_queries)


def _weights(q: Tensor, k: Tensor, bucket: Bucket, heads: Heads, window: int | None) -> Tensor:
    """Attention weights [R * KV, Q * G, K]."""
    scores = torch.bmm(q, k.mT)
    pieces, queries = bucket.columns_RQ.shape
    shape = (pieces, heads.kv_heads, queries, heads.group, bucket.key_columns)
    scores.view(shape).add_(bucket.mask(window, scores.dtype))
    return torch.softmax(scores, dim=-1)
