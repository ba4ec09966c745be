"""Weights that several processes see at once: one flat tensor in shared memory for each dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWeights:
    """Flat shared-memory tensors by dtype name; parameters of an attached model are views into them.

    The order is that of `model.named_parameters()`, so both sides must hold the same architecture (tied weights count
    once).  Example: a model of 2 float32 parameters with 6 and 4 elements has `flats["torch.float32"]` of 10 elements.
    """

    flats: dict[str, torch.Tensor]

    @staticmethod
    def create(model: nn.Module) -> SharedWeights:
        """Move the model's parameters into shared memory; the model keeps working on them."""
        sizes: dict[torch.dtype, int] = {}
        for parameter in model.parameters():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
        flats = {str(dtype): torch.empty(size, dtype=dtype) for dtype, size in sizes.items()}
        for flat in flats.values():
            flat.share_memory_()  # type: ignore[no-untyped-call]
        weights = SharedWeights(flats=flats)
        weights._bind(model, copy=True)
        return weights

    def attach(self, model: nn.Module) -> None:
        """Make another process's model of the same architecture use these weights."""
        self._bind(model, copy=False)

    def _bind(self, model: nn.Module, *, copy: bool) -> None:
        offsets = dict.fromkeys(self.flats, 0)
        for parameter in model.parameters():
            name = str(parameter.dtype)
            start = offsets[name]
            view = self.flats[name][start : start + parameter.numel()].view(parameter.shape)
            if copy:
                view.copy_(parameter.data)
            parameter.data = view
            offsets[name] = start + parameter.numel()
        for name, end in offsets.items():
            if end != self.flats[name].numel():
                raise ValueError(f"model has {end} {name} elements, the shared weights {self.flats[name].numel()}")
