"""Tiny models from a configuration alone: no weights to download, trained from zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from burnish.core.errors import ConfigError
from burnish.policies.marks import IMAGE_TOKEN
from burnish.policies.vision_model import VisionPolicyConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySpec:
    """The shape of a tiny model.  `TinySpec(hidden_size=128, layers=3)` with 512 tokens has 0.48M parameters.

    family: one of `FAMILIES`.  heads must divide hidden_size, kv_heads must divide heads (GPT-2 has as many as heads).
    max_positions: the longest sequence.  sliding_window: tokens that a local layer sees (Mistral: all layers, Gemma:
    every other layer; None for global attention everywhere).
    """

    family: str = "qwen3"
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 1
    intermediate_size: int = 256
    max_positions: int = 2048
    tie_embeddings: bool = True
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            near = get_close_matches(self.family, FAMILIES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FAMILIES)}"
            raise ConfigError(f"unknown model family {self.family!r}; {hint}")
        sizes = (self.hidden_size, self.layers, self.heads, self.kv_heads, self.intermediate_size, self.max_positions)
        if min(sizes) < 1:
            raise ConfigError(f"every size of a model must be at least 1, got {self}")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ConfigError(
                f"hidden_size {self.hidden_size} must be an even multiple of heads {self.heads}; "
                f"try {self.heads * 2 * max(1, round(self.hidden_size / self.heads / 2))}"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.sliding_window is not None and (self.sliding_window < 1 or self.family not in _WINDOWED):
            raise ConfigError(f"a sliding window of {self.sliding_window} is not possible for family {self.family!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """The eyes of a tiny model.  `VisionSpec()` makes 16 tokens of an image of 32 x 32 pixels.

    patch_px: model pixels along the side of a token (4, 8 or 16).  max_image_tokens: budget of one image; a larger one
    is scaled down.  vision_width: channels.  vision_layers: attention blocks over the image before the language model.
    """

    patch_px: int = 8
    max_image_tokens: int = 64
    vision_width: int = 64
    vision_layers: int = 1

    def __post_init__(self) -> None:
        if self.patch_px not in (4, 8, 16):
            raise ConfigError(f"patch_px is 4, 8 or 16, got {self.patch_px}")
        if min(self.max_image_tokens, self.vision_width) < 1 or self.vision_layers < 0:
            raise ConfigError(f"every size of an encoder must be at least 1 (vision_layers 0), got {self}")


def build_tiny(tokenizer: Any, spec: TinySpec, seed: int, vision: VisionSpec | None = None) -> Any:
    """A freshly initialised model for `tokenizer`, float32 on the CPU, in evaluation mode.

    The same seed gives the same weights; the global random state is left as it was.  The vocabulary is the
    tokenizer's, and its begin, end and padding ids become the model's.  vision: for a model that sees; the tokenizer
    then has an image token.
    """
    config = FAMILIES[spec.family](spec, _token_ids(tokenizer))
    if vision is not None:
        config = _with_vision(config, tokenizer, vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def _with_vision(text_config: Any, tokenizer: Any, vision: VisionSpec) -> Any:
    image_id = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if image_id is None:
        raise ConfigError(
            f"a model that sees needs the token {IMAGE_TOKEN} in its tokenizer; train it with images=True"
        )
    return VisionPolicyConfig(text_config=text_config, image_token_id=image_id, **asdict(vision))


def _token_ids(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _common(spec: TinySpec, ids: Mapping[str, Any]) -> dict[str, Any]:
    """What the Llama-like families share."""
    return {
        **ids,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.hidden_size // spec.heads,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_positions,
        "tie_word_embeddings": spec.tie_embeddings,
    }


def _gpt2(spec: TinySpec, ids: Mapping[str, Any]) -> Any:
    return GPT2Config(
        **ids,
        n_embd=spec.hidden_size,
        n_layer=spec.layers,
        n_head=spec.heads,
        n_inner=spec.intermediate_size,
        n_positions=spec.max_positions,
        tie_word_embeddings=spec.tie_embeddings,
        # dropout makes the learner's log-probabilities differ from the sampler's
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _gemma(spec: TinySpec, ids: Mapping[str, Any]) -> Any:
    """Gemma 3's text model; local layers come first and every second layer is global."""
    local = "full_attention" if spec.sliding_window is None else "sliding_attention"
    return Gemma3TextConfig(
        **_common(spec, ids),
        layer_types=[local if index % 2 == 0 else "full_attention" for index in range(spec.layers)],
        sliding_window=spec.sliding_window or spec.max_positions,
        query_pre_attn_scalar=spec.hidden_size // spec.heads,
    )


FAMILIES: Mapping[str, Callable[[TinySpec, Mapping[str, Any]], Any]] = {
    "qwen3": lambda spec, ids: Qwen3Config(**_common(spec, ids)),
    "llama": lambda spec, ids: LlamaConfig(**_common(spec, ids)),
    "mistral": lambda spec, ids: MistralConfig(**_common(spec, ids), sliding_window=spec.sliding_window),
    "gemma": _gemma,
    "gpt2": _gpt2,
}
_WINDOWED = ("mistral", "gemma")
