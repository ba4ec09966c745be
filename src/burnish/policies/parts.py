"""The parts of a decoder-only language model, as references to its live modules; see `burnish.policies.decoder`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """y = x W^T + b of a live linear layer, or of some of the outputs of a fused one.

    first, end: the outputs that count ([0, None) are all).  inputs_first: W is stored [in, out], as GPT-2 does.
    adapter: name of the LoRA adapter to add where `module` is a peft layer, "" for none.
    """

    module: nn.Module
    first: int = 0
    end: int | None = None
    inputs_first: bool = False
    adapter: str = ""

    @property
    def weight(self) -> Tensor:
        """W [out, in], the adapter's W + (alpha / rank) B A included."""
        module: Any = self.module
        weight: Tensor = module.base_layer.weight if self.adapter else module.weight
        if self.adapter and not module.disable_adapters:
            weight = weight + module.get_delta_weight(self.adapter).to(weight.dtype)
        if self.inputs_first:
            weight = weight.t()
        return weight[self.first : self.end] if self.first or self.end is not None else weight

    @property
    def bias(self) -> Tensor | None:
        """b [out] or None."""
        module: Any = self.module
        bias: Tensor | None = module.base_layer.bias if self.adapter else module.bias
        return bias if bias is None else bias[self.first : self.end]

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """y = gain * x / sqrt(mean(x^2) + eps), gain = weight + offset; with `centred` a layer norm with its bias.

    Example: Gemma's norms have offset 1, Llama's 0.  wide: the gain is applied in float32 before rounding (Gemma).
    """

    module: nn.Module
    eps: float
    offset: float = 0.0
    centred: bool = False
    wide: bool = False

    @property
    def gain(self) -> Tensor:
        """The factor [width]."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight + self.offset if self.offset else weight

    @property
    def bias(self) -> Tensor | None:
        """The summand [width] of a layer norm, else None."""
        return self.module.bias if self.centred else None  # type: ignore[return-value]

    def __call__(self, x: Tensor) -> Tensor:
        if self.centred:
            return F.layer_norm(x, x.shape[-1:], self.gain, self.bias, self.eps)
        wide = x.float() if x.dtype != torch.float64 else x
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.wide:
            weight: Tensor = self.module.weight  # type: ignore[assignment]
            return (normed * (weight.to(wide.dtype) + self.offset)).to(x.dtype)
        return self.gain * normed.to(x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary positions: the angle of pair i (dimensions i and i + D/2) at position p is p * inv_freq[i].

    prefix: where a module holds several sets of frequencies ("sliding_attention_"), else "".
    """

    module: nn.Module
    prefix: str = ""

    @property
    def inv_freq(self) -> Tensor:
        """Float32 [D / 2], radians per position."""
        frequencies: Tensor = getattr(self.module, f"{self.prefix}inv_freq")
        return frequencies

    @property
    def scaling(self) -> float:
        """Factor on cosines and sines (YaRN)."""
        return float(getattr(self.module, f"{self.prefix}attention_scaling"))

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [*positions, D / 2]."""
        angles = positions[..., None].float() * self.inv_freq.float()
        return angles.cos() * self.scaling, angles.sin() * self.scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One block.  rope: None for learned positions.  gate: None for a plain two-layer MLP, whose first layer is `up`.
    window: how many tokens a token sees, itself included; None for all before it.  scale: of q.k before the softmax.
    attention_out_norm, mlp_out_norm: on what a half adds to the stream, where the family has them (Gemma 3).
    """

    attention_norm: Norm
    q: Projection
    k: Projection
    v: Projection
    o: Projection
    q_norm: Norm | None
    k_norm: Norm | None
    attention_out_norm: Norm | None
    mlp_norm: Norm
    gate: Projection | None
    up: Projection
    down: Projection
    mlp_out_norm: Norm | None
    rope: Rope | None
    window: int | None
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A whole model; see the module's text for the formula.

    Example: a Qwen3 of hidden size 128 has heads 4, kv_heads 1, head_dim 32, embedding_scale 1.0, positions None.
    """

    embedding: nn.Embedding
    embedding_scale: float
    positions: nn.Embedding | None
    layers: tuple[DecoderLayer, ...]
    final_norm: Norm
    head: Projection
    heads: int
    kv_heads: int
    head_dim: int
    activation: str

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.embedding.weight.shape[1]

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.head.weight.shape[0]

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct rotary frequencies, in order of first use."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers if layer.rope is not None))
