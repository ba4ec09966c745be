"""One layer of a decoder, forward and backward by hand.

Written out, a layer needs far fewer passes over memory than automatic differentiation of its parts takes: the gains of
its norms are folded into the weights behind them (`packed.py`), residual sums ride on matrix products, and the pairs of
a rotary embedding stand next to each other so that a rotation is one complex product.  With n(x) = x / rms(x) (or the
centred form) and dn the gradient of n:

    dx = (dn - n * mean(n * dn)) / rms(x)            (centred: dn - mean(dn) - n * mean(n * dn))

Where only some nodes are wanted of a layer, its keys and values alone are computed for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.training.tree_attention import Heads, Plan, attend, attend_backward

aten = torch.ops.aten


class Weights(NamedTuple):
    """The packed weights of a layer; None for what its family does not have.

    qkv [(H + 2 KV) * D, hidden], qk_gain [H + KV, D], o, gate, up, down: [out, in].  *_gain of the norms on what a half
    of the layer adds: [hidden].
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    qk_gain: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    attention_out_gain: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None
    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    mlp_out_gain: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormKind:
    """`NormKind(eps=1e-6)`; centred: a layer norm."""

    eps: float
    centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What a layer computes, besides its weights.  qk_eps: of the norm on queries and keys."""

    heads: Heads
    attention_norm: NormKind
    mlp_norm: NormKind
    qk_eps: float
    attention_out_norm: NormKind | None
    mlp_out_norm: NormKind | None
    activation: str
    window: int | None


class Route(NamedTuple):
    """Where the nodes of one pass go in one layer: its attention, the rotation of each node (complex [U, 1, D / 2])
    with its inverse, and the nodes that are wanted of it (int64 [M], None for all)."""

    plan: Plan
    rotation: Tensor | None
    inverse_rotation: Tensor | None
    wanted: Tensor | None


def normalise(x: Tensor, kind: NormKind) -> tuple[Tensor, Tensor]:
    """n(x) without gain, and 1 / rms(x) with a last dimension of 1."""
    if kind.centred:
        normed, _, scale = torch.native_layer_norm(x, x.shape[-1:], None, None, kind.eps)
        return normed, scale
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(kind.eps).rsqrt_()
    return torch.mul(x, scale), scale


def normalise_backward(gradient: Tensor, normed: Tensor, kind: NormKind) -> Tensor:
    """dx * rms(x), in place of `gradient`."""
    along = torch.linalg.vecdot(gradient, normed).div_(normed.shape[-1]).unsqueeze(-1)
    if kind.centred:
        gradient.sub_(gradient.mean(-1, keepdim=True))
    return gradient.addcmul_(normed, along, value=-1)


_Activation = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
_TANH = "tanh"
_GELU_TANH: _Activation = (partial(F.gelu, approximate=_TANH), partial(aten.gelu_backward, approximate=_TANH))
ACTIVATIONS: dict[str, _Activation] = {
    "silu": (F.silu, aten.silu_backward),
    "swish": (F.silu, aten.silu_backward),
    "relu": (F.relu, lambda gradient, x: aten.threshold_backward(gradient, x, 0)),
    "gelu": (F.gelu, aten.gelu_backward),
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
}
"""Name to function and its derivative (gradient, input)."""


class _Block(torch.autograd.Function):
    """x [U, hidden] to the stream after the layer [M, hidden]."""

    @staticmethod
    def forward(ctx: Any, kind: LayerKind, route: Route, x: Tensor, *packed: Tensor | None) -> Tensor:
        weights = Weights(*packed)  # type: ignore[arg-type]
        normed, scale = normalise(x, kind.attention_norm)
        table = _linear(normed, weights.qkv, weights.qkv_bias).view(len(x), kind.heads.rows, kind.heads.width)
        qk_normed, qk_scale = _turn(table, weights.qk_gain, kind, route)
        mixed, kept = attend(table.view(-1, kind.heads.width), route.plan, kind.window)
        stream = x if route.wanted is None else x.index_select(0, route.wanted)
        middle, attention_out = _add(
            stream, mixed, weights.o, weights.o_bias, weights.attention_out_gain, kind.attention_out_norm
        )
        mlp_normed, mlp_scale = normalise(middle, kind.mlp_norm)
        up = _linear(mlp_normed, weights.up, weights.up_bias)
        gate = up if weights.gate is None else _linear(mlp_normed, weights.gate, weights.gate_bias)
        act = ACTIVATIONS[kind.activation][0](gate)
        inner = act if weights.gate is None else torch.mul(act, up)
        result, mlp_out = _add(middle, inner, weights.down, weights.down_bias, weights.mlp_out_gain, kind.mlp_out_norm)
        ctx.kind, ctx.route = kind, route
        ctx.pieces = len(kept)
        ctx.save_for_backward(
            *packed, normed, scale, qk_normed, qk_scale, mixed, mlp_normed, mlp_scale, up, gate, act, inner,
            *attention_out, *mlp_out, *(tensor for bucket in kept for tensor in bucket)
        )  # fmt: skip
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kind, route = ctx.kind, ctx.route
        saved = ctx.saved_tensors
        weights, saved = Weights(*saved[:13]), saved[13:]
        normed, scale, qk_normed, qk_scale, mixed, mlp_normed, mlp_scale, up, gate, act, inner = saved[:11]
        attention_out, mlp_out, buckets = saved[11:13], saved[13:15], saved[15:]
        kept = [buckets[start : start + 4] for start in range(0, len(buckets), 4)]
        needs = Weights(*ctx.needs_input_grad[3:])
        to: dict[str, Tensor | None] = {}

        to_inner = _add_backward(to, "down", "mlp_out", gradients[0], inner, weights, needs, mlp_out, kind.mlp_out_norm)
        to_mlp = _mlp_backward(to, to_inner, mlp_normed, (up, gate, act), weights, needs, kind.activation)
        to_middle = torch.addcmul(gradients[0], normalise_backward(to_mlp, mlp_normed, kind.mlp_norm), mlp_scale)

        to_mixed = _add_backward(
            to, "o", "attention_out", to_middle, mixed, weights, needs, attention_out, kind.attention_out_norm
        )
        table = normed.new_zeros(len(normed), kind.heads.rows, kind.heads.width)
        attend_backward(to_mixed, route.plan, kind.window, kept, table.view(-1, kind.heads.width))
        to["qk_gain"] = _turn_backward(table, qk_normed, qk_scale, weights.qk_gain, kind, route)
        to_normed = _linear_backward(to, "qkv", table.view(len(normed), -1), normed, weights, needs)
        to_x = normalise_backward(to_normed, normed, kind.attention_norm).mul_(scale)
        if route.wanted is None:
            to_x.add_(to_middle)
        else:
            to_x.index_add_(0, route.wanted, to_middle)
        return (None, None, to_x, *(to.get(name) for name in Weights._fields))


def run_block(x: Tensor, weights: Weights, kind: LayerKind, route: Route) -> Tensor:
    """The stream after a layer, [M, hidden], from the one before it, [U, hidden]; differentiable in x and weights."""
    result: Tensor = _Block.apply(kind, route, x, *weights)  # type: ignore[no-untyped-call]
    return result


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _linear_backward(
    to: dict[str, Tensor | None], name: str, gradient: Tensor, x: Tensor, weights: Weights, needs: Weights
) -> Tensor:
    """The gradient of x; those of weight and bias go into `to`."""
    _weight_backward(to, name, gradient, x, needs)
    return torch.mm(gradient, getattr(weights, name))


def _weight_backward(to: dict[str, Tensor | None], name: str, gradient: Tensor, x: Tensor, needs: Weights) -> None:
    if getattr(needs, name):
        to[name] = torch.mm(gradient.t(), x)
    if getattr(needs, f"{name}_bias"):
        to[f"{name}_bias"] = gradient.sum(0)


def _turn(table: Tensor, gain: Tensor | None, kind: LayerKind, route: Route) -> tuple[Tensor | None, Tensor | None]:
    """Norm and rotate the queries and keys of the table [U, rows, D] in place; what the backward pass needs."""
    turned = table[:, : kind.heads.heads + kind.heads.kv_heads]
    normed = scale = None
    scaled = turned
    if gain is not None:
        normed, scale = normalise(turned, NormKind(eps=kind.qk_eps))
        scaled = torch.mul(normed, gain) if route.rotation is not None else torch.mul(normed, gain, out=turned)
    if route.rotation is not None:
        torch.mul(_pairs(scaled), route.rotation, out=_pairs(turned))
    return normed, scale


def _turn_backward(
    table: Tensor, normed: Tensor | None, scale: Tensor | None, gain: Tensor | None, kind: LayerKind, route: Route
) -> Tensor | None:
    """Undo `_turn` for the gradient of the table, in place; the gradient of the gain."""
    turned = table[:, : kind.heads.heads + kind.heads.kv_heads]
    if route.inverse_rotation is not None:
        _pairs(turned).mul_(route.inverse_rotation)
    if gain is None or normed is None or scale is None:
        return None
    to_gain = (turned * normed).sum(0)
    normalise_backward(turned.mul_(gain), normed, NormKind(eps=kind.qk_eps)).mul_(scale)
    return to_gain


def _pairs(vectors: Tensor) -> Tensor:
    """[..., D] as D / 2 complex numbers."""
    return torch.view_as_complex(vectors.view(*vectors.shape[:-1], -1, 2))


def _add(
    stream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, norm: NormKind | None
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """stream + x W^T + b, what is added normed where the layer does that; and what the backward pass needs."""
    if norm is None or gain is None:
        total = torch.addmm(stream, x, weight.t())
        return total if bias is None else total.add_(bias), (None, None)
    normed, scale = normalise(_linear(x, weight, bias), norm)
    return torch.addcmul(stream, normed, gain), (normed, scale)


def _add_backward(
    to: dict[str, Tensor | None],
    name: str,
    norm_name: str,
    gradient: Tensor,
    x: Tensor,
    weights: Weights,
    needs: Weights,
    saved: tuple[Tensor | None, Tensor | None],
    norm: NormKind | None,
) -> Tensor:
    """The gradient of x."""
    normed, scale = saved
    if norm is not None and normed is not None and scale is not None:
        if getattr(needs, f"{norm_name}_gain"):
            to[f"{norm_name}_gain"] = (gradient * normed).sum(0)
        gained = torch.mul(gradient, getattr(weights, f"{norm_name}_gain"))
        gradient = normalise_backward(gained, normed, norm).mul_(scale)
    return _linear_backward(to, name, gradient, x, weights, needs)


def _mlp_backward(
    to: dict[str, Tensor | None],
    gradient: Tensor,
    normed: Tensor,
    inner: tuple[Tensor, Tensor, Tensor],
    weights: Weights,
    needs: Weights,
    activation: str,
) -> Tensor:
    """The gradient of the normed stream in front of the MLP, from that of its inner values act(gate) * up.

    inner: up, gate, act(gate).
    """
    up, gate, act = inner
    backward = ACTIVATIONS[activation][1]
    if weights.gate is None:
        return _linear_backward(to, "up", backward(gradient, up), normed, weights, needs)
    to_up = torch.mul(gradient, act)
    to_gate = backward(gradient.mul_(up), gate)
    _weight_backward(to, "up", to_up, normed, needs)
    _weight_backward(to, "gate", to_gate, normed, needs)
    return torch.mm(to_gate, weights.gate).addmm_(to_up, weights.up)
