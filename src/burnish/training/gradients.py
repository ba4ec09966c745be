"""Gradients as one flat float32 tensor, so that shards computed by several workers can be summed in shard order.

The layout is that of `named_parameters()` over trainable parameters (tied ones once), each flattened in C order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name to parameter, of those that require a gradient, in the model's own order; with LoRA the adapters alone."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient_size(model: nn.Module) -> int:
    """Number of trainable values: the length of a flat gradient."""
    return sum(parameter.numel() for parameter in trainable_parameters(model).values())


def zero_gradients(model: nn.Module) -> None:
    """Forget the accumulated gradients."""
    for parameter in trainable_parameters(model).values():
        parameter.grad = None


@torch.no_grad()
def flatten_gradients(model: nn.Module, out: Tensor | None = None) -> Tensor:
    """Copy every gradient into `out` (float32, [gradient_size], made where not given); a missing one counts as 0.

    Raises ValueError where `out` has another length.
    """
    flat = torch.empty(gradient_size(model)) if out is None else out
    for parameter, part in _parts(model, flat):
        if parameter.grad is None:
            part.zero_()
        else:
            part.copy_(parameter.grad)
    return flat


@torch.no_grad()
def load_gradients(model: nn.Module, flat: Tensor) -> None:
    """Set every gradient from `flat`, in each parameter's own dtype and on its own device."""
    for parameter, part in _parts(model, flat):
        parameter.grad = part.to(device=parameter.device, dtype=parameter.dtype, copy=True)


def sum_in_order(shards: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """shards[0] + shards[1] + ... from left to right, so that equal shards give equal bits whoever computed them.

    `out`, made where not given, may be shards[0] but no later shard.  Raises ValueError for no shards.
    """
    if not shards:
        raise ValueError("there are no shards to sum")
    total = shards[0].clone() if out is None else out.copy_(shards[0])
    for shard in shards[1:]:
        total.add_(shard)
    return total


def _parts(model: nn.Module, flat: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """Each trainable parameter with its view of `flat`."""
    size = gradient_size(model)
    if flat.shape != (size,):
        raise ValueError(f"a flat gradient of this model has {size} values, got shape {tuple(flat.shape)}")
    parts, start = [], 0
    for parameter in trainable_parameters(model).values():
        stop = start + parameter.numel()
        parts.append((parameter, flat[start:stop].view(parameter.shape)))
        start = stop
    return parts


class GradientBuffer:
    """A flat float32 home for one shard's gradient, for example in memory shared between processes.

    `buffer = GradientBuffer(model, storage=shared[worker])`; after the backward pass `buffer.take(model)` moves the
    gradients in and clears them from the model; `sum_in_order([a.flat, b.flat])` is the batch's gradient.
    """

    def __init__(self, model: nn.Module, storage: Tensor | None = None) -> None:
        self.flat = torch.zeros(gradient_size(model)) if storage is None else storage

    def take(self, model: nn.Module) -> Tensor:
        """Copy the model's gradients in and clear them there; returns the flat tensor."""
        flatten_gradients(model, self.flat)
        zero_gradients(model)
        return self.flat

    def give(self, model: nn.Module) -> None:
        """Set the model's gradients from the buffer."""
        load_gradients(model, self.flat)
