"""The model of a stored run from its saved config, without weights: the caller fills them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from burnish.policies.load import auto_class, load_config, load_images, pick_device, pick_dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyPolicy:
    """A model with meaningless weights, its tokenizer, and where they are: `EmptyPolicy(..., device=cpu, ...)`."""

    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype


def reopen(folder: Path, *, device: str, dtype: str) -> EmptyPolicy:
    """Build the architecture saved in `folder`; raises ConfigError where it holds none, or the device is not there."""
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    config = load_config(str(folder), offline=True)
    model = auto_class(config).from_config(config, dtype=precision)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = model.to(target).eval()
    load_images(str(folder), model, tokenizer, local=True)
    return EmptyPolicy(model=model, tokenizer=tokenizer, device=target, dtype=precision)
