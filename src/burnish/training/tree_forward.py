"""Logits of a model from a tree of prefixes, with far fewer operations than the model's own forward pass.

It stands in for a model only where it was measured to compute the same: for a decoder that `policies.decoder` can
describe, in float32 or float64 on a CPU, after logits and gradients of a small input agreed with the model's own.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.algorithms.packing import MicroBatch, TokenTree
from burnish.algorithms.prefix_tree import tree_batches
from burnish.core.learning import TrainingSample
from burnish.policies.decoder import Decoder, Rope, describe_decoder
from burnish.training.block import ACTIVATIONS, LayerKind, Route, run_block
from burnish.training.norms import rms_norm
from burnish.training.packed import PackedWeights, heads_of, is_expressible, layer_kind
from burnish.training.packed_images import PackedImages
from burnish.training.tree_attention import Plan, plan_attention

_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-5}
"""Logits relative to the largest, gradients relative to their norm; a wrong formula differs by order 1.  In float64 too
the models of transformers compute norms and angles in float32."""


class TreeForward:
    """`forward = TreeForward.of(model)`, None where the model's own forward has to do; then for each batch
    `logits_MV, rows_N = forward.logits(forward.pack(), batch)` with a batch of `tree_batches`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._heads = heads_of(decoder)
        self._kinds: list[LayerKind] = [layer_kind(decoder, layer) for layer in decoder.layers]

    @classmethod
    def of(cls, model: nn.Module) -> TreeForward | None:
        """None for models that it does not understand, whatever their reason."""
        parameter = next(model.parameters())
        if parameter.device.type != "cpu" or any(p.dtype not in _TOLERANCE for p in model.parameters()):
            return None
        decoder = describe_decoder(model)
        if decoder is None or decoder.activation not in ACTIVATIONS or not all(map(is_expressible, decoder.layers)):
            return None
        forward = cls(decoder)
        return forward if _agrees(model, forward) else None

    def pack(self) -> PackedWeights:
        """The weights as they are now."""
        return PackedWeights(self._decoder)

    def logits(
        self, weights: PackedWeights, batch: MicroBatch, images: PackedImages | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the nodes that predict a trained token [M, V], and which of them each of N trained tokens needs
        (int64 [N], None where it is the n-th)."""
        if batch.tree is None:
            raise ValueError("a tree of prefixes is needed; pack the samples with `tree_batches`")
        positions_N = batch.positions_N.numpy()
        wanted, rows_N = np.unique(positions_N, return_inverse=True)
        in_order = len(wanted) == len(positions_N) and bool((np.diff(rows_N) == 1).all())
        x = self._embed(weights, batch.token_ids_BT.view(-1), batch.tree.columns_U, images)
        routes = self._routes(batch.tree, wanted)
        for kind, layer, route in zip(self._kinds, weights.layers, routes, strict=True):
            x = run_block(x, layer, kind, route)
        norm = self._decoder.final_norm
        if norm.centred:
            x = F.layer_norm(x, x.shape[-1:], weights.final_gain, weights.final_bias, norm.eps)
        else:
            x = rms_norm(x, weights.final_gain, norm.eps)
        return F.linear(x, weights.head, weights.head_bias), None if in_order else torch.from_numpy(rows_N)

    def _embed(
        self,
        weights: PackedWeights,
        ids_U: Tensor,
        columns_U: np.ndarray[Any, Any],
        images: PackedImages | None,
    ) -> Tensor:
        # a padding id is an input like any other, but its row gets no gradient: as in the model itself
        shown_U = ids_U if images is None else ids_U.clamp(min=0)
        x = F.embedding(shown_U, weights.embedding, self._decoder.embedding.padding_idx)
        if self._decoder.embedding_scale != 1.0:
            x = x * self._decoder.embedding_scale
        if images is not None:
            x = images.embed(ids_U, x)
        if weights.positions is not None:
            x = x + F.embedding(torch.from_numpy(columns_U), weights.positions)
        return x

    def _routes(self, tree: TokenTree, wanted: np.ndarray[Any, Any]) -> list[Route]:
        """One for each layer; of the last one only the wanted nodes are asked for."""
        everywhere = plan_attention(tree, self._heads) if len(self._kinds) > 1 else None
        at_the_end = plan_attention(tree, self._heads, wanted)
        rotations = {rope: _rotation(rope, tree, self._decoder) for rope in self._decoder.ropes}
        routes = []
        for place, layer in enumerate(self._decoder.layers):
            last = place == len(self._kinds) - 1
            rotation = None if layer.rope is None else rotations[layer.rope]
            plan: Plan = at_the_end if last or everywhere is None else everywhere
            routes.append(
                Route(
                    plan=plan,
                    rotation=rotation,
                    inverse_rotation=None if rotation is None else rotation.conj().resolve_conj(),
                    wanted=torch.from_numpy(wanted) if last else None,
                )
            )
        return routes


def _rotation(rope: Rope, tree: TokenTree, decoder: Decoder) -> Tensor:
    """Complex [U, 1, D / 2]: what the pairs of each node's queries and keys are multiplied by."""
    columns = torch.arange(tree.nodes_RT.shape[1])
    cosines, sines = rope.tables(columns)
    dtype = decoder.embedding.weight.dtype
    return (
        torch.complex(cosines.to(dtype), sines.to(dtype)).index_select(0, torch.from_numpy(tree.columns_U)).unsqueeze(1)
    )


def _agrees(model: nn.Module, forward: TreeForward) -> bool:
    """Whether logits and gradients of two sequences that begin alike are those of the model, in evaluation mode."""
    decoder = forward._decoder
    width = max(
        [12, *(layer.window + 4 for layer in decoder.layers if layer.window is not None and layer.window <= 64)]
    )
    if decoder.positions is not None:
        width = min(width, decoder.positions.weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(decoder.embedding.weight.shape[0], (2, width), generator=generator)
    ids_BT[1, :3] = ids_BT[0, :3]
    training = model.training
    model.eval()
    try:
        return _same(model, forward, ids_BT, generator)
    finally:
        model.train(training)


def _same(model: nn.Module, forward: TreeForward, ids_BT: Tensor, generator: torch.Generator) -> bool:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batch = _probe(ids_BT)
    with torch.set_grad_enabled(bool(parameters)):
        weights = forward.pack()
        found, rows_N = forward.logits(weights, batch)
        found = found if rows_N is None else found.index_select(0, rows_N)
        logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
    expected = logits[list(batch.sample_indices_B), 1::2].flatten(0, 1)
    tolerance = _TOLERANCE[expected.dtype]
    if found.shape != expected.shape:
        return False
    if not bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp_min(1.0)):
        return False
    if not parameters:
        return True
    direction = torch.randn(expected.shape, generator=generator, dtype=expected.dtype)
    of_model = torch.autograd.grad((expected * direction).sum(), parameters, allow_unused=True)
    (found * direction).sum().backward()  # type: ignore[no-untyped-call]
    whole = torch.stack([gradient.norm() for gradient in of_model if gradient is not None]).norm()
    for one, other in zip(weights.gradients(parameters), of_model, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
        # Some gradients are zero but for rounding (a bias on keys shifts every score alike), hence the share of all.
        elif not bool((one - other).norm() <= tolerance * (other.norm() + 0.01 * whole)):
            return False
    return True


def _probe(ids_BT: Tensor) -> MicroBatch:
    """Both rows as samples of which every second token, from the third on, is trained."""
    samples = []
    for ids in ids_BT.tolist():
        mask = [0, 0, *([1, 0] * len(ids))][: len(ids) + 1]
        zeros = array("f", bytes(4 * len(mask)))
        samples.append(
            TrainingSample(
                trajectory_id="probe",
                group_id="probe",
                token_ids=array("i", [*ids, 0]),
                loss_mask=array("b", mask),
                behaviour_logprobs=zeros,
                versions=array("i", bytes(4 * len(mask))),
                advantages=zeros,
            )
        )
    (batch,) = tree_batches(samples, max_tokens=ids_BT.numel())
    return batch
