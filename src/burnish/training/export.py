"""A trained policy as a Hugging Face folder that scores the same wherever it is loaded."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from burnish.core.errors import ConfigError, StoreError
from burnish.policies.processor import save_image_parts
from burnish.training.lora import merged_state
from burnish.training.model_state import is_adapted


def export_folder(model: nn.Module, tokenizer: Any, out: Path, *, stop_ids: Sequence[int] = ()) -> Path:
    """Write weights (safetensors, adapters merged), config, tokenizer with template, processor and generation config.

    stop_ids: tokens that end a turn, put into the generation config with the tokenizer's pad token.  Returns `out`,
    which must not exist or be empty (ConfigError).  It appears whole or not at all; StoreError where it cannot be
    written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name another one")
    plain: Any = _plain_model(model)
    _set_generation(plain, tokenizer, stop_ids)
    temporary = out.with_name(f".tmp_{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_image_parts(model, temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise StoreError(f"could not export to {out}: {error}; free disk space or name another folder") from error
    return out


def _plain_model(model: nn.Module) -> nn.Module:
    """A model of the plain class with the merged weights; shares memory with `model` where nothing was merged."""
    base: Any = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]
    state = merged_state(model)
    with torch.device("meta"):
        plain: Any = type(base)(base.config)
    plain.load_state_dict(state, strict=False, assign=True)
    plain.tie_weights()
    left = [name for name, parameter in plain.named_parameters() if parameter.is_meta]
    if left:
        raise StoreError(f"cannot export {type(base).__name__}: no weights for {', '.join(left[:3])}")
    plain.generation_config = base.generation_config
    return plain  # type: ignore[no-any-return]


def _set_generation(plain: Any, tokenizer: Any, stop_ids: Sequence[int]) -> None:
    generation = copy.deepcopy(plain.generation_config)
    if stop_ids:
        generation.eos_token_id = list(stop_ids)
    if getattr(tokenizer, "pad_token_id", None) is not None:
        generation.pad_token_id = tokenizer.pad_token_id
    plain.generation_config = generation
