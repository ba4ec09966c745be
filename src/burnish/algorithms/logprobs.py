"""Log-probabilities of given tokens, the entropy they were drawn with, and the size of their score, from logits.

With z = logits / temperature: log p(y) = z_y - logsumexp(z), entropy = logsumexp(z) - sum_v p_v z_v.  The score is the
gradient of log p(y) with respect to z, whose squared norm is 1 - 2 p(y) + sum_v p_v^2, in [0, 2]: how far a token can
push the logits, without a backward pass (verl computes the same for its variance proxy).  Rows are worked
through in chunks and only the logits are kept for the backward pass, d log p(y) / d logits_v = (1[v = y] - p_v) /
temperature, so the peak is two [N, V] tensors (logits and their gradient) instead of four.  Where top-k or top-p cut
the vocabulary, both sums run over the token's kept set alone: outside it z is -inf.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from burnish.algorithms.kept import KeptTokens
from burnish.core.errors import InvariantViolation

CHUNK_ELEMENTS = 1 << 18
"""Elements worked on at a time: 1 MiB of float32 stays in a core's cache."""


class TokenScores(NamedTuple):
    """N tokens under one policy, at least float32.

    logprobs_N: nats, with gradient.  entropy_N: nats, without.  score_norm_N: 1 - 2 p + sum_v p_v^2, without gradient;
    None where it was not asked for.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    score_norm_N: Tensor | None


class _TokenLogprobs(torch.autograd.Function):
    """Forward and backward as in the module's text; entropies and sum_v p_v^2 carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_MV: Tensor,
        target_ids_N: Tensor,
        rows_N: Tensor | None,
        temperature: float,
        forbidden_MV: Tensor | None,
        with_squares: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        normalisers, entropies, wide = [], [], torch.promote_types(logits_MV.dtype, torch.float32)
        squares: list[Tensor] = []
        for part in _chunks(logits_MV):
            scaled = _scaled(logits_MV[part], temperature, None if forbidden_MV is None else forbidden_MV[part])
            largest = scaled.amax(-1)
            below = scaled - largest.unsqueeze(-1)
            weights = torch.exp(below)
            total = weights.sum(-1)
            if with_squares:
                squares.append(torch.linalg.vecdot(weights, weights) / total.square())
            # A logit of -inf has probability 0 and adds nothing to the entropy, but 0 * -inf would be NaN.
            mean = torch.linalg.vecdot(weights, below.clamp_min_(torch.finfo(below.dtype).min)) / total
            log_total = total.log_()
            entropies.append(log_total - mean)
            normalisers.append(log_total + largest)
        normalisers_M, entropy_N = torch.cat(normalisers), torch.cat(entropies)
        squares_N = torch.cat(squares) if squares else None
        if rows_N is None:
            chosen_N, normalisers_N = logits_MV.gather(-1, target_ids_N.unsqueeze(-1)).squeeze(-1), normalisers_M
        else:
            chosen_N, normalisers_N = logits_MV[rows_N, target_ids_N], normalisers_M[rows_N]
            entropy_N = entropy_N[rows_N]
            squares_N = None if squares_N is None else squares_N[rows_N]
        ctx.temperature = temperature
        ctx.save_for_backward(logits_MV, target_ids_N, rows_N, normalisers_M, forbidden_MV)
        ctx.mark_non_differentiable(*(one for one in (entropy_N, squares_N) if one is not None))
        return chosen_N.to(wide) / temperature - normalisers_N, entropy_N, squares_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_MV, target_ids_N, rows_N, normalisers_M, forbidden_MV = ctx.saved_tensors
        gradient_N = gradients[0] / ctx.temperature
        gradient_M = gradient_N
        if rows_N is not None:
            gradient_M = torch.zeros_like(normalisers_M).index_add_(0, rows_N, gradient_N)
        gradient_MV = torch.empty_like(logits_MV)
        for part in _chunks(logits_MV):
            scaled = _scaled(logits_MV[part], ctx.temperature, None if forbidden_MV is None else forbidden_MV[part])
            probabilities = scaled.sub(normalisers_M[part].unsqueeze(-1)).exp_()
            probabilities.mul_(gradient_M[part].neg().unsqueeze(-1))
            if rows_N is None:
                probabilities.scatter_add_(-1, target_ids_N[part].unsqueeze(-1), gradient_N[part].unsqueeze(-1))
            gradient_MV[part] = probabilities
        if rows_N is not None:
            places_N = rows_N * logits_MV.shape[-1] + target_ids_N
            gradient_MV.view(-1).index_add_(0, places_N, gradient_N.to(gradient_MV.dtype))
        return gradient_MV, None, None, None, None, None


