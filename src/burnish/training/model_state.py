"""A model's weights by name, each once: what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from burnish.core.errors import CheckpointError
from burnish.training.gradients import trainable_parameters


def is_adapted(model: nn.Module) -> bool:
    """Whether the model is wrapped by peft."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors to save: with LoRA the adapters alone (the base never changes), otherwise every parameter and every
    persistent buffer, tied ones once.  They share memory with the model."""
    if is_adapted(model):
        return {name: parameter.detach() for name, parameter in trainable_parameters(model).items()}
    names = set(model.state_dict())
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return tensors | {name: buffer for name, buffer in model.named_buffers() if name in names}


@torch.no_grad()
def load_model_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `model_state` back in place (memory shared with other processes stays shared).

    Raises CheckpointError, with nothing changed, where names, shapes or dtypes differ.
    """
    own = model_state(model)
    if set(own) != set(tensors):
        odd = sorted(set(own) ^ set(tensors))
        raise CheckpointError(f"the checkpoint is of another model: {len(odd)} names differ, first {odd[0]!r}")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            found, expected = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(own[name].shape)} {own[name].dtype}"
            raise CheckpointError(f"the checkpoint is of another model: {name} is {found}, expected {expected}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
