"""Tiny models of every family with weights large enough for attention to matter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from burnish.policies.build import TinySpec, build_tiny
from burnish.policies.lean import LeanForward

VOCABULARY = 61
WINDOW = 8
TINY = TinySpec(hidden_size=32, layers=4, heads=4, kv_heads=2, intermediate_size=48, max_positions=256)
SPECS = {
    "qwen3": TINY,
    "llama": replace(TINY, family="llama", tie_embeddings=False),
    "mistral": replace(TINY, family="mistral", sliding_window=WINDOW),
    "gemma": replace(TINY, family="gemma", kv_heads=1, sliding_window=WINDOW),
    "gpt2": replace(TINY, family="gpt2"),
}


@dataclass
class StubTokenizer:
    """All that a model needs to know of a tokenizer."""

    bos_token_id: int | None = None
    eos_token_id: int | None = 2
    pad_token_id: int | None = 0
    vocabulary: int = VOCABULARY

    def __len__(self) -> int:
        return self.vocabulary


def make_model(spec: TinySpec) -> Any:
    """A model with weights far from zero; a fresh one is close to uniform."""
    return enlarge(build_tiny(StubTokenizer(), spec, seed=1))


def enlarge(model: Any) -> Any:
    """Matrices and embeddings drawn anew, vectors (norm gains, biases) moved away from 0 and 1; the same every time."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15, generator=generator)
            else:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model


def decoded(forward: LeanForward) -> torch.Tensor:
    """Logits of a prefill and one decode step in a store of its own."""
    store = forward.new_store()
    store.ensure(4, 20)
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (4, 6)).astype(np.int32)
    with torch.inference_mode():
        forward.prefill(store, range(4), [0] * 4, list(ids))
        return forward.decode(store, torch.arange(3, 7), torch.full((4,), 6), 16).clone()
