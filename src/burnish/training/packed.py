"""The weights of a decoder in the form that `block.py` computes with, and the way back for their gradients.

Packing is itself differentiable: gains of norms are multiplied into the weights behind them, queries are scaled, q, k
and v become one matrix, and the pairs of a rotary embedding move next to each other (the same reordering of queries and
keys leaves their products alone).  The packed tensors are cut off from the graph while micro-batches add up gradients
in them; one backward pass through the packing then gives those of the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from burnish.policies.decoder import Decoder, DecoderLayer, Norm, Projection
from burnish.training.block import LayerKind, NormKind, Weights
from burnish.training.tree_attention import Heads


class PackedWeights:
    """A decoder's weights as they are now, packed; good for one `accumulate` or `score`.

    layers: see `Weights`.  embedding [V, hidden], positions [P, hidden] or None, final_gain and final_bias [hidden],
    head [V, hidden], head_bias.  With gradients enabled each is a leaf that needs one where its parameters do.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._outputs: list[Tensor] = []
        self._leaves: list[Tensor] = []
        self.layers = [
            Weights._make(None if part is None else self._leaf(part) for part in pack_layer(decoder, layer))
            for layer in decoder.layers
        ]
        self.embedding = self._leaf(decoder.embedding.weight)
        self.positions = None if decoder.positions is None else self._leaf(decoder.positions.weight)
        self.final_gain = self._leaf(decoder.final_norm.gain)
        self.final_bias = None if decoder.final_norm.bias is None else self._leaf(decoder.final_norm.bias)
        self.head = self._leaf(decoder.head.weight)
        self.head_bias = None if decoder.head.bias is None else self._leaf(decoder.head.bias)

    def _leaf(self, output: Tensor) -> Tensor:
        """`output` cut off from the graph; one leaf for a tensor that is used twice (tied embeddings)."""
        for known, leaf in zip(self._outputs, self._leaves, strict=True):
            if known is output:
                return leaf
        leaf = output.detach()
        if torch.is_grad_enabled():
            leaf.requires_grad_(output.requires_grad)
        self._outputs.append(output)
        self._leaves.append(leaf)
        return leaf

    def added_up(self) -> list[Tensor]:
        """The gradients so far, of those packed tensors that took part."""
        return [leaf.grad for leaf in self._leaves if leaf.grad is not None]

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """What was added up, as gradients of `parameters`; None for one that took no part.  Once only."""
        pairs = [
            (output, leaf.grad)
            for output, leaf in zip(self._outputs, self._leaves, strict=True)
            if leaf.grad is not None
        ]
        if not pairs:
            return [None] * len(parameters)
        outputs, gradients = zip(*pairs, strict=True)
        return list(torch.autograd.grad(outputs, parameters, gradients, allow_unused=True))


def heads_of(decoder: Decoder) -> Heads:
    """The shape of a decoder's attention."""
    return Heads(heads=decoder.heads, kv_heads=decoder.kv_heads, width=decoder.head_dim)


def layer_kind(decoder: Decoder, layer: DecoderLayer) -> LayerKind:
    """What a layer computes, besides its weights."""
    return LayerKind(
        heads=heads_of(decoder),
        attention_norm=_kind(layer.attention_norm),
        mlp_norm=_kind(layer.mlp_norm),
        qk_eps=0.0 if layer.q_norm is None else layer.q_norm.eps,
        attention_out_norm=None if layer.attention_out_norm is None else _kind(layer.attention_out_norm),
        mlp_out_norm=None if layer.mlp_out_norm is None else _kind(layer.mlp_out_norm),
        activation=decoder.activation,
        window=layer.window,
    )


def is_expressible(layer: DecoderLayer) -> bool:
    """Whether `LayerKind` covers the layer: norms on both of queries and keys or on none, none of them with a bias."""
    q_norm, k_norm = layer.q_norm, layer.k_norm
    if (q_norm is None) != (k_norm is None):
        return False
    if q_norm is not None and k_norm is not None and (q_norm.centred or k_norm.centred or q_norm.eps != k_norm.eps):
        return False
    return not any(norm is not None and norm.centred for norm in (layer.attention_out_norm, layer.mlp_out_norm))


def _kind(norm: Norm) -> NormKind:
    return NormKind(eps=norm.eps, centred=norm.centred)


def pack_layer(decoder: Decoder, layer: DecoderLayer) -> Weights:
    """The packed weights of a layer, differentiable in its parameters."""
    heads = heads_of(decoder)
    order = _pair_order(heads.width, layer.rope is not None)
    q_scale = layer.scale if layer.q_norm is None else 1.0
    parts = [(layer.q, heads.heads, order, q_scale), (layer.k, heads.kv_heads, order, 1.0)]
    parts.append((layer.v, heads.kv_heads, torch.arange(heads.width), 1.0))
    qkv = torch.cat([_by_head(one.weight, count, turned) * scale for one, count, turned, scale in parts])
    biases = [one.bias for one, *_ in parts]
    qkv_bias = None
    if any(bias is not None for bias in biases):
        qkv_bias = torch.cat(
            [
                _by_head(one.weight.new_zeros(len(one.weight)) if one.bias is None else one.bias, count, turned) * scale
                for one, count, turned, scale in parts
            ]
        )
    qk_gain = None
    if layer.q_norm is not None and layer.k_norm is not None:
        q_gain, k_gain = layer.q_norm.gain[order] * layer.scale, layer.k_norm.gain[order]
        qk_gain = torch.cat((q_gain.expand(heads.heads, -1), k_gain.expand(heads.kv_heads, -1)))
    qkv, qkv_bias = _behind(layer.attention_norm, qkv, qkv_bias)
    up, up_bias = _behind(layer.mlp_norm, layer.up.weight, layer.up.bias)
    gate, gate_bias = (None, None) if layer.gate is None else _projection_behind(layer.mlp_norm, layer.gate)
    return Weights(
        qkv=qkv,
        qkv_bias=qkv_bias,
        qk_gain=qk_gain,
        o=layer.o.weight.contiguous(),
        o_bias=layer.o.bias,
        attention_out_gain=None if layer.attention_out_norm is None else layer.attention_out_norm.gain,
        gate=gate,
        gate_bias=gate_bias,
        up=up,
        up_bias=up_bias,
        down=layer.down.weight.contiguous(),
        down_bias=layer.down.bias,
        mlp_out_gain=None if layer.mlp_out_norm is None else layer.mlp_out_norm.gain,
    )


def _pair_order(width: int, turned: bool) -> Tensor:
    """0, D/2, 1, D/2 + 1, ...: the two of a rotated pair next to each other."""
    order = torch.arange(width)
    return order.view(2, -1).t().reshape(-1) if turned else order


def _by_head(rows: Tensor, heads: int, order: Tensor) -> Tensor:
    """Reorder the D rows of every head."""
    return rows.view(heads, -1, *rows.shape[1:])[:, order].flatten(0, 1)


def _projection_behind(norm: Norm, projection: Projection) -> tuple[Tensor, Tensor | None]:
    return _behind(norm, projection.weight, projection.bias)


def _behind(norm: Norm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """W (g n + c) + b as (W g) n + (W c + b)."""
    if norm.bias is not None:
        moved = weight @ norm.bias
        bias = moved if bias is None else moved + bias
    return weight * norm.gain, bias
