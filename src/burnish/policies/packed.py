"""A decoder's weights arranged for decoding: fused, transposed, with everything constant folded in.

* Query, key and value projections are one matrix, gate and up projections another, both stored [in, out].
* The dimensions of queries and keys are permuted so that the two members of a rotary pair lie side by side; their
  products do not change, and a rotation becomes one complex multiplication.
* The softmax scale goes into the queries.  In float32 the gain of a norm, and the sqrt(width) of its mean, go into the
  matrix behind it; in half precision folding would round the weights anew, so the gain stays a factor.

What is packed is a copy and belongs to one state of the weights: `pack` again after a change.  `repack` does so in the
same memory, which prepared steps are bound to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.policies.parts import Decoder, DecoderLayer, Norm, Projection

_COPY_BYTES = 2**30
"""Beyond this size only the query, key and value matrices are copied; the rest is read from the live weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedNorm:
    """How to normalise rows of `width`: `floor` is sqrt(width * eps), the smallest root of a sum of squares.

    gain: factor [width] that is still to be applied, sqrt(width) included; None where it was folded away.
    bias: of a layer norm (`eps` then counts), else None.
    """

    floor: Tensor
    eps: float
    centred: bool
    gain: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """x @ weight + bias, weight [in, out]."""

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayer:
    """One block.  qkv: [hidden, (heads + 2 kv_heads) * head_dim]; qk_gain: [heads + kv_heads, head_dim] with the scale
    in it, None without query and key norms; qk_spread: the same, one row for each head, [heads + kv_heads, (heads +
    kv_heads) * head_dim].  gate_up: one fused matrix, or two, or the single first layer of a plain
    MLP.  rope: index of its table, -1 for none."""

    attention_norm: PackedNorm
    qkv: Matrix
    qk_gain: Tensor | None
    qk_spread: Tensor | None
    qk_floor: Tensor
    o: Matrix
    attention_out_norm: PackedNorm | None
    mlp_norm: PackedNorm
    gate_up: tuple[Matrix, ...]
    down: Matrix
    mlp_out_norm: PackedNorm | None
    rope: int
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedDecoder:
    """A whole model; `gated` says whether `gate_up` holds a gate."""

    layers: tuple[PackedLayer, ...]
    embedding: Tensor
    positions: Tensor | None
    final_norm: PackedNorm
    head: Matrix
    gated: bool
    dtype: torch.dtype


def repack(decoder: Decoder, old: PackedDecoder, model: torch.nn.Module) -> PackedDecoder:
    """`pack` in the memory of `old`: gives `old` itself with the present weights in it.  Gives another one, and leaves
    `old` without meaning, where they are not alike: of other shapes, types or settings, or beside other live weights.
    """
    new = pack(decoder, old)
    before, after = _leaves(old), _leaves(new)
    live = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    if len(before) != len(after) or not all(_alike(a, b, live) for a, b in zip(before, after, strict=True)):
        return new
    with torch.no_grad():
        for a, b in zip(before, after, strict=True):
            if isinstance(a, Tensor) and a.data_ptr() != b.data_ptr():
                a.copy_(b)
    return old


def _leaves(packed: PackedDecoder) -> list[Any]:
    """Every tensor and every setting, in a fixed order."""
    found: list[Any] = []
    _gather(packed, found)
    return found


def _gather(part: Any, found: list[Any]) -> None:
    kind = type(part)
    if kind is tuple:
        for one in part:
            _gather(one, found)
    elif kind in _PARTS:
        for name in kind.__slots__:
            _gather(getattr(part, name), found)
    else:
        found.append(part)


_PARTS = (PackedNorm, Matrix, PackedLayer, PackedDecoder)


def _alike(a: Any, b: Any, live: set[int]) -> bool:
    if a is b:
        return True
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if b.untyped_storage().data_ptr() in live or a.untyped_storage().data_ptr() in live:
        return a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.shape == b.shape
    if a.dim() == 0 and not torch.equal(a, b):
        return False  # a floor, from which prepared steps have computed already
    return _writable(a) and (a.shape, a.stride(), a.dtype, a.device) == (b.shape, b.stride(), b.dtype, b.device)


