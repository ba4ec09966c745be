"""What a decoder-only language model of transformers computes, as a plain description of its parts.

A `Decoder` names the live modules of a model (embedding, projections, norms, rotary frequencies) and the few numbers
that tie them together, so that the sampler and the learner can run the same mathematics with fewer operations than the
model's own code.  It holds modules, never tensors: an optimizer step, or a parameter that is bound to other memory,
is seen at the next read.

    x = scale * E[ids] (+ P[positions])
    for each layer:  x += norm_o(O attention(Q n, K n, V n)), n = norm_a(x)
                     x += norm_d(D (act(G m) * U m)),         m = norm_m(x)
    logits = H norm_f(x)

`describe_decoder` gives None for whatever it does not understand to the last detail, and `agrees` measures the
description against the model itself; only then may it stand in for the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.policies.parts import ACTIVATIONS, Decoder, DecoderLayer, Norm, Projection, Rope

__all__ = [
    "ACTIVATIONS",
    "Decoder",
    "DecoderLayer",
    "Norm",
    "Projection",
    "Rope",
    "agrees",
    "close_logits",
    "describe_decoder",
    "embed",
    "plain_logits",
    "rotate",
]

_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})
"""Frequencies that do not change with the length of the text."""

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_TOLERANCE_HALF = 4e-2
"""Relative to the largest logit: rounding stays well below, a wrong formula differs by order 1."""


# -- the plain forward pass --------------------------------------------------------------------------------------------


def embed(decoder: Decoder, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
    """The stream [B, T, hidden] before the first layer."""
    x = F.embedding(ids_BT, decoder.embedding.weight)
    if decoder.embedding_scale != 1.0:
        x = x * torch.tensor(decoder.embedding_scale, dtype=x.dtype)
    if decoder.positions is not None:
        x = x + F.embedding(positions_BT, decoder.positions.weight)
    return x


def rotate(x_BTHD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2); the tables are [B, T, D/2]."""
    first, second = x_BTHD.chunk(2, dim=-1)
    cos, sin = cos_BTD.unsqueeze(-2).to(x_BTHD.dtype), sin_BTD.unsqueeze(-2).to(x_BTHD.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_logits(decoder: Decoder, ids_BT: Tensor) -> Tensor:
    """Logits [B, T, V] of right-padded ids, differentiable: the formula without any trick, to measure others by.

    `plain_logits(decoder, ids)` equals `model(input_ids=ids).logits` up to rounding.
    """
    rows, width = ids_BT.shape
    positions = torch.arange(width, device=ids_BT.device)
    positions_BT = positions.expand(rows, width)
    tables = {rope: rope.tables(positions_BT) for rope in decoder.ropes}
    x = embed(decoder, ids_BT, positions_BT)
    for layer in decoder.layers:
        distance = positions[:, None] - positions
        seen = distance >= 0 if layer.window is None else (distance >= 0) & (distance < layer.window)
        added = _attention(decoder, layer, layer.attention_norm(x), tables, seen)
        x = x + (added if layer.attention_out_norm is None else layer.attention_out_norm(added))
        added = _mlp(decoder, layer, layer.mlp_norm(x))
        x = x + (added if layer.mlp_out_norm is None else layer.mlp_out_norm(added))
    return decoder.head(decoder.final_norm(x))


def _attention(
    decoder: Decoder, layer: DecoderLayer, x: Tensor, tables: dict[Rope, tuple[Tensor, Tensor]], seen_TT: Tensor
) -> Tensor:
    q, k, v = (part(x).view(*x.shape[:-1], -1, decoder.head_dim) for part in (layer.q, layer.k, layer.v))
    q = q if layer.q_norm is None else layer.q_norm(q)
    k = k if layer.k_norm is None else layer.k_norm(k)
    if layer.rope is not None:
        q, k = rotate(q, *tables[layer.rope]), rotate(k, *tables[layer.rope])
    group = decoder.heads // decoder.kv_heads
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT, scale=layer.scale)
    return layer.o(mixed.transpose(1, 2).flatten(2))


def _mlp(decoder: Decoder, layer: DecoderLayer, x: Tensor) -> Tensor:
    act = ACTIVATIONS[decoder.activation]
    if layer.gate is None:
        return layer.down(act(layer.up(x)))
    return layer.down(act(layer.gate(x)) * layer.up(x))


@torch.no_grad()
def agrees(model: Any, decoder: Decoder) -> bool:
    """Whether model and description compute the same logits on a small random input, in evaluation mode.

    Tolerance, relative to the largest logit: 1e-4 in float32, 4e-2 in half precisions.  The input is longer than the
    sliding windows where these are at most 64 tokens.
    """
    windows = [layer.window for layer in decoder.layers if layer.window is not None and layer.window <= 64]
    width = max([12, *(window + 4 for window in windows)])
    if decoder.positions is not None:
        width = min(width, decoder.positions.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(decoder.embedding.weight.shape[0], (2, width), generator=generator)
    ids_BT = ids_BT.to(decoder.embedding.weight.device)
    training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=False).logits
        found = plain_logits(decoder, ids_BT)
    except (RuntimeError, IndexError):
        # shapes that do not fit: the description is wrong
        return False
    finally:
        model.train(training)
    return close_logits(found, expected)


