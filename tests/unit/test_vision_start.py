"""A policy with eyes starts so that the pixels count: features of the size of what they stand beside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.seeing_models import SPEC, TEXTS

from burnish.policies.build import VisionSpec, build_tiny
from burnish.policies.tokenizer import train_tokenizer


def fresh(**sizes: int) -> Any:
    tokenizer = train_tokenizer(TEXTS, vocab_size=310, images=True)
    return build_tiny(tokenizer, SPEC, 0, VisionSpec(vision_width=32, **sizes))


def narrowed(model: Any) -> Any:
    """The same model with the usual .02 everywhere, which suits a width of 2500."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.weight.data.normal_(std=0.02, generator=generator)
    return model


@torch.no_grad()
def seen(model: Any) -> tuple[float, float]:
    """Size of the features of an image, and how far those of two images are apart."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 32, 32, generator=generator) * 4 - 2 for _ in range(2)]
    one, other = model.image_features(images)
    return float(one.std()), float((one - other).std())


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_features_have_the_size_of_a_stream(layers: int) -> None:
    size, apart = seen(fresh(vision_layers=layers))
    assert 0.2 < size < 3.0
    assert apart > 0.1


def test_with_the_usual_start_they_would_drown() -> None:
    size, apart = seen(narrowed(fresh()))
    assert size < 0.1
    assert apart < 0.1


def test_width_sets_the_start_of_the_language_model() -> None:
    weight = fresh().language_model.model.layers[0].self_attn.q_proj.weight
    assert weight.std().item() == pytest.approx(SPEC.hidden_size**-0.5, rel=0.15)
