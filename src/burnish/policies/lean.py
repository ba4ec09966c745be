"""Prefill and decode over a described decoder, with as few operations as torch allows.

A decode step of a small model on a CPU is a few dozen matrix products of some 50 microseconds each, so what surrounds
them decides: here one block is its matrix products and a dozen small operations, into buffers that are set up once for
a batch of n rows over t columns.  Attention takes the query heads that share a key head as rows of one product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.policies.decoder import describe_decoder
from burnish.policies.packed import Matrix, PackedDecoder, PackedLayer, PackedNorm, pack
from burnish.policies.parts import ACTIVATIONS, Decoder
from burnish.policies.ragged import Ragged, additive
from burnish.policies.sight import HeldFeatures, sight_of
from burnish.policies.slots import SlotStore

_MOST_PLANS = 64
"""Sets of buffers kept for different (n, t); each costs a few views."""


class LeanForward:
    """Next-token logits of the rows of a `SlotStore`, for a model that `describe_decoder` understands.

    `refresh` must follow every change of the weights.  Raises ValueError for a model that is not understood.
    """

    keeps_state = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self._rooms: dict[str, Tensor] = {}
        sight = sight_of(model)
        self._sight = None if sight is None or sight.encoder.whole else sight
        self._features = None if self._sight is None else HeldFeatures(model, self._sight)
        self.refresh()
        weight = self.decoder.embedding.weight
        self.device = weight.device
        # Fused attention keeps its scores in float32, which half precisions need; for float32 on a CPU two batched
        # products over transposed keys are twice as fast.
        self.fused = weight.device.type != "cpu" or weight.dtype != torch.float32
        self._angles: tuple[Tensor, ...] = ()
        self._plans: dict[tuple[int, int, int, int], _Plan] = {}

    def refresh(self) -> None:
        """Read the weights anew."""
        decoder = describe_decoder(self.model, adapters=True)
        if decoder is None:
            raise ValueError(f"the lean forward pass does not understand {type(self.model).__name__}")
        self.decoder: Decoder = decoder
        self.packed: PackedDecoder = pack(decoder)
        self.silu = decoder.activation in ("silu", "swish")
        self._plans = {}
        self._angles = ()
        if self._features is not None:
            self._features.forget()

    def new_store(self) -> SlotStore:
        """An empty store that fits the model."""
        decoder = self.decoder
        store = SlotStore(layers=len(decoder.layers), device=self.device, keys_across=not self.fused)
        size = decoder.head_dim
        for layer in range(len(decoder.layers)):
            store.allocate(layer, heads=decoder.kv_heads, key_dim=size, value_dim=size, dtype=self.packed.dtype)
        return store

    def angles(self, columns: int) -> tuple[Tensor, ...]:
        """Complex cosines and sines [>= columns, head_dim / 2] of each set of rotary frequencies."""
        if not self._angles or len(self._angles[0]) < columns:
            positions = torch.arange(columns, device=self.device)
            self._angles = tuple(torch.complex(*rope.tables(positions)) for rope in self.decoder.ropes)
        return self._angles

    def decode(self, store: SlotStore, ids_R: Tensor, positions_R: Tensor, columns: int) -> Tensor:
        """Feed one token to each of the first R slots, at its position; logits [R, V], valid until the next call.

        columns: at least every position + 1; what the attention reads.
        """
        key = (id(store), store.generation, len(ids_R), columns)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MOST_PLANS or any(other[1] != key[1] for other in self._plans):
                self._plans.clear()
            plan = self._plans[key] = _Plan(self, store, len(ids_R), columns)
        return plan.run(ids_R, positions_R)

    def prefill(
        self, store: SlotStore, slots: Sequence[int], starts: Sequence[int], ids: Sequence[npt.NDArray[np.int32]]
    ) -> Tensor:
        """Feed `ids[u]` to slot `slots[u]` from column `starts[u]` on; logits [U, V] after the last of each."""
        ragged = Ragged(slots, starts, [len(part) for part in ids], self.device)
        tokens_N = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        packed, room, count = self.packed, self._room, len(tokens_N)
        hidden, heads = self.decoder.hidden_size, self.decoder.heads + 2 * self.decoder.kv_heads
        shown_N = tokens_N if self._features is None else tokens_N.clamp(min=0)
        x = torch.index_select(packed.embedding, 0, shown_N, out=room("x", packed.dtype, count, hidden))
        if self._features is not None and self._sight is not None:
            x = self._sight.embed(tokens_N, x, self._features)
        if packed.positions is not None:
            x += packed.positions.index_select(0, ragged.positions_N)
        turns = [table.index_select(0, ragged.positions_N)[:, None] for table in self.angles(store.columns)]
        masks: dict[int | None, Tensor] = {}
        for index, layer in enumerate(packed.layers):
            h = self._norm(x, layer.attention_norm)
            qkv = _apply_out(h, layer.qkv, room("qkv", packed.dtype, count, heads * self.decoder.head_dim))
            q, k, v = self._split(layer, qkv, turns)
            _write(store, index, (ragged.slots_N, ragged.positions_N), k, v)
            if layer.window not in masks:
                masks[layer.window] = self._prefill_mask(ragged, layer.window)
            mixed = self._attend(store, index, ragged, q, masks[layer.window])
            if index == len(packed.layers) - 1:
                x, mixed = x.index_select(0, ragged.last_U), mixed.index_select(0, ragged.last_U)
            self._add(x, mixed, layer.o, layer.attention_out_norm)
            self._add(x, self._activate(layer, self._norm(x, layer.mlp_norm)), layer.down, layer.mlp_out_norm)
        return _apply(_normed(x, packed.final_norm), packed.head)

    def _room(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        """Memory that is used again by the next call: on a CPU, touching fresh pages costs more than the work on them.

        Elsewhere torch keeps freed memory itself.
        """
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = math.prod(shape)
        flat = self._rooms.get(name)
        if flat is None or len(flat) < size:
            flat = self._rooms[name] = torch.empty(size * 5 // 4, dtype=dtype)
        return flat[:size].view(shape)

    def _norm(self, x: Tensor, norm: PackedNorm) -> Tensor:
        return _normed(x, norm, self._room("h", x.dtype, *x.shape), self._room("norm", _wide(x.dtype), len(x), 1))

    def _add(self, x: Tensor, h: Tensor, matrix: Matrix, norm: PackedNorm | None) -> None:
        """x += norm(h @ matrix)."""
        if norm is None and matrix.bias is None:
            x.addmm_(h, matrix.weight)
        else:
            x.add_(_renormed(_apply_out(h, matrix, self._room("added", x.dtype, *x.shape)), norm))

    def _prefill_mask(self, ragged: Ragged, window: int | None) -> Tensor:
        """Additive [U, 1, group * width, columns]."""
        positions_UQ = ragged.starts_U[:, None] + torch.arange(ragged.width, device=self.device)
        mask = additive(ragged.hidden(positions_UQ, window=window), self.packed.dtype)
        group = self.decoder.heads // self.decoder.kv_heads
        return mask[:, None, None].expand(-1, 1, group, -1, -1).flatten(2, 3)

    def _activate(self, layer: PackedLayer, h: Tensor) -> Tensor:
        """What goes into the last projection of the MLP."""
        act = ACTIVATIONS[self.decoder.activation]
        parts = [
            _apply_out(h, matrix, self._room(f"inner{number}", h.dtype, len(h), matrix.weight.shape[1]))
            for number, matrix in enumerate(layer.gate_up)
        ]
        if not self.packed.gated:
            return act(parts[0])
        gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
        gate = F.silu(gate, inplace=True) if self.silu else act(gate)
        return torch.mul(gate, up, out=self._room("act", h.dtype, *up.shape))

    def _split(self, layer: PackedLayer, qkv_N: Tensor, turns: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [N, heads, head_dim], the first two normalised and rotated (in place)."""
        decoder = self.decoder
        heads, both = decoder.heads, decoder.heads + decoder.kv_heads
        qkv = qkv_N.view(len(qkv_N), both + decoder.kv_heads, decoder.head_dim)
        qk = qkv[:, :both].to(_wide(qkv.dtype))
        if layer.qk_gain is not None:
            norm = torch.hypot(torch.linalg.vector_norm(qk, dim=-1, keepdim=True), layer.qk_floor)
            qk.mul_(norm.reciprocal_()).mul_(layer.qk_gain)
        if layer.rope >= 0:
            torch.view_as_complex(qk.view(len(qk), both, -1, 2)).mul_(turns[layer.rope])
        qk = qk.to(qkv.dtype)
        return qk[:, :heads], qk[:, heads:], qkv[:, both:]

    def _attend(self, store: SlotStore, index: int, ragged: Ragged, q_N: Tensor, mask: Tensor) -> Tensor:
        """Attention of new tokens over everything their rows hold; [N, heads * head_dim]."""
        decoder = self.decoder
        keys, values = store.layer(index)
        keys = keys.transpose(2, 3) if store.keys_across else keys
        keys = keys[:, :, : ragged.columns].index_select(0, ragged.slots_U)
        values = values[:, :, : ragged.columns].index_select(0, ragged.slots_U)
        units, width, group = len(ragged.slots_U), ragged.width, decoder.heads // decoder.kv_heads
        # zeroed: what stands in for missing tokens must be finite
        q = self._room("q", q_N.dtype, units, width, decoder.heads, decoder.head_dim).zero_()
        q[ragged.unit_N, ragged.offset_N] = q_N
        q = q.view(units, width, decoder.kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0)
        mixed = mixed.view(units, decoder.kv_heads, group, width, -1).permute(0, 3, 1, 2, 4)
        return mixed[ragged.unit_N, ragged.offset_N].flatten(1)


