"""Log-probabilities of given tokens, and the entropy they were drawn with, from logits.

With z = logits / temperature: log p(y) = z_y - logsumexp(z), entropy = logsumexp(z) - sum_v p_v z_v.  Rows are worked
through in chunks and only the logits are kept for the backward pass, d log p(y) / d logits_v = (1[v = y] - p_v) /
temperature, so the peak is two [N, V] tensors (logits and their gradient) instead of four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 18
"""Elements worked on at a time: 1 MiB of float32 stays in a core's cache."""


class _TokenLogprobs(torch.autograd.Function):
    """Forward and backward as in the module's text; the entropy carries no gradient."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, target_ids_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        rows = _chunk_rows(logits_NV)
        logprobs, entropies, normalisers = [], [], []
        for start in range(0, len(logits_NV), rows):
            targets = target_ids_N[start : start + rows]
            scaled = _scaled(logits_NV[start : start + rows], temperature)
            normaliser = torch.logsumexp(scaled, dim=-1)
            probabilities = torch.exp(scaled - normaliser.unsqueeze(-1))
            logprobs.append(scaled.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - normaliser)
            # A logit of -inf has probability 0 and adds nothing to the entropy, but 0 * -inf would be NaN.
            finite = scaled.clamp_min(torch.finfo(scaled.dtype).min)
            entropies.append(normaliser - torch.linalg.vecdot(probabilities, finite))
            normalisers.append(normaliser)
        ctx.temperature = temperature
        ctx.save_for_backward(logits_NV, target_ids_N, torch.cat(normalisers))
        entropy_N = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_N)
        return torch.cat(logprobs), entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, target_ids_N, normalisers_N = ctx.saved_tensors
        gradient_N = gradients[0] / ctx.temperature
        gradient_NV = torch.empty_like(logits_NV)
        rows = _chunk_rows(logits_NV)
        for start in range(0, len(logits_NV), rows):
            part = slice(start, start + rows)
            scale = gradient_N[part].unsqueeze(-1)
            probabilities = _scaled(logits_NV[part], ctx.temperature).sub(normalisers_N[part].unsqueeze(-1)).exp_()
            probabilities.mul_(-scale).scatter_add_(-1, target_ids_N[part].unsqueeze(-1), scale)
            gradient_NV[part] = probabilities
        return gradient_NV, None, None


def _chunk_rows(logits_NV: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS // logits_NV.shape[-1])


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature in at least float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1.0 else wide / temperature


def token_logprobs(logits_NV: Tensor, target_ids_N: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (with gradient) and entropies (without) of N tokens, in nats, at least float32.

    logits_NV: any float dtype.  temperature > 0: that of the distribution that was sampled from.

    >>> values, entropy = token_logprobs(torch.zeros(1, 4), torch.tensor([2]), temperature=1.0)
    >>> round(values.item(), 4), round(entropy.item(), 4)
    (-1.3863, 1.3863)
    """
    if not temperature > 0:
        raise ValueError(f"temperature is above 0 where log-probabilities are trained, got {temperature}")
    if not len(target_ids_N):
        empty_N = _scaled(logits_NV, temperature).sum(-1)
        return empty_N, empty_N.detach()
    logprobs_N, entropy_N = _TokenLogprobs.apply(logits_NV, target_ids_N, temperature)  # type: ignore[no-untyped-call]
    return logprobs_N, entropy_N
