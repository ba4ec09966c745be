"""Prefill and decode over a described decoder, with as few operations as torch allows.

A decode step of a small model on a CPU is a few dozen matrix products of some 50 microseconds each, so what surrounds
them decides: here one block is its matrix products and a dozen small operations, prepared once for a batch of n rows
over t columns (`burnish.policies.plan`).  Attention takes the query heads that share a key head as rows of one product.
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
from burnish.policies.kernels import Kernels, present_kernels
from burnish.policies.packed import (
    Matrix,
    PackedLayer,
    PackedNorm,
    apply_matrix,
    apply_norm,
    pack,
    repack,
    wide_type,
)
from burnish.policies.parts import ACTIVATIONS, Decoder
from burnish.policies.plan import DecodePlan
from burnish.policies.ragged import Ragged, additive
from burnish.policies.sight import HeldFeatures, sight_of
from burnish.policies.slots import SlotStore

_MOST_PLANS = 256
"""Prepared steps kept for different (n, t); their buffers are the same memory.  A run meets about as many."""


class LeanForward:
    """Next-token logits of the rows of a `SlotStore`, for a model that `describe_decoder` understands.

    `refresh` must follow every change of the weights.  compiled: use functions compiled on this machine where there are
    any.  mask_tables: what prepared steps of equal (places, columns, window) share.  Raises ValueError for a model that
    is not understood.
    """

    keeps_state = True

    def __init__(self, model: Any, *, compiled: bool = True) -> None:
        self.model, self._compiled = model, compiled
        self._rooms: dict[tuple[str, torch.dtype], Tensor] = {}
        sight = sight_of(model)
        self._sight = None if sight is None or sight.encoder.whole else sight
        self._features = None if self._sight is None else HeldFeatures(model, self._sight)
        self.decoder = self._described()
        self.packed = pack(self.decoder)
        self.silu = self.decoder.activation in ("silu", "swish")
        weight = self.decoder.embedding.weight
        self.device = weight.device
        # Fused attention keeps its scores in float32, which half precisions need; for float32 on a CPU two batched
        # products over transposed keys are twice as fast.
        self.fused = weight.device.type != "cpu" or weight.dtype != torch.float32
        self._angles: tuple[Tensor, ...] = ()
        self._plans: dict[tuple[int, int, int, int], DecodePlan] = {}
        self.mask_tables: dict[tuple[int, int, int | None], Tensor] = {}

    def refresh(self) -> None:
        """Read the weights anew.  Prepared steps stay: they are bound to memory, which has the new weights in it."""
        self.decoder = self._described()
        packed = repack(self.decoder, self.packed, self.model)
        if packed is not self.packed:
            self.packed, self._plans, self._angles, self.mask_tables = packed, {}, (), {}
        if self._features is not None:
            self._features.forget()

    def _described(self) -> Decoder:
        decoder = describe_decoder(self.model, adapters=True)
        if decoder is None:
            raise ValueError(f"the lean forward pass does not understand {type(self.model).__name__}")
        return decoder

    def new_store(self) -> SlotStore:
        """An empty store that fits the model."""
        decoder = self.decoder
        store = SlotStore(layers=len(decoder.layers), device=self.device, keys_across=not self.fused)
        size = decoder.head_dim
        for layer in range(len(decoder.layers)):
            store.allocate(layer, heads=decoder.kv_heads, key_dim=size, value_dim=size, dtype=self.packed.dtype)
        return store

    def present_kernels(self) -> Kernels | None:
        """The compiled functions that prepared steps may use."""
        plain = self.device.type == "cpu" and self.packed.dtype == torch.float32
        return present_kernels() if plain and self._compiled else None

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
            if self._plans and next(iter(self._plans))[:2] != key[:2]:
                self._plans.clear()
                self.mask_tables.clear()
            elif len(self._plans) >= _MOST_PLANS:
                del self._plans[next(iter(self._plans))]
            plan = self._plans[key] = DecodePlan(self, store, len(ids_R), columns)
        return plan.run(ids_R, positions_R)

    def prefill(
        self, store: SlotStore, slots: Sequence[int], starts: Sequence[int], ids: Sequence[npt.NDArray[np.int32]]
    ) -> Tensor:
        """Feed `ids[u]` to slot `slots[u]` from column `starts[u]` on; logits [U, V] after the last of each."""
        ragged = Ragged(slots, starts, [len(part) for part in ids], self.device)
        tokens_N = torch.from_numpy(np.concatenate(ids).astype(np.int64)).to(self.device)
        packed, room, count = self.packed, self.room, len(tokens_N)
        hidden, heads = self.decoder.hidden_size, self.decoder.heads + 2 * self.decoder.kv_heads
        shown_N = tokens_N if self._features is None else tokens_N.clamp(min=0)
        x = torch.index_select(packed.embedding, 0, shown_N, out=room("x", packed.dtype, (count, hidden)))
        if self._features is not None and self._sight is not None:
            x = self._sight.embed(tokens_N, x, self._features)
        if packed.positions is not None:
            x += packed.positions.index_select(0, ragged.positions_N)
        turns = [table.index_select(0, ragged.positions_N)[:, None] for table in self.angles(store.columns)]
        masks: dict[int | None, Tensor] = {}
        for index, layer in enumerate(packed.layers):
            h = self._norm(x, layer.attention_norm)
            qkv = apply_matrix(h, layer.qkv, room("qkv", packed.dtype, (count, heads * self.decoder.head_dim)))
            q, k, v = self._split(layer, qkv, turns)
            _write(store, index, (ragged.slots_N, ragged.positions_N), k, v)
            if layer.window not in masks:
                masks[layer.window] = self._prefill_mask(ragged, layer.window)
            mixed = self._attend(store, index, ragged, q, masks[layer.window])
            if index == len(packed.layers) - 1:
                x, mixed = x.index_select(0, ragged.last_U), mixed.index_select(0, ragged.last_U)
            self._add(x, mixed, layer.o, layer.attention_out_norm)
            self._add(x, self._activate(layer, self._norm(x, layer.mlp_norm)), layer.down, layer.mlp_out_norm)
        return apply_matrix(apply_norm(x, packed.final_norm), packed.head)

    def room(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Memory that is used again by the next call: on a CPU, touching fresh pages costs more than the work on them.

        Elsewhere torch keeps freed memory itself.
        """
        if self.device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=self.device)
        size = math.prod(shape)
        flat = self._rooms.get((name, dtype))
        if flat is None or len(flat) < size:
            # bound to what is too small now
            self._plans.clear()
            flat = self._rooms[name, dtype] = torch.empty(size * 5 // 4, dtype=dtype)
        return flat[:size].view(shape)

    def _norm(self, x: Tensor, norm: PackedNorm) -> Tensor:
        scratch = self.room("norm", wide_type(x.dtype), (len(x), 1))
        return apply_norm(x, norm, self.room("h", x.dtype, tuple(x.shape)), scratch)

    def _add(self, x: Tensor, h: Tensor, matrix: Matrix, norm: PackedNorm | None) -> None:
        """x += norm(h @ matrix)."""
        if norm is None and matrix.bias is None:
            x.addmm_(h, matrix.weight)
        else:
            added = apply_matrix(h, matrix, self.room("added", x.dtype, tuple(x.shape)))
            x.add_(added if norm is None else apply_norm(added, norm))

    def _prefill_mask(self, ragged: Ragged, window: int | None) -> Tensor:
        """Additive: [U, width, 1, columns] for products, [U, 1, group * width, columns] for fused attention."""
        positions_UQ = ragged.starts_U[:, None] + torch.arange(ragged.width, device=self.device)
        mask = additive(ragged.hidden(positions_UQ, window=window), self.packed.dtype)
        if not self.fused:
            return mask[:, :, None]
        group = self.decoder.heads // self.decoder.kv_heads
        return mask[:, None, None].expand(-1, 1, group, -1, -1).flatten(2, 3)

    def _activate(self, layer: PackedLayer, h: Tensor) -> Tensor:
        """What goes into the last projection of the MLP."""
        act = ACTIVATIONS[self.decoder.activation]
        parts = [
            apply_matrix(h, matrix, self.room(f"inner{number}", h.dtype, (len(h), matrix.weight.shape[1])))
            for number, matrix in enumerate(layer.gate_up)
        ]
        if not self.packed.gated:
            return act(parts[0])
        gate, up = parts if len(parts) == 2 else parts[0].chunk(2, dim=-1)
        gate = F.silu(gate, inplace=True) if self.silu else act(gate)
        return torch.mul(gate, up, out=self.room("act", h.dtype, tuple(up.shape)))

    def _split(self, layer: PackedLayer, qkv_N: Tensor, turns: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [N, heads, head_dim], the first two normalised and rotated (in place)."""
        decoder = self.decoder
        heads, both = decoder.heads, decoder.heads + decoder.kv_heads
        qkv = qkv_N.view(len(qkv_N), both + decoder.kv_heads, decoder.head_dim)
        qk = qkv[:, :both].to(wide_type(qkv.dtype))
        if layer.qk_gain is not None:
            norm = torch.hypot(torch.linalg.vector_norm(qk, dim=-1, keepdim=True), layer.qk_floor)
            qk.mul_(norm.reciprocal_()).mul_(layer.qk_gain)
        if layer.rope >= 0:
            torch.view_as_complex(qk.view(len(qk), both, -1, 2)).mul_(turns[layer.rope])
        qk = qk.to(qkv.dtype)
        return qk[:, :heads], qk[:, heads:], qkv[:, both:]

    def _attend(self, store: SlotStore, index: int, ragged: Ragged, q_N: Tensor, mask: Tensor) -> Tensor:
        """Attention of new tokens over everything their rows hold; [N, heads * head_dim]."""
        keys, values = store.layer(index)
        keys = keys[..., : ragged.columns] if store.keys_across else keys[:, :, : ragged.columns]
        keys = keys.index_select(0, ragged.slots_U)
        values = values[:, :, : ragged.columns].index_select(0, ragged.slots_U)
        units, width, heads, kv_heads = len(ragged.slots_U), ragged.width, self.decoder.heads, self.decoder.kv_heads
        # zeroed: what stands in for missing tokens must be finite
        q = self.room("q", q_N.dtype, (units * width, heads * self.decoder.head_dim)).zero_()
        q.index_copy_(0, ragged.padded_N, q_N.flatten(1))
        q = q.view(units, width, kv_heads, heads // kv_heads, -1)
        mixed = (self._fused if self.fused else self._multiplied)(q, keys, values, mask)
        return mixed.reshape(units * width, -1).index_select(0, ragged.padded_N)

    def _fused(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """[U, width, kv_heads, group, head_dim]; keys and values [U, kv_heads, columns, head_dim]."""
        rows = q.permute(0, 2, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rows.flatten(2, 3), keys, values, attn_mask=mask, scale=1.0)
        return mixed.view(rows.shape).permute(0, 3, 1, 2, 4)

    def _multiplied(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """The same by two batched products; keys [U, kv_heads, head_dim, columns]."""
        rows = q.permute(0, 2, 1, 3, 4)
        shape = (len(q) * q.shape[2], q.shape[1] * q.shape[3], keys.shape[-1])
        scores = self.room("scores", q.dtype, shape)
        torch.bmm(rows.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1), out=scores)
        scores.view(*rows.shape[:-1], -1).add_(mask[:, None])
        torch.softmax(scores, -1, out=scores)
        return torch.bmm(scores, values.flatten(0, 1)).view(rows.shape).permute(0, 2, 1, 3, 4)


def _write(store: SlotStore, index: int, where: tuple[Tensor, Tensor], k_N: Tensor, v_N: Tensor) -> None:
    keys, values = store.layer(index)
    by_column = keys.permute(0, 3, 1, 2) if store.keys_across else keys.transpose(1, 2)
    by_column.index_put_(where, k_N)
    values.transpose(1, 2).index_put_(where, v_N)
