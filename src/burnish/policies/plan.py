"""A decode step of n rows over t columns of one store, prepared as a flat list of calls.

A step of a small model on a CPU is about a hundred operations of some 10 microseconds each, so what Python does between
them counts: every operation is bound to its buffers once, and a step only makes the calls.  Buffers that are never
alive at once share their memory, since what a step touches is more than a core's own cache holds.  Where functions were
compiled on this machine (`burnish.policies.kernels`), norms, gates and attention are one call each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.policies.kernels import BLOCK, LANES, Kernels
from burnish.policies.packed import Matrix, PackedLayer, PackedNorm, wide_type
from burnish.policies.parts import ACTIVATIONS
from burnish.policies.slots import SlotStore

if TYPE_CHECKING:
    from burnish.policies.lean import LeanForward


_PADDING = 16
"""Columns beside the stream: a cache line of float32."""

_LARGEST_TABLE = 2**16
"""Masks of all positions are kept up to so many numbers."""


class DecodePlan:
    """The step for the first `rows` slots; `columns` is what the attention reads, at least every position + 1.

    It is bound to the memory of the packed weights and of the store: a new plan must follow where either moves, and
    where a setting of the model changes; new weights in the same memory it takes as they are.
    `calls` are made in order.  Example: 3 layers with rotary positions and query and key norms are 83 calls, or 26
    with compiled ones.
    """

    h: Tensor
    logits: Tensor

    def __init__(self, forward: LeanForward, store: SlotStore, rows: int, columns: int) -> None:
        self.packed, self.decoder, self.store, self.silu = forward.packed, forward.decoder, store, forward.silu
        self.rows, self.columns, self.fused, self.device = rows, columns, forward.fused, forward.device
        self.calls: list[Callable[[], object]] = []
        self.kernels = forward.present_kernels()
        fits = self.decoder.head_dim % LANES == 0 and store.columns % BLOCK == 0 and store.keys_across
        self.attends = self.kernels if fits else None
        self._take_buffers(forward.room)
        self._set_positions(forward.angles(store.columns))
        self._set_masks(forward.mask_tables)
        for index, layer in enumerate(self.packed.layers):
            self._block(index, layer)
        self._norm(self.x, self.packed.final_norm)
        self._product(self.h, self.packed.head, self.logits)

    def run(self, ids_R: Tensor, positions_R: Tensor) -> Tensor:
        """Feed a token to each row, at its position; logits [R, V], valid until the next run of any plan."""
        self.positions.copy_(positions_R)
        torch.index_select(self.packed.embedding, 0, ids_R, out=self.x)
        for call in self.calls:
            call()
        return self.logits

    def add(self, part: str, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """One more call; `part` says what it belongs to, for measurements."""
        self.calls.append(partial(function, *arguments, **named))

    # -- what is set up ----------------------------------------------------------------------------------------------

    def _take_buffers(self, room: Callable[..., Tensor]) -> None:
        """`room(name, dtype, *shape)` gives the same memory for the same name and type."""
        packed, decoder, rows = self.packed, self.decoder, self.rows
        heads, kv_heads, size = decoder.heads, decoder.kv_heads, decoder.head_dim
        both, group = heads + kv_heads, heads // kv_heads
        take, wide = partial(room, dtype=packed.dtype), wide_type(packed.dtype)
        self._take_stream(take)
        self.norm = room("norm", wide, (rows, 1))
        self.qk_norm = room("qk_norm", wide, (rows, both, 1))
        self.qk_factor = room("narrow", wide, (rows, both * size))
        # what the norms give is used up before the attention's result comes, and so on
        self.h, self.mixed = take("h", shape=tuple(self.x.shape)), take("h", shape=(rows * kv_heads, group, size))
        self.scores = take("narrow", shape=(rows * kv_heads, group, self.columns))
        self.act = take("narrow", shape=(rows, packed.layers[0].down.weight.shape[0]))
        self.added = take("added", shape=tuple(self.x.shape))
        self.qkv = take("wide", shape=(rows, (both + kv_heads) * size))
        self.inner = [
            take(f"wide{number or ''}", shape=(rows, matrix.weight.shape[1]))
            for number, matrix in enumerate(packed.layers[0].gate_up)
        ]
        self.logits = take("wide", shape=(rows, packed.head.weight.shape[1]))
        split = self.qkv.view(rows, both + kv_heads, size)
        self.qk_in, self.v = split[:, :both], split[:, both:]
        self.qk = self.qk_in if wide == packed.dtype else room("qk", wide, (rows, both, size))
        self.q_out, self.k_out = self.qk[:, :heads].view(rows, kv_heads, group, size), self.qk[:, heads:]
        in_place = wide == packed.dtype
        self.q = self.q_out if in_place and kv_heads == 1 else take("q", shape=self.q_out.shape)
        self.k = self.k_out if in_place else take("k", shape=self.k_out.shape)

    def _take_stream(self, take: Callable[..., Tensor]) -> None:
        """x [rows, hidden]; beside each row stands the floor of most norms, so that the root of the sum of squares
        of `floored` has it in it."""
        hidden, norm = self.decoder.hidden_size, self.packed.final_norm
        padded = take("stream", shape=(self.rows, hidden + _PADDING))
        self.x, self.floored, self.floored_eps = padded[:, :hidden], padded[:, : hidden + 1], None
        if not norm.centred and norm.floor.dtype == padded.dtype:
            padded[:, hidden], self.floored_eps = norm.floor, norm.eps

    def _set_positions(self, tables: tuple[Tensor, ...]) -> None:
        """What depends on the positions alone, once a step.  A rotation is laid out for every head, so that each layer
        multiplies plain rows."""
        rows, packed = self.rows, self.packed
        self.positions = torch.zeros(rows, dtype=torch.long, device=self.device)
        self.row_index = torch.arange(rows, device=self.device)
        # with one key head a token's values are one row of a matrix, which is cheaper to write
        self.flat_values = self.decoder.kv_heads == 1 and self.attends is None
        if self.flat_values:
            self.flat = torch.empty_like(self.row_index)
            self.add("writes", torch.add, self.row_index * self.store.columns, self.positions, out=self.flat)
        if packed.positions is not None:
            self.add("embedding", _add_rows, self.x, packed.positions, self.positions)
        self.turns, self.tables = [], tables
        for table in () if self.attends is not None else tables:
            turn = torch.empty(rows, 1, table.shape[1], dtype=table.dtype, device=self.device)
            spread = turn.new_empty(rows, self.qk.shape[1], table.shape[1])
            self.add("rotation", torch.index_select, table, 0, self.positions, out=turn.view(rows, -1))
            self.add("rotation", spread.copy_, turn)
            self.turns.append(spread.view(rows, -1))

    def _set_masks(self, tables: dict[tuple[int, int, int | None], Tensor]) -> None:
        """One additive mask [R, 1, 1, columns] for each window that is narrower than the columns: a row of a table
        for each position, or computed each step where the table would be large.  tables: those of all plans."""
        device, dtype = self.device, self.packed.dtype
        columns, places = torch.arange(self.columns, device=device), self.store.columns
        self.masks: dict[int | None, Tensor] = {}
        if self.attends is not None:
            return
        for window in {self._window(layer) for layer in self.packed.layers}:
            self.masks[window] = torch.empty(self.rows, 1, 1, self.columns, dtype=dtype, device=device)
            mask = self.masks[window][:, 0, 0]
            if places * self.columns > _LARGEST_TABLE:
                self.add("masks", _fill_mask, mask, self.positions, columns, window)
            else:
                key = (places, self.columns, window)
                if key not in tables:
                    tables[key] = mask.new_empty(places, self.columns)
                    _fill_mask(tables[key], torch.arange(places, device=device), columns, window)
                self.add("masks", torch.index_select, tables[key], 0, self.positions, out=mask)

    def _window(self, layer: PackedLayer) -> int | None:
        return None if layer.window is None or layer.window >= self.columns else layer.window

    # -- the parts of a block ----------------------------------------------------------------------------------------

    def _block(self, index: int, layer: PackedLayer) -> None:
        self._norm(self.x, layer.attention_norm)
        self._product(self.h, layer.qkv, self.qkv)
        if self.attends is not None:
            self._attend_compiled(self.attends, index, layer)
        else:
            self._turn(layer)
            self._write(index)
            self._attend(index, layer)
        self._into_stream(self.mixed.view(self.rows, -1), layer.o, layer.attention_out_norm)
        self._norm(self.x, layer.mlp_norm)
        for matrix, out in zip(layer.gate_up, self.inner, strict=True):
            self._product(self.h, matrix, out)
        self._activate()
        self._into_stream(self.act, layer.down, layer.mlp_out_norm)

    def _norm(self, x: Tensor, norm: PackedNorm) -> None:
        """h = norm(x)."""
        if norm.centred:
            self.add("norms", _layer_norm, x, norm, self.h)
            return
        if self.kernels is not None and norm.gain is None and x.shape[1] % LANES == 0:
            self.add("norms", self.kernels.norm(x, float(norm.floor) ** 2, self.h))
            return
        wide, scale = self.norm.dtype, self.norm
        floored = x is self.x and norm.eps == self.floored_eps
        rows = self.floored if floored else x
        self.add("norms", torch.linalg.vector_norm, rows, dim=-1, keepdim=True, dtype=wide, out=scale)
        if not floored:
            self.add("norms", torch.hypot, scale, norm.floor, out=scale)
        self.add("norms", scale.reciprocal_)
        self.add("norms", torch.mul, x, scale, out=self.h)
        if norm.gain is not None:
            self.add("norms", self.h.mul_, norm.gain)

    def _product(self, x: Tensor, matrix: Matrix, out: Tensor, part: str = "other products") -> None:
        """out = x @ matrix."""
        if matrix.bias is None:
            self.add(part, torch.mm, x, matrix.weight, out=out)
        else:
            self.add(part, torch.addmm, matrix.bias, x, matrix.weight, out=out)

    def _turn(self, layer: PackedLayer) -> None:
        """Normalise and rotate queries and keys in place."""
        part, rows = "query and key norms, rotation", self.rows
        if self.qk is not self.qk_in:
            self.add(part, self.qk.copy_, self.qk_in)
        by_row = self.qkv[:, : self.qk_factor.shape[1]] if self.qk is self.qk_in else self.qk.view(rows, -1)
        if layer.qk_spread is not None:
            norm = self.qk_norm.view(rows, -1)
            # 1 / sqrt(sum of squares + floor^2), the sums by a product with ones: a reduction over so few is slower
            self.add(part, torch.mul, by_row, by_row, out=self.qk_factor)
            squares, ones = self.qk_factor.view(norm.numel(), -1), norm.new_ones(self.qk.shape[-1])
            self.add(part, torch.mv, squares, ones, out=norm.view(-1))
            self.add(part, norm.add_, layer.qk_floor.square())
            self.add(part, norm.rsqrt_)
            # a product with one entry in each column spreads a factor for each head over its dimensions, gain included
            self.add(part, torch.mm, norm, layer.qk_spread, out=self.qk_factor)
            self.add(part, by_row.mul_, self.qk_factor)
        if layer.rope >= 0:
            pairs = torch.view_as_complex(by_row.view(rows, -1, 2))
            self.add(part, pairs.mul_, self.turns[layer.rope])
        if self.q is not self.q_out:
            self.add(part, self.q.copy_, self.q_out)
        if self.k is not self.k_out:
            self.add(part, self.k.copy_, self.k_out)

    def _write(self, index: int) -> None:
        """New keys and values into the store, by [slot, column, heads, head_dim]."""
        keys, values = self.store.layer(index)
        where = (self.row_index, self.positions)
        by_column = keys.permute(0, 3, 1, 2) if self.store.keys_across else keys.transpose(1, 2)
        self.add("writes", by_column.index_put_, where, self.k)
        if self.flat_values:
            self.add("writes", values.flatten(0, 2)[:, None].index_copy_, 0, self.flat, self.v)
        else:
            self.add("writes", values.transpose(1, 2).index_put_, where, self.v)

    def _attend_compiled(self, kernels: Kernels, index: int, layer: PackedLayer) -> None:
        """What `_turn`, `_write` and `_attend` do."""
        gain = None if layer.qk_gain is None else (layer.qk_gain, float(layer.qk_floor) ** 2)
        turns = self.tables[layer.rope] if layer.rope >= 0 else None
        mixed = self.mixed.view(self.rows, -1)
        memory = self.store.layer(index)
        self.add("attention", kernels.attend(self.qkv, self.positions, gain, turns, memory, mixed, layer.window))

    def _attend(self, index: int, layer: PackedLayer) -> None:
        """mixed = what the queries read."""
        part, rows = "attention", self.rows
        keys, values = self.store.layer(index)
        values, mask = values[:rows, :, : self.columns], self.masks[self._window(layer)]
        if self.fused:
            mask = mask.expand(-1, -1, self.q.shape[2], -1)
            out = self.mixed.view(self.q.shape)
            self.add(part, _attend_fused, self.q, keys[:rows, :, : self.columns], values, mask, out)
            return
        keys = keys[:rows, ..., : self.columns].flatten(0, 1)
        self.add(part, torch.bmm, self.q.flatten(0, 1), keys, out=self.scores)
        self.add(part, self.scores.view(rows, -1, *self.scores.shape[1:]).add_, mask)
        self.add(part, torch.softmax, self.scores, -1, out=self.scores)
        self.add(part, torch.bmm, self.scores, values.flatten(0, 1), out=self.mixed)

    def _activate(self) -> None:
        """act = what goes into the last projection of the MLP."""
        part, name = "activation", self.decoder.activation
        if not self.packed.gated:
            self.add(part, _activate, ACTIVATIONS[name], self.inner[0], self.act)
            return
        if self.kernels is not None and self.silu and len(self.inner) == 1 and self.act.shape[1] % LANES == 0:
            self.add(part, self.kernels.silu(self.inner[0], self.act))
            return
        gate, up = self.inner if len(self.inner) == 2 else self.inner[0].chunk(2, dim=-1)
        if self.silu:
            self.add(part, F.silu, gate, inplace=True)
        else:
            self.add(part, _activate, ACTIVATIONS[name], gate, gate)
        self.add(part, torch.mul, gate, up, out=self.act)

    def _into_stream(self, h: Tensor, matrix: Matrix, norm: PackedNorm | None) -> None:
        """x += norm(h @ matrix)."""
        part = "products into the stream"
        if norm is None and matrix.bias is None:
            self.add(part, self.x.addmm_, h, matrix.weight)
            return
        self._product(h, matrix, self.added, part)
        if norm is not None:
            self._norm(self.added, norm)
        self.add(part, self.x.add_, self.added if norm is None else self.h)


def _add_rows(x: Tensor, table: Tensor, positions_R: Tensor) -> None:
    x.add_(table.index_select(0, positions_R))


def _fill_mask(out: Tensor, positions_R: Tensor, columns: Tensor, window: int | None) -> None:
    """The lowest number where a column is hidden from a position: later, or `window` or more before it; else 0."""
    at = positions_R[:, None]
    hidden = columns > at
    if window is not None:
        hidden |= columns <= at - window
    torch.mul(hidden, torch.finfo(out.dtype).min, out=out)


def _layer_norm(x: Tensor, norm: PackedNorm, out: Tensor) -> None:
    out.copy_(F.layer_norm(x, x.shape[-1:], norm.gain, norm.bias, norm.eps))


def _attend_fused(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, out: Tensor) -> None:
    out.copy_(F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=1.0))


def _activate(function: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> None:
    out.copy_(function(x))