def close_logits(found: Tensor, expected: Tensor, *, half: float = _TOLERANCE_HALF) -> bool:
    """Equal up to the rounding of their type (`half`: of half precisions, relative to the largest logit); never for
    another shape or for values that are not finite."""
    if found.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(expected.dtype, half) * max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) <= tolerance


# -- reading a model ---------------------------------------------------------------------------------------------------


class _NotUnderstood(Exception):
    """Some part of a model is not what the description can express."""


def describe_decoder(model: Any, *, adapters: bool = False) -> Decoder | None:
    """The description of a model of the Qwen2, Qwen3, Llama, Mistral, Gemma 1, Gemma 3 (text) or GPT-2 family.

    adapters: also read linear layers under one active LoRA adapter, as the sum of both (for reading only: the sum is a
    new tensor).  None for anything else: other classes, quantised layers, hooks, replaced forwards, rotary frequencies
    that change with the length, soft-capped logits.
    """
    base = model.get_base_model() if adapters and hasattr(model, "get_base_model") else model
    read = _READERS.get(type(base).__name__)
    if read is None or not type(base).__module__.startswith(("transformers.models.", "burnish.policies.")):
        return None
    if any(_interferes(module) for module in base.modules()):
        return None
    try:
        return read(base, adapters)
    except _NotUnderstood:
        return None


