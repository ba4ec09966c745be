"""LoRA adapters by peft: W + (alpha / rank) * B A with small trainable A and B.  Hu et al., arXiv 2106.09685."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burnish.core.errors import ConfigError
from burnish.training.gradients import gradient_size
from burnish.training.model_state import is_adapted, model_state

_ADAPTER = "default"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """`LoraSpec(rank=16, alpha=32, targets="all-linear")`

    rank >= 1; alpha: the update is scaled by alpha / rank; targets: "all-linear" (every linear layer but the output
    head) or endings of module names such as ("q_proj", "v_proj"); dropout in [0, 1), active only in a learner with
    `dropout=True`.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is at least 1, got {self.rank}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout lies in [0, 1), got {self.dropout}")


def add_lora(model: nn.Module, spec: LoraSpec, *, seed: int) -> nn.Module:
    """Wrap `model` (in place; it is frozen) and return the wrapped one, which at first computes the same.

    seed: of the random A matrices; the global generator is left as it was.  Raises ConfigError where the targets bind
    no module.
    """
    import peft

    targets = spec.targets if isinstance(spec.targets, str) else list(spec.targets)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,
        target_modules=targets,
        lora_dropout=spec.dropout,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    layers = ((name.rpartition(".")[2], type(module).__name__) for name, module in model.named_modules())
    linear = sorted({name for name, kind in layers if kind in ("Linear", "Conv1D")})
    advice = (
        f"LoRA targets {targets!r} bind no module of {type(model).__name__}; its linear layers: {', '.join(linear)}"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft still reads an attribute that transformers is about to rename; nothing of ours depends on it.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        try:
            wrapped: nn.Module = peft.get_peft_model(model, config)
        except ValueError as error:
            raise ConfigError(f"{advice} ({error})") from error
    if not gradient_size(wrapped):
        raise ConfigError(advice)
    return wrapped


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain model that computes what the wrapped one does, by the plain model's names.

    The wrapped model is left alone: merging in place and taking it back would change its last bits.  A model without
    adapters gives its own weights.
    """
    if not is_adapted(model):
        return model_state(model)
    from peft.tuners.lora import LoraLayer

    merged: dict[str, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, tensor in [*model.named_parameters(), *_persistent_buffers(model)]:
        if ".lora_" in name:
            continue
        layer_name, _, kind = name.partition(".base_layer.")
        if kind == "weight" and _ADAPTER in layers[layer_name].lora_A:
            tensor = tensor + layers[layer_name].get_delta_weight(_ADAPTER).to(tensor.dtype)
        plain = f"{layer_name}.{kind}" if kind else name
        merged[plain.removeprefix(_PREFIX)] = tensor.detach()
    return merged


def _persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    names = set(model.state_dict())
    return [(name, buffer) for name, buffer in model.named_buffers() if name in names]
