"""The features of the images of one `accumulate`: each image is encoded once, whatever the cut into micro-batches.

As with packed weights the features are cut off from the graph while micro-batches add up gradients in them; one
backward pass through the encoder then gives those of its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from burnish.policies.sight import Sight


class PackedImages:
    """Good for one state of the weights, like `PackedWeights`."""

    def __init__(self, model: nn.Module, sight: Sight) -> None:
        self._model, self._sight = model, sight
        self._outputs: list[Tensor] = []
        self._leaves: list[Tensor] = []
        self._found: dict[str, tuple[Tensor, int, int]] = {}

    def embed(self, ids_U: Tensor, embedded: Tensor) -> Tensor:
        """The stream [U, hidden] with images in their places."""
        return self._sight.embed(ids_U, embedded, self._features)

    def added_up(self) -> list[Tensor]:
        """The gradients so far, of those features that took part."""
        return [leaf.grad for leaf in self._leaves if leaf.grad is not None]

    def add_gradients(self, parameters: Sequence[nn.Parameter], gradients: list[Tensor | None]) -> list[Tensor | None]:
        """`gradients` of `parameters` with what came through the images.  Once only."""
        pairs = [
            (output, leaf.grad)
            for output, leaf in zip(self._outputs, self._leaves, strict=True)
            if leaf.grad is not None and output.requires_grad
        ]
        if not pairs:
            return gradients
        outputs, ahead = zip(*pairs, strict=True)
        own = torch.autograd.grad(outputs, parameters, ahead, allow_unused=True)
        return [
            one if other is None else other if one is None else one + other
            for one, other in zip(gradients, own, strict=True)
        ]

    def _features(self, images: Sequence[str]) -> list[Tensor]:
        missing = [sha256 for sha256 in images if sha256 not in self._found]
        if missing:
            parts = self._sight.encoder.features(self._model, missing)
            output = torch.cat(parts)
            leaf = output.detach()
            if torch.is_grad_enabled():
                leaf.requires_grad_(output.requires_grad)
            self._outputs.append(output)
            self._leaves.append(leaf)
            end = 0
            for sha256, part in zip(missing, parts, strict=True):
                start, end = end, end + len(part)
                self._found[sha256] = (leaf, start, end)
        # cut out anew for every micro-batch, whose backward pass frees what it went through
        return [leaf[start:end] for leaf, start, end in (self._found[sha256] for sha256 in images)]