class _Plan:
    """Buffers and views for decode steps of n rows over t columns of one store."""

    def __init__(self, forward: LeanForward, store: SlotStore, rows: int, columns: int) -> None:
        self.forward, self.store, self.packed, self.columns = forward, store, forward.packed, columns
        decoder, dtype, device = forward.decoder, forward.packed.dtype, forward.device
        self.decoder, wide = decoder, _wide(dtype)
        heads, kv_heads, size = decoder.heads, decoder.kv_heads, decoder.head_dim
        group, both, hidden = heads // kv_heads, heads + kv_heads, decoder.hidden_size

        def buffer(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.x, self.h, self.norm = buffer(rows, hidden), buffer(rows, hidden), buffer(rows, 1, dtype=wide)
        self.qkv = buffer(rows, (both + kv_heads) * size)
        split = self.qkv.view(rows, both + kv_heads, size)
        self.qk_in, self.v = split[:, :both], split[:, both:]
        self.qk = self.qk_in if wide == dtype else buffer(rows, both, size, dtype=wide)
        self.qk_rows = self.qkv[:, : both * size] if wide == dtype else self.qk.view(rows, -1)
        self.qk_factor = buffer(rows, both * size, dtype=wide)
        self.qk_norm = buffer(rows, both, 1, dtype=wide)
        self.qk_norm_rows = self.qk_norm.view(rows, both)
        self.turned = torch.view_as_complex(self.qk.view(rows, both, -1, 2))
        self.q_out, self.k_out = self.qk[:, :heads], self.qk[:, heads:]
        self.q = self.q_out.view(rows, kv_heads, group, size)
        if kv_heads > 1 or wide != dtype:
            self.q = buffer(rows, kv_heads, group, size)
        self.k = self.k_out if wide == dtype else buffer(rows, kv_heads, size)
        self.copies_q = self.q.data_ptr() != self.q_out.data_ptr()
        self.scores = buffer(rows * kv_heads, group, columns)
        self.scores_by_row = self.scores.view(rows, kv_heads, group, columns)
        self.mixed = buffer(rows * kv_heads, group, size)
        self.mixed_rows = self.mixed.view(rows, heads * size)
        layer = self.packed.layers[0]
        self.inner = [buffer(rows, matrix.weight.shape[1]) for matrix in layer.gate_up]
        self.gate_up = self.inner if len(self.inner) == 2 else list(self.inner[0].chunk(2, dim=-1))
        self.act = buffer(rows, layer.down.weight.shape[0])
        self.added = buffer(rows, hidden)
        self.logits = buffer(rows, self.packed.head.weight.shape[1])
        tables = forward.angles(store.columns)
        self.turns = [buffer(rows, 1, table.shape[1], dtype=table.dtype) for table in tables]
        self.tables = list(zip(tables, [turn.view(rows, -1) for turn in self.turns], strict=True))
        self.row_index = torch.arange(rows, device=device)
        # with one key head a token's values are one row of a matrix, which is cheaper to write
        self.flat_values = kv_heads == 1
        self.row_start, self.flat = self.row_index * store.columns, torch.empty_like(self.row_index)
        self._set_masks(rows, columns, dtype)
        self.memory = [self._memory(index, rows) for index in range(len(self.packed.layers))]

    def _set_masks(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        """One additive mask for each window that is narrower than the columns."""
        self.column_index = torch.arange(columns, device=self.forward.device)
        self.ahead = torch.empty(rows, columns, dtype=torch.bool, device=self.forward.device)
        self.behind = torch.empty_like(self.ahead)
        windows = {self._window(layer) for layer in self.packed.layers}
        self.masks = {
            window: torch.empty(rows, 1, 1, columns, dtype=dtype, device=self.ahead.device) for window in windows
        }
        self.lowest = torch.finfo(dtype).min

    def _window(self, layer: PackedLayer) -> int | None:
        return None if layer.window is None or layer.window >= self.columns else layer.window

    def _memory(self, index: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values by [slot, column, heads, head_dim] to write, and as the attention reads them."""
        keys, values = self.store.layer(index)
        by_column = keys.permute(0, 3, 1, 2) if self.store.keys_across else keys.transpose(1, 2)
        keys = keys[:rows, ..., : self.columns] if self.store.keys_across else keys[:rows, :, : self.columns]
        seen = values[:rows, :, : self.columns]
        if not self.forward.fused:
            keys, seen = keys.flatten(0, 1), seen.flatten(0, 1)
        return by_column, values.flatten(0, 2)[:, None] if self.flat_values else values.transpose(1, 2), keys, seen

    def run(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        packed, x, h = self.packed, self.x, self.h
        torch.index_select(packed.embedding, 0, ids_R, out=x)
        if packed.positions is not None:
            x.add_(packed.positions.index_select(0, positions_R))
        for table, turn in self.tables:
            torch.index_select(table, 0, positions_R, out=turn)
        self._mask(positions_R[:, None])
        where = (self.row_index, positions_R)
        flat = torch.add(self.row_start, positions_R, out=self.flat)
        for layer, memory in zip(packed.layers, self.memory, strict=True):
            _apply_out(_normed(x, layer.attention_norm, h, self.norm), layer.qkv, self.qkv)
            self._turn(layer)
            memory[0].index_put_(where, self.k)
            if self.flat_values:
                memory[1].index_copy_(0, flat, self.v)
            else:
                memory[1].index_put_(where, self.v)
            self._add(layer.attention_out_norm, self._attend(layer, memory), layer.o)
            h_mlp = _normed(x, layer.mlp_norm, h, self.norm)
            for matrix, out in zip(layer.gate_up, self.inner, strict=True):
                _apply_out(h_mlp, matrix, out)
            self._add(layer.mlp_out_norm, self._activate(), layer.down)
        return _apply_out(_normed(x, packed.final_norm, h, self.norm), packed.head, self.logits)

    def _mask(self, positions_R1: Tensor) -> None:
        torch.gt(self.column_index, positions_R1, out=self.ahead)
        for window, mask in self.masks.items():
            hidden = self.ahead
            if window is not None:
                torch.le(self.column_index, positions_R1 - window, out=self.behind)
                hidden = self.behind.logical_or_(self.ahead)
            torch.mul(hidden, self.lowest, out=mask[:, 0, 0])

    def _turn(self, layer: PackedLayer) -> None:
        if self.qk is not self.qk_in:
            self.qk.copy_(self.qk_in)
        if layer.qk_spread is not None:
            torch.linalg.vector_norm(self.qk, dim=-1, keepdim=True, out=self.qk_norm)
            torch.hypot(self.qk_norm, layer.qk_floor, out=self.qk_norm)
            # a product with one entry in each column spreads a factor for each head over its dimensions, gain included
            torch.mm(self.qk_norm_rows.reciprocal_(), layer.qk_spread, out=self.qk_factor)
            self.qk_rows.mul_(self.qk_factor)
        if layer.rope >= 0:
            self.turned.mul_(self.turns[layer.rope])
        if self.copies_q:
            self.q.copy_(self.q_out.view(self.q.shape))
        if self.k is not self.k_out:
            self.k.copy_(self.k_out)

    def _attend(self, layer: PackedLayer, memory: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        _, _, keys, values = memory
        mask = self.masks[self._window(layer)]
        if self.forward.fused:
            expanded = mask.expand(-1, -1, self.q.shape[2], -1)
            mixed = F.scaled_dot_product_attention(self.q, keys, values, attn_mask=expanded, scale=1.0)
            return mixed.reshape(self.mixed_rows.shape)
        torch.bmm(self.q.view(-1, *self.q.shape[2:]), keys, out=self.scores)
        self.scores_by_row.add_(mask)
        torch.softmax(self.scores, -1, out=self.scores)
        torch.bmm(self.scores, values, out=self.mixed)
        return self.mixed_rows

    def _activate(self) -> Tensor:
        if not self.packed.gated:
            return ACTIVATIONS[self.decoder.activation](self.inner[0])
        gate, up = self.gate_up
        gate = F.silu(gate, inplace=True) if self.forward.silu else ACTIVATIONS[self.decoder.activation](gate)
        return torch.mul(gate, up, out=self.act)

    def _add(self, norm: PackedNorm | None, h: Tensor, matrix: Matrix) -> None:
        """x += norm(h @ matrix)."""
        if norm is None and matrix.bias is None:
            self.x.addmm_(h, matrix.weight)
        else:
            self.x.add_(_renormed(_apply_out(h, matrix, self.added), norm))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _normed(x: Tensor, norm: PackedNorm, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
    if norm.centred:
        return F.layer_norm(x, x.shape[-1:], norm.gain, norm.bias, norm.eps)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_wide(x.dtype), out=scratch)
    scale = torch.hypot(scale, norm.floor, out=scratch)
    scale = torch.reciprocal(scale, out=scratch)
    h = (x * scale).to(x.dtype) if out is None else torch.mul(x, scale, out=out)
    return h if norm.gain is None else h.mul_(norm.gain)


def _renormed(x: Tensor, norm: PackedNorm | None) -> Tensor:
    return x if norm is None else _normed(x, norm)


def _apply(x: Tensor, matrix: Matrix) -> Tensor:
    return x @ matrix.weight if matrix.bias is None else torch.addmm(matrix.bias, x, matrix.weight)


def _apply_out(x: Tensor, matrix: Matrix, out: Tensor) -> Tensor:
    if matrix.bias is None:
        return torch.mm(x, matrix.weight, out=out)
    return torch.addmm(matrix.bias, x, matrix.weight, out=out)


def _write(store: SlotStore, index: int, where: tuple[Tensor, Tensor], k_N: Tensor, v_N: Tensor) -> None:
    keys, values = store.layer(index)
    by_column = keys.permute(0, 3, 1, 2) if store.keys_across else keys.transpose(1, 2)
    by_column.index_put_(where, k_N)
    values.transpose(1, 2).index_put_(where, v_N)
