"""Two ways to put training samples through a model: over a tree of prefixes, or by the model's own forward pass.

The learner asks for one with `passes_for` and drives both alike: `begin`, then for each micro-batch of `cut` the
log-probabilities and a backward pass through them, then `finish`, or `undo` to have the gradients as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from burnish.algorithms.logprobs import TokenScores, token_logprobs
from burnish.algorithms.packing import MicroBatch, NumberImages, micro_batches
from burnish.algorithms.prefix_tree import tree_batches
from burnish.core.learning import TrainingSample
from burnish.policies.sight import number_images, share_sight, sight_of
from burnish.training.forward import SelectedLogits
from burnish.training.gradients import trainable_parameters
from burnish.training.norms import FusedNorms
from burnish.training.packed import PackedWeights
from burnish.training.packed_images import PackedImages
from burnish.training.tree_forward import TreeForward


class Passes(Protocol):
    """One model, one way."""

    def cut(self, samples: Sequence[TrainingSample], max_tokens: int) -> list[MicroBatch]:
        """The micro-batches, of at most `max_tokens` tokens that go through the model (or of one sample)."""
        ...

    def begin(self) -> None:
        """Take note of the weights and the gradients as they are."""
        ...

    def token_logprobs(self, batch: MicroBatch, temperature: float, *, score_norm: bool = False) -> TokenScores:
        """The trained tokens of the batch, as `algorithms.logprobs.token_logprobs` gives them."""
        ...

    def gradients_are_finite(self) -> bool:
        """Whether what was added up since `begin` is."""
        ...

    def finish(self) -> bool:
        """Hand what was added up to the parameters' `.grad`; False, with nothing changed, where it is not finite."""
        ...

    def undo(self) -> None:
        """Have the gradients as they were at `begin`."""
        ...


def passes_for(model: nn.Module, reference: nn.Module | None, *, pad_id: int, dropout: bool) -> list[Passes]:
    """The passes of the model and, where there is one, of the reference: of one kind, since they share micro-batches.

    Over a tree where that computes the same as the models do and nothing is drawn at random; else the models' own.
    """
    models = [model] if reference is None else [model, reference]
    share_sight(model, models[-1])
    trees: list[Passes] = []
    for one in models if not dropout else ():
        forward = TreeForward.of(one)
        if forward is None:
            break
        trees.append(TreePasses(one, forward))
    if len(trees) == len(models):
        return trees
    return [ModelPasses(one, pad_id=pad_id) for one in models]


class TreePasses:
    """Over a tree of prefixes: gradients add up in packed weights and reach the parameters at the end."""

    def __init__(self, model: nn.Module, forward: TreeForward) -> None:
        self._model = model
        self._forward = forward
        self._weights: PackedWeights | None = None
        self._sight = sight_of(model)
        self._images: PackedImages | None = None

    def cut(self, samples: Sequence[TrainingSample], max_tokens: int) -> list[MicroBatch]:
        return tree_batches(samples, max_tokens=max_tokens, number=_numbering(self._model))

    def begin(self) -> None:
        self._weights = self._forward.pack()
        self._images = None if self._sight is None else PackedImages(self._model, self._sight)

    def token_logprobs(self, batch: MicroBatch, temperature: float, *, score_norm: bool = False) -> TokenScores:
        logits_MV, rows_N = self._forward.logits(self._packed(), batch, self._images)
        return token_logprobs(
            logits_MV,
            batch.target_ids_N,
            temperature=temperature,
            kept=batch.kept,
            rows_N=rows_N,
            score_norm=score_norm,
        )

    def gradients_are_finite(self) -> bool:
        added_up = self._packed().added_up()
        return are_finite(added_up if self._images is None else added_up + self._images.added_up())

    def finish(self) -> bool:
        parameters = list(trainable_parameters(self._model).values())
        gradients = self._packed().gradients(parameters)
        if self._images is not None:
            gradients = self._images.add_gradients(parameters, gradients)
        self._weights = self._images = None
        # Hooks on parameters have run only now.
        if not are_finite([gradient for gradient in gradients if gradient is not None]):
            return False
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is not None:
                parameter.grad.add_(gradient)
            elif gradient is not None:
                parameter.grad = gradient.contiguous()
        return True

    def undo(self) -> None:
        self._weights = self._images = None

    def _packed(self) -> PackedWeights:
        if self._weights is None:
            raise RuntimeError("begin() comes before anything else")
        return self._weights


class ModelPasses:
    """By the model's own forward pass, over right-padded rectangles."""

    def __init__(self, model: nn.Module, *, pad_id: int) -> None:
        self._model = model
        self._pad_id = pad_id
        self._device = next(model.parameters()).device
        self._logits = SelectedLogits(model)
        self._norms = FusedNorms(model)
        self._parameters = list(trainable_parameters(model).values())
        self._held: list[Tensor | None] | None = None

    def cut(self, samples: Sequence[TrainingSample], max_tokens: int) -> list[MicroBatch]:
        return micro_batches(samples, max_tokens=max_tokens, pad_id=self._pad_id, number=_numbering(self._model))

    def begin(self) -> None:
        held = [parameter.grad for parameter in self._parameters]
        # A copy costs memory, so only where some are not zero.
        empty = not any(gradient is not None and bool(gradient.any()) for gradient in held)
        self._held = None
        if not empty:
            self._held = [gradient if gradient is None else gradient.clone() for gradient in held]

    def token_logprobs(self, batch: MicroBatch, temperature: float, *, score_norm: bool = False) -> TokenScores:
        batch = batch.to(self._device)
        with self._norms.active():
            logits_NV = self._logits(batch.token_ids_BT, batch.positions_N)
        return token_logprobs(
            logits_NV, batch.target_ids_N, temperature=temperature, kept=batch.kept, score_norm=score_norm
        )

    def gradients_are_finite(self) -> bool:
        return are_finite([parameter.grad for parameter in self._parameters if parameter.grad is not None])

    def finish(self) -> bool:
        self._held = None
        return True

    def undo(self) -> None:
        for place, parameter in enumerate(self._parameters):
            parameter.grad = None if self._held is None else self._held[place]


def _numbering(model: nn.Module) -> NumberImages | None:
    """How the model tells images apart; None where it reads text alone."""
    if sight_of(model) is None:
        return None
    return lambda ids, sample: number_images(model, ids, sample.images, where=sample.trajectory_id)


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every value of every tensor is."""
    if not tensors:
        return True
    if bool(torch.isfinite(torch.stack(torch._foreach_norm(list(tensors)))).all()):
        return True
    # The square of a large finite value overflows too.
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