def _interferes(module: nn.Module) -> bool:
    """Hooks, forwards replaced on the instance, parametrised weights.  The hooks with which transformers records
    outputs change nothing."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    foreign = any(not getattr(hook, "__module__", "").startswith("transformers.utils.") for hook in hooks)
    return foreign or "forward" in module.__dict__ or hasattr(module, "parametrizations")


def _require(condition: bool) -> None:
    if not condition:
        raise _NotUnderstood


def _children(module: nn.Module, required: str, optional: str = "") -> None:
    """The module has exactly these children; one more could compute anything."""
    names = {name for name, _ in module.named_children()}
    _require(set(required.split()) <= names <= {*required.split(), *optional.split()})


def _projection(module: Any, adapters: bool, first: int = 0, end: int | None = None) -> Projection:
    adapter, inner = "", module
    if adapters and hasattr(module, "base_layer"):
        _require(type(module).__module__.startswith("peft.tuners.lora.") and not module.merged)
        adapter, inner = _lora_adapter(module), module.base_layer
    kind = type(inner)
    _require(kind is nn.Linear or (kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"))
    return Projection(module=module, first=first, end=end, inputs_first=kind is not nn.Linear, adapter=adapter)


def _lora_adapter(module: Any) -> str:
    active = list(module.active_adapters)
    _require(len(active) == 1 and active[0] in module.lora_A)
    _require(not getattr(module, "lora_variant", None) and not any(getattr(module, "lora_bias", {}).values()))
    return str(active[0])


def _norm(module: Any) -> Norm:
    if type(module) is nn.LayerNorm:
        _require(module.elementwise_affine)
        return Norm(module=module, eps=module.eps, centred=True)
    name = type(module).__name__
    _require(name in _NORMS)
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    is_gemma = name.startswith("Gemma")
    return Norm(module=module, eps=float(eps), offset=1.0 if is_gemma else 0.0, wide=is_gemma)


_NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "GemmaRMSNorm", "Gemma3RMSNorm"})


def _embedding(module: Any) -> tuple[nn.Embedding, float]:
    _require(isinstance(module, nn.Embedding) and module.max_norm is None)
    if type(module) is nn.Embedding:
        return module, 1.0
    _require(type(module).__name__ in ("GemmaTextScaledWordEmbedding", "Gemma3TextScaledWordEmbedding"))
    return module, float(module.scalar_embed_scale)


def _rope(module: Any, layer_type: str | None, head_dim: int) -> Rope:
    """The frequencies of a layer; Gemma 3 keeps one set for each type of layer."""
    kinds = module.rope_type
    prefix = f"{layer_type}_" if isinstance(kinds, dict) else ""
    kind = kinds[layer_type] if isinstance(kinds, dict) else kinds
    _require(kind in _STATIC_ROPE)
    rope = Rope(module=module, prefix=prefix)
    _require(2 * len(rope.inv_freq) == head_dim)
    return rope


def _llama_like(base: Any, adapters: bool) -> Decoder:
    _children(base, "model lm_head")
    return _llama_body(base.config, base.model, base.lm_head, adapters)


def _llama_body(config: Any, body: Any, head: Any, adapters: bool) -> Decoder:
    _require(getattr(config, "final_logit_softcapping", None) is None)
    _require(getattr(config, "attn_logit_softcapping", None) is None)
    _require(not getattr(config, "use_bidirectional_attention", False))
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    _require(activation in ACTIVATIONS)
    _children(body, "embed_tokens layers norm rotary_emb")
    embedding, scale = _embedding(body.embed_tokens)
    read = partial(_llama_layer, body=body, config=config, adapters=adapters)
    return Decoder(
        embedding=embedding,
        embedding_scale=scale,
        positions=None,
        layers=tuple(read(layer) for layer in body.layers),
        final_norm=_norm(body.norm),
        head=_projection(head, adapters),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=body.layers[0].self_attn.head_dim,
        activation=activation,
    )


def _llama_layer(layer: Any, *, body: Any, config: Any, adapters: bool) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    four = hasattr(layer, "pre_feedforward_layernorm")
    extra = "pre_feedforward_layernorm post_feedforward_layernorm" if four else ""
    _children(layer, f"self_attn mlp input_layernorm post_attention_layernorm {extra}")
    _children(attention, "q_proj k_proj v_proj o_proj", "q_norm k_norm")
    _children(mlp, "gate_proj up_proj down_proj act_fn")
    _require(attention.is_causal)
    after = _norm(layer.post_attention_layernorm)
    # Mistral keeps its window in the configuration alone
    has_own = hasattr(attention, "sliding_window") or type(layer).__name__ != "MistralDecoderLayer"
    window = getattr(attention, "sliding_window", None) if has_own else config.sliding_window
    return DecoderLayer(
        attention_norm=_norm(layer.input_layernorm),
        q=_projection(attention.q_proj, adapters),
        k=_projection(attention.k_proj, adapters),
        v=_projection(attention.v_proj, adapters),
        o=_projection(attention.o_proj, adapters),
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        attention_out_norm=after if four else None,
        mlp_norm=_norm(layer.pre_feedforward_layernorm) if four else after,
        gate=_projection(mlp.gate_proj, adapters),
        up=_projection(mlp.up_proj, adapters),
        down=_projection(mlp.down_proj, adapters),
        mlp_out_norm=_norm(layer.post_feedforward_layernorm) if four else None,
        rope=_rope(body.rotary_emb, getattr(attention, "layer_type", None), attention.head_dim),
        window=window,
        scale=float(attention.scaling),
    )


def _gpt2(base: Any, adapters: bool) -> Decoder:
    config, body = base.config, base.transformer
    _require(config.activation_function in ACTIVATIONS and not config.add_cross_attention)
    _children(base, "transformer lm_head")
    _children(body, "wte wpe drop h ln_f")
    embedding, scale = _embedding(body.wte)
    return Decoder(
        embedding=embedding,
        embedding_scale=scale,
        positions=_embedding(body.wpe)[0],
        layers=tuple(_gpt2_layer(layer, config.hidden_size, adapters) for layer in body.h),
        final_norm=_norm(body.ln_f),
        head=_projection(base.lm_head, adapters),
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        activation=config.activation_function,
    )


def _gpt2_layer(layer: Any, width: int, adapters: bool) -> DecoderLayer:
    attention, mlp = layer.attn, layer.mlp
    _children(layer, "ln_1 attn ln_2 mlp")
    _children(attention, "c_attn c_proj attn_dropout resid_dropout")
    _children(mlp, "c_fc c_proj act dropout")
    q, k, v = (_projection(attention.c_attn, adapters, part * width, (part + 1) * width) for part in range(3))
    return DecoderLayer(
        attention_norm=_norm(layer.ln_1),
        q=q,
        k=k,
        v=v,
        o=_projection(attention.c_proj, adapters),
        q_norm=None,
        k_norm=None,
        attention_out_norm=None,
        mlp_norm=_norm(layer.ln_2),
        gate=None,
        up=_projection(mlp.c_fc, adapters),
        down=_projection(mlp.c_proj, adapters),
        mlp_out_norm=None,
        rope=None,
        window=None,
        scale=float(attention.scaling),
    )


def _llava(base: Any, adapters: bool) -> Decoder:
    """The language part; images are rows of its stream, in the places of their placeholders."""
    body = base.model.language_model
    _children(base, "model lm_head")
    _children(base.model, "vision_tower multi_modal_projector language_model")
    _require(type(body).__module__.startswith("transformers.models.") and type(body).__name__ in _LLAMA_BODIES)
    return _llama_body(base.config.text_config, body, base.lm_head, adapters)


def _vision_policy(base: Any, adapters: bool) -> Decoder:
    inner = base.language_model
    return _READERS[type(inner).__name__](inner, adapters)


_LLAMA_BODIES = frozenset({"Qwen2Model", "Qwen3Model", "LlamaModel", "MistralModel"})

_READERS: dict[str, Callable[[Any, bool], Decoder]] = {
    "LlavaForConditionalGeneration": _llava,
    "VisionPolicy": _vision_policy,
    "Qwen2ForCausalLM": _llama_like,
    "Qwen3ForCausalLM": _llama_like,
    "LlamaForCausalLM": _llama_like,
    "MistralForCausalLM": _llama_like,
    "GemmaForCausalLM": _llama_like,
    "Gemma3ForCausalLM": _llama_like,
    "GPT2LMHeadModel": _gpt2,
}