def _writable(tensor: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or not tensor.is_inference()


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """What norms and rotations are computed in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def apply_norm(x: Tensor, norm: PackedNorm, out: Tensor | None = None, scratch: Tensor | None = None) -> Tensor:
    """norm(x) for rows [N, width], into `out` where the norm allows it; scratch: [N, 1] in `wide_type`."""
    if norm.centred:
        return F.layer_norm(x, x.shape[-1:], norm.gain, norm.bias, norm.eps)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide_type(x.dtype), out=scratch)
    scale = torch.hypot(scale, norm.floor, out=scratch)
    scale = torch.reciprocal(scale, out=scratch)
    h = (x * scale).to(x.dtype) if out is None else torch.mul(x, scale, out=out)
    return h if norm.gain is None else h.mul_(norm.gain)


def apply_matrix(x: Tensor, matrix: Matrix, out: Tensor | None = None) -> Tensor:
    """x @ weight + bias, into `out` where it is given."""
    if matrix.bias is None:
        return torch.mm(x, matrix.weight, out=out)
    return torch.addmm(matrix.bias, x, matrix.weight, out=out)


def pack(decoder: Decoder, old: PackedDecoder | None = None) -> PackedDecoder:
    """Copy and fold the present weights (see the module's text), large matrices into those of `old` where they fit."""
    with torch.no_grad():
        embedding = decoder.embedding.weight.detach()
        dtype = embedding.dtype
        fold = dtype in (torch.float32, torch.float64)
        weights = [part.weight for layer in decoder.layers for part in (layer.up, layer.down)]
        copies = sum(weight.numel() * weight.element_size() for weight in weights) <= _COPY_BYTES
        if decoder.embedding_scale != 1.0:
            embedding = embedding * torch.tensor(decoder.embedding_scale, dtype=dtype)
        return PackedDecoder(
            layers=tuple(
                _layer(decoder, layer, fold and copies, copies, None if old is None else old.layers[index])
                for index, layer in enumerate(decoder.layers)
            ),
            embedding=embedding,
            positions=None if decoder.positions is None else decoder.positions.weight.detach(),
            final_norm=_norm(decoder.final_norm, fold and copies),
            head=_matrix(
                [decoder.head],
                decoder.final_norm if fold and copies else None,
                copies,
                None if old is None else old.head,
            ),
            gated=decoder.layers[0].gate is not None,
            dtype=dtype,
        )


def _layer(decoder: Decoder, layer: DecoderLayer, fold: bool, copies: bool, old: PackedLayer | None) -> PackedLayer:
    mlp = [layer.up] if layer.gate is None else [layer.gate, layer.up]
    before = layer.mlp_norm if fold else None
    qk_gain = _qk_gain(decoder, layer)
    return PackedLayer(
        attention_norm=_norm(layer.attention_norm, fold),
        qkv=_qkv(decoder, layer, fold, None if old is None else old.qkv),
        qk_gain=qk_gain,
        qk_spread=None if qk_gain is None else torch.block_diag(*qk_gain),  # type: ignore[no-untyped-call]
        qk_floor=_floor(layer.q_norm, layer.attention_norm),
        o=_matrix([layer.o], None, copies, None if old is None else old.o),
        attention_out_norm=None if layer.attention_out_norm is None else _norm(layer.attention_out_norm, False),
        mlp_norm=_norm(layer.mlp_norm, fold),
        gate_up=(_matrix(mlp, before, True, None if old is None else old.gate_up[0]),)
        if copies
        else tuple(_matrix([part], None, False) for part in mlp),
        down=_matrix([layer.down], None, copies, None if old is None else old.down),
        mlp_out_norm=None if layer.mlp_out_norm is None else _norm(layer.mlp_out_norm, False),
        rope=-1 if layer.rope is None else decoder.ropes.index(layer.rope),
        window=layer.window,
    )


def _norm(norm: Norm, fold: bool) -> PackedNorm:
    gain = norm.gain.detach()
    if norm.centred:
        bias = norm.bias
        return PackedNorm(
            floor=gain.new_zeros(()),
            eps=norm.eps,
            centred=True,
            gain=gain,
            bias=None if bias is None else bias.detach(),
        )
    return PackedNorm(
        floor=_floor(norm, norm),
        eps=norm.eps,
        centred=False,
        gain=None if fold else gain.float() * math.sqrt(len(gain)),
        bias=None,
    )


def _floor(norm: Norm | None, other: Norm) -> Tensor:
    gain = (norm or other).gain
    wide = torch.promote_types(gain.dtype, torch.float32)
    eps = norm.eps if norm is not None else 0.0
    return torch.tensor(math.sqrt(len(gain) * eps), dtype=wide, device=gain.device)


def _matrix(parts: list[Projection], before: Norm | None, copies: bool, old: Matrix | None = None) -> Matrix:
    """The parts side by side, with the gain of the norm before them folded in."""
    biases = [part.bias for part in parts]
    if not copies:
        bias = biases[0]
        return Matrix(weight=parts[0].weight.detach().t(), bias=None if bias is None else bias.detach())
    weights = [part.weight.detach() for part in parts]
    joined = weights[0] if len(weights) == 1 else torch.cat(weights)
    return Matrix(weight=_folded(joined.t(), before, old), bias=_joined(parts))


def _folded(weight: Tensor, norm: Norm | None, old: Matrix | None) -> Tensor:
    """weight [in, out] with the gain of the norm before it, contiguous and never the live tensor itself: in the memory
    of `old` where it fits."""
    kept = None if old is None else old.weight
    fits = kept is not None and kept.is_contiguous() and _writable(kept)
    if kept is None or not fits or (kept.shape, kept.dtype, kept.device) != (weight.shape, weight.dtype, weight.device):
        kept = torch.empty_like(weight, memory_format=torch.contiguous_format)
    if norm is None or norm.centred:
        return kept.copy_(weight)
    return torch.mul(weight, (norm.gain.detach() * math.sqrt(weight.shape[0]))[:, None], out=kept)


def _joined(parts: list[Projection]) -> Tensor | None:
    biases = [part.bias for part in parts]
    if all(bias is None for bias in biases):
        return None
    filled = [
        part.weight.new_zeros(part.weight.shape[0]) if bias is None else bias
        for part, bias in zip(parts, biases, strict=True)
    ]
    return torch.cat(filled).detach()


def _pairs(head_dim: int, device: torch.device) -> Tensor:
    """Where dimension j of a permuted head comes from: 0, D/2, 1, D/2 + 1, ..."""
    half = torch.arange(head_dim // 2, device=device)
    return torch.stack([half, half + head_dim // 2], dim=1).flatten()


def _qkv(decoder: Decoder, layer: DecoderLayer, fold: bool, old: Matrix | None) -> Matrix:
    size = decoder.head_dim
    scale = 1.0 if layer.q_norm is not None else layer.scale
    weights, biases = [], []
    for part, factor, heads in ((layer.q, scale, decoder.heads), (layer.k, 1.0, decoder.kv_heads)):
        order = _pairs(size, part.weight.device)
        if layer.rope is None:
            order = torch.arange(size, device=part.weight.device)
        permuted = part.weight.detach().view(heads, size, -1)[:, order]
        weights.append((permuted if factor == 1.0 else permuted * factor).flatten(0, 1))
        bias = part.bias
        biases.append(None if bias is None else (bias.view(heads, size)[:, order] * factor).flatten())
    weights.append(layer.v.weight.detach())
    biases.append(layer.v.bias)
    weight = _folded(torch.cat(weights).t(), layer.attention_norm if fold else None, old)
    bias_out = None
    if any(bias is not None for bias in biases):
        bias_out = torch.cat(
            [weight.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        )
    return Matrix(weight=weight, bias=None if bias_out is None else bias_out.detach())


def _qk_gain(decoder: Decoder, layer: DecoderLayer) -> Tensor | None:
    if layer.q_norm is None or layer.k_norm is None:
        return None
    size = decoder.head_dim
    order = _pairs(size, layer.q_norm.gain.device)
    wide = torch.promote_types(layer.q_norm.gain.dtype, torch.float32)
    q = layer.q_norm.gain.detach().to(wide)[order] * (layer.scale * math.sqrt(size))
    k = layer.k_norm.gain.detach().to(wide)[order] * math.sqrt(size)
    return torch.cat([q.expand(decoder.heads, size), k.expand(decoder.kv_heads, size)]).contiguous()
