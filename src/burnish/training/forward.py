"""Logits at chosen positions only.

In agent data most tokens are prompts and tool results, and with a small model the output head is a large part of the
work.  A hook in front of the output head hands it the hidden states of the chosen positions alone; everything the
model does around its head (logit scaling, soft-capping, adapters on the head) stays in force, since the model's own
forward still runs it.  Whether a model's forward bears that is measured once on a tiny input; where the selected logits
differ from the full ones, or the head is not where it should be, the full logits are computed and indexed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from burnish.policies.sight import sight_of

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
_TOLERANCE_HALF = 3e-2
"""Selected and full logits may differ by rounding, relative to the largest logit; a wrong path differs by order 1."""


class SelectedLogits:
    """Callable: token ids [B, T] and flat positions [N] to logits [N, V].  Not for use by two threads at once.

    `SelectedLogits(model)(token_ids_BT, positions_N)`; positions are row * T + column.  `frugal` says whether the head
    runs on the chosen positions alone.  No attention mask is passed: padding must stand on the right.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.frugal = _bears_selection(model)

    def __call__(self, token_ids_BT: Tensor, positions_N: Tensor) -> Tensor:
        if self.frugal:
            return _selected(self.model, token_ids_BT, positions_N)
        return _full(self.model, token_ids_BT, positions_N)


def _logits(model: nn.Module, token_ids_BT: Tensor) -> Tensor:
    sight = sight_of(model)
    if sight is None:
        logits: Tensor = model(input_ids=token_ids_BT, use_cache=False).logits
        return logits
    given = sight.inputs(model, token_ids_BT)
    if sight.encoder.whole:
        given["attention_mask"] = torch.ones_like(token_ids_BT)
    return sight.hide(model(**given, use_cache=False).logits)


def _full(model: nn.Module, token_ids_BT: Tensor, positions_N: Tensor) -> Tensor:
    return _logits(model, token_ids_BT).flatten(0, 1).index_select(0, positions_N)


def _selected(model: nn.Module, token_ids_BT: Tensor, positions_N: Tensor) -> Tensor:
    def select(_head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0]
        if hidden.shape[:-1] != token_ids_BT.shape:
            return None
        return (hidden.flatten(0, 1).index_select(0, positions_N).unsqueeze(0), *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)  # type: ignore[operator]
    try:
        return _logits(model, token_ids_BT).squeeze(0)
    finally:
        handle.remove()


@torch.no_grad()
def _bears_selection(model: nn.Module) -> bool:
    """Compare both ways on three positions of a 2 x 4 input, in evaluation mode so that no random numbers are drawn."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return False
    parameter = next(model.parameters())
    token_ids_BT = torch.tensor([[0, 1, 0, 1], [1, 1, 0, 0]], device=parameter.device)
    positions_N = torch.tensor([1, 4, 7], device=parameter.device)
    training = model.training
    model.eval()
    try:
        full, selected = _full(model, token_ids_BT, positions_N), _selected(model, token_ids_BT, positions_N)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
        # Whatever the model's forward cannot do with a selection, it can do with the full rectangle.
        return False
    finally:
        model.train(training)
    if selected.shape != full.shape:
        return False
    tolerance = _TOLERANCE.get(parameter.dtype, _TOLERANCE_HALF) * max(1.0, float(full.abs().max()))
    return float((full - selected).abs().max()) <= tolerance