def _chunks(logits_MV: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits_MV.shape[-1])
    for start in range(0, len(logits_MV), rows):
        yield slice(start, start + rows)


def _scaled(logits: Tensor, temperature: float, forbidden: Tensor | None = None) -> Tensor:
    """logits / temperature in at least float32, -inf where `forbidden`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scaled = wide if temperature == 1.0 else wide / temperature
    return scaled if forbidden is None else scaled.masked_fill(forbidden, -torch.inf)


def token_logprobs(
    logits_MV: Tensor,
    target_ids_N: Tensor,
    *,
    temperature: float,
    kept: KeptTokens | None = None,
    rows_N: Tensor | None = None,
    score_norm: bool = False,
) -> TokenScores:
    """Log-probabilities and entropies of N tokens, and on request the squared norms of their scores.

    logits_MV: any float dtype.  rows_N: int64, the row of logits that each token was drawn from; None where token n
    goes with row n.  temperature > 0: that of the distribution that was sampled from.  kept: the sets that the tokens
    were drawn from, None for the whole vocabulary; all results are those of the distribution renormalised over the
    set.  Raises InvariantViolation for a token outside its kept set: it cannot have been drawn.

    >>> scores = token_logprobs(torch.zeros(1, 4), torch.tensor([2]), temperature=1.0, score_norm=True)
    >>> [round(value.item(), 4) for value in scores]
    [-1.3863, 1.3863, 0.75]
    """
    if not temperature > 0:
        raise ValueError(f"temperature is above 0 where log-probabilities are trained, got {temperature}")
    if not len(target_ids_N):
        empty_N = _scaled(logits_MV[:0], temperature).sum(-1)
        return TokenScores(empty_N, empty_N.detach(), empty_N.detach() if score_norm else None)
    forbidden_NV = None
    if kept is not None:
        # Tokens of one row may have been drawn from different sets: by different versions, say.
        logits_MV = logits_MV if rows_N is None else logits_MV.index_select(0, rows_N)
        rows_N = None
        forbidden_NV = _forbidden(kept, target_ids_N, logits_MV.shape[-1])
    logprobs_N, entropy_N, squares_N = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        logits_MV, target_ids_N, rows_N, temperature, forbidden_NV, score_norm
    )
    score_norm_N = None
    if squares_N is not None:
        # Rounding alone can take it below 0, where the policy is sure of the token.
        score_norm_N = (squares_N - 2.0 * logprobs_N.detach().exp() + 1.0).clamp_min(0.0)
    return TokenScores(logprobs_N, entropy_N, score_norm_N)


def _forbidden(kept: KeptTokens, target_ids_N: Tensor, vocabulary: int) -> Tensor:
    """What could not be drawn, bool [N, V]; raises InvariantViolation where that is the token that was drawn."""
    forbidden_NV = ~kept.allowed(vocabulary)
    outside_N = forbidden_NV.gather(-1, target_ids_N.unsqueeze(-1)).squeeze(-1)
    if bool(outside_N.any()):
        place = int(outside_N.nonzero()[0])
        raise InvariantViolation(
            "kept_set",
            f"trained token {place} (id {int(target_ids_N[place])}) is outside the set of {int(kept.counts_N[place])} "
            f"ids that it was drawn from; so are {int(outside_N.sum())} of {len(target_ids_N)} in all.  The sampler "
            "stored the kept set of another token, or the streams are shifted",
        )
    return forbidden_NV
