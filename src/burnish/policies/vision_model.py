"""A small vision-language model: patch encoder, projector, language model (mid-fusion), trained from zero.

    f  = P( blocks( conv_stem(pixels) + row[i] + column[j] ) )         one vector for each token of the image's grid
    x  = E[ids], with f in the places of the image's placeholders      then the language model as it is

The encoder takes any grid, so an image keeps its proportions within a token budget (`burnish.policies.resize`).  The
language model is one of transformers', unchanged, which the fast paths of sampler and learner understand.  Importing
this module makes the automatic classes of transformers load such a model by its `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

MODEL_TYPE = "burnish_vision"
MAX_GRID = 64
"""Rows and columns of tokens that have a position of their own."""

_STRIDES = {4: 2, 8: 3, 16: 4}
"""Patch side to the number of convolutions of stride 2."""


class VisionPolicyConfig(PretrainedConfig):  # type: ignore[misc]
    """`VisionPolicyConfig(text_config=qwen3.to_dict(), image_token_id=641, patch_px=8, max_image_tokens=64)`

    patch_px: model pixels along the side of a token (4, 8 or 16).  max_image_tokens: budget of one image.
    vision_width: channels of the encoder.  vision_layers: attention blocks over the grid.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it

    def __init__(
        self,
        text_config: Any = None,
        image_token_id: int = 0,
        patch_px: int = 8,
        max_image_tokens: int = 64,
        vision_width: int = 64,
        vision_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        elif text_config is None:
            text_config = AutoConfig.for_model("qwen3")
        # The usual .02 is 1 / sqrt(width) for a width of 2500.  At 64 to 256 it leaves attention and the gradient that
        # reaches the pixels 5 to 100 times too small, and the policy learns the wording long before it looks.
        text_config.initializer_range = text_config.hidden_size**-0.5
        self.text_config = text_config
        self.image_token_id = image_token_id
        self.patch_px = patch_px
        self.max_image_tokens = max_image_tokens
        self.vision_width = vision_width
        self.vision_layers = vision_layers
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            kwargs.setdefault(name, getattr(text_config, name, None))
        super().__init__(**kwargs)

    @property
    def max_position_embeddings(self) -> int | None:
        """The longest sequence of the language model."""
        return getattr(self.text_config, "max_position_embeddings", None)


class _Block(nn.Module):
    """One pre-norm attention block over the tokens of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x_BTC)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTC = x_BTC + self.out(mixed)
        added: Tensor = self.down(F.gelu(self.up(self.mlp_norm(x_BTC))))
        return x_BTC + added


class PatchEncoder(nn.Module):
    """Pixels [B, 3, rows * patch, columns * patch] to features [B, rows * columns, hidden]."""

    def __init__(self, config: VisionPolicyConfig) -> None:
        super().__init__()
        if config.patch_px not in _STRIDES:
            raise ValueError(f"patch_px is one of {', '.join(map(str, _STRIDES))}, got {config.patch_px}")
        width, halvings = config.vision_width, _STRIDES[config.patch_px]
        channels = [3, *(max(16, width >> (halvings - 1 - step)) for step in range(halvings - 1)), width]
        self.stem = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        self.row = nn.Embedding(MAX_GRID, width)
        self.column = nn.Embedding(MAX_GRID, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width)
        hidden = config.text_config.hidden_size
        self.widen, self.project = nn.Linear(width, 2 * hidden), nn.Linear(2 * hidden, hidden)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for convolution in self.stem:
            x = F.gelu(convolution(x))
        rows, columns = x.shape[-2:]
        down = self.row(torch.arange(rows, device=x.device).clamp(max=MAX_GRID - 1))
        across = self.column(torch.arange(columns, device=x.device).clamp(max=MAX_GRID - 1))
        x = x.flatten(2).transpose(1, 2) + (down[:, None] + across).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.project(F.gelu(self.widen(self.norm(x))))
        return features


class VisionPolicy(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """See the module's text.  `VisionPolicy(config)(input_ids=ids, pixel_values=[image]).logits`"""

    config_class = VisionPolicyConfig
    base_model_prefix = "language_model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _tied_weights_keys = {  # noqa: RUF012 - as transformers declares it
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }

    def __init__(self, config: VisionPolicyConfig) -> None:
        super().__init__(config)
        self.vision = PatchEncoder(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """The language model's own way for its modules; the encoder's keep the size of what goes through them.

        Variance gain / fan-in, gain 2 for convolutions (He et al., arXiv:1502.01852) and 1 for the others; positions as
        strong as half of the content, or where a thing is would have to be learnt after what it is.
        """
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
            nn.init.normal_(module.weight, std=(gain / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()  # type: ignore[no-any-return]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()  # type: ignore[no-any-return]

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def image_features(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features [tokens, hidden] of each image [3, H, W] (sides in whole patches); equal sizes go together."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(tuple(image.shape), []).append(index)
        found: dict[int, Tensor] = {}
        for places in by_size.values():
            features = self.vision(torch.stack([images[place] for place in places]))
            found |= dict(zip(places, features, strict=True))
        return [found[index] for index in range(len(images))]

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Sequence[Tensor] | Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """pixel_values: the images in the order of their placeholders; the count of these must fit."""
        # a step of generation is given the images again
        begun = past_key_values is not None and past_key_values.get_seq_length() > 0
        if pixel_values is not None and input_ids is not None and not begun:
            inputs_embeds = self.get_input_embeddings()(input_ids)
            features = torch.cat(self.image_features(list(pixel_values))).to(inputs_embeds.dtype)
            where = input_ids == self.config.image_token_id
            if int(where.sum()) != len(features):
                raise ValueError(f"{int(where.sum())} image placeholders for {len(features)} image tokens")
            inputs_embeds = inputs_embeds.masked_scatter(where.unsqueeze(-1), features)
            input_ids = None
        return self.language_model(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )


AutoConfig.register(MODEL_TYPE, VisionPolicyConfig, exist_ok=True)
AutoModelForCausalLM.register(VisionPolicyConfig, VisionPolicy, exist_ok=True)
AutoModelForImageTextToText.register(VisionPolicyConfig, VisionPolicy, exist_ok=True)
