"""Drawing tokens: temperature, top-k, top-p and the inverse of the cumulative distribution.

One uniform number per row and step decides: token = the first i with cumulative probability above u.  The uniforms of a
request come from its own PCG64 stream, so what is drawn does not depend on what else is in the batch.  Top-p is nucleus
sampling (Holtzman et al. 2020, arXiv 1904.09751), applied after temperature and top-k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from burnish.core.errors import RunStopped
from burnish.core.sampling import SamplingParams
from burnish.policies.kernels import Kernels

_LARGEST_UNIFORM = 1.0 - 2.0**-23
"""Keeps u * total strictly below total in float32, so that the last token with zero probability is never drawn."""

_SMALLEST_TOTAL = 1e-20
"""Weights that add up to less, or to more than its inverse, come from logits that must be shifted first: in float32
they would lose digits or overflow.  Others need no shift, which costs more than the weights themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRules:
    """How each of R rows is drawn; tensors [R, 1] on the model's device, or [1, 1] where all rows are alike.

    `DrawRules.of([SamplingParams(), SamplingParams(temperature=0.0)], "cpu").has_greedy` is True.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    greedy: torch.Tensor
    plain: torch.Tensor
    has_greedy: bool
    has_sampled: bool
    has_filter: bool
    has_temperature: bool
    has_plain: bool

    @property
    def all_plain(self) -> bool:
        """Whether every row is drawn from its whole distribution at temperature 1."""
        return not (self.has_greedy or self.has_filter or self.has_temperature)

    @staticmethod
    def of(params_R: Sequence[SamplingParams], device: torch.device | str) -> DrawRules:
        """Raises ValueError where a parameter is out of range."""
        for params in set(params_R):
            check_params(params)
        return DrawRules(
            temperature=torch.tensor([[p.temperature or 1.0] for p in params_R], dtype=torch.float32, device=device),
            top_p=torch.tensor([[p.top_p] for p in params_R], dtype=torch.float32, device=device),
            top_k=torch.tensor([[p.top_k or 2**31 - 1] for p in params_R], device=device),
            greedy=torch.tensor([[p.temperature == 0.0] for p in params_R], device=device),
            plain=torch.tensor([[p.temperature == 1.0 and not filters(p)] for p in params_R], device=device),
            has_greedy=any(p.temperature == 0.0 for p in params_R),
            has_sampled=any(p.temperature > 0.0 for p in params_R),
            has_filter=any(filters(p) for p in params_R),
            has_temperature=any(p.temperature not in (0.0, 1.0) for p in params_R),
            has_plain=any(p.temperature == 1.0 and not filters(p) for p in params_R),
        )


def check_params(params: SamplingParams) -> None:
    """Raises ValueError where a parameter is out of range."""
    if not (params.temperature >= 0.0 and 0.0 < params.top_p <= 1.0 and params.top_k >= 0):
        raise ValueError(f"temperature >= 0, top_p in (0, 1] and top_k >= 0 are needed, got {params}")


def filters(params: SamplingParams) -> bool:
    """Whether a draw by these parameters may leave tokens out."""
    return params.temperature > 0.0 and (params.top_p < 1.0 or params.top_k > 0)


def draw_uniforms(stream: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """The next numbers of a request's stream, in [0, 1) and so far below 1 that the last token without weight is never
    drawn."""
    return np.minimum(stream.random(count), _LARGEST_UNIFORM)


class Draw(NamedTuple):
    """Token ids [R], their natural log-probabilities [R] under the distribution that was sampled from, and the kept
    sets, bool [R, V] (None where no row leaves anything out)."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    kept: torch.Tensor | None


def draw(
    logits_RV: torch.Tensor,
    uniforms_R: torch.Tensor,
    rules: DrawRules,
    *,
    room: Sequence[torch.Tensor] | None = None,
    kernels: Kernels | None = None,
) -> Draw:
    """One token for each row.  uniforms_R: as `draw_uniforms` gives them, used in float32.  room: two float32 tensors
    [R, V] to work in; fresh pages can cost more than the work on them.  kernels: of this process, for float32 on a CPU;
    they draw the rows at temperature 1 over the whole vocabulary.

    The log-probability of a greedy row is 0, that of a sure event.  Raises RunStopped where the logits are not finite,
    since nothing drawn from them could be trained on.
    """
    if not rules.has_sampled:
        best_R, argmax_R = logits_RV.max(dim=-1)
        _refuse_non_finite(best_R)
        return Draw(argmax_R, torch.zeros(len(argmax_R), device=logits_RV.device), None)
    plain = None
    if kernels is not None and rules.has_plain and logits_RV.dtype == torch.float32:
        reach = (_SMALLEST_TOTAL, 1 / _SMALLEST_TOTAL)
        plain = kernels.draw(logits_RV.contiguous(), uniforms_R.float().contiguous(), reach)
        if plain is not None and rules.all_plain:
            return Draw(*plain, None)
    if room is None:
        room = torch.empty((2, *logits_RV.shape), device=logits_RV.device).unbind()
    scaled_RV, kept_RV = logits_RV.float(), None
    if rules.has_temperature or rules.has_filter:
        top_R1 = logits_RV.amax(dim=-1, keepdim=True)
        scaled_RV = (logits_RV - torch.where(rules.plain, 0.0, top_R1)).float() / rules.temperature
    if rules.has_filter:
        scaled_RV = _filtered(scaled_RV, rules.top_k, rules.top_p)
        kept_RV = scaled_RV > -torch.inf
    total_R1 = _add_up(scaled_RV, room)
    if not _within_reach(total_R1):
        reached_R1 = (total_R1 >= _SMALLEST_TOTAL) & (total_R1 <= 1 / _SMALLEST_TOTAL)
        # a shift for each row by itself: what is drawn must not depend on what else is in the batch
        total_R1 = _add_up(scaled_RV - torch.where(reached_R1, 0.0, scaled_RV.amax(dim=-1, keepdim=True)), room)
        _refuse_non_finite(total_R1)
    weight_RV, running_RV = room
    token_R1 = torch.searchsorted(running_RV, uniforms_R.float()[:, None] * total_R1, right=True)
    logprob_R1 = weight_RV.gather(1, token_R1).div_(total_R1).log_()
    if rules.has_greedy:
        token_R1 = torch.where(rules.greedy, logits_RV.argmax(dim=-1, keepdim=True), token_R1)
        logprob_R1 = torch.where(rules.greedy, 0.0, logprob_R1)
    if plain is not None:
        # to the bit what these rows get where all are plain
        token_R1 = torch.where(rules.plain, plain[0][:, None], token_R1)
        logprob_R1 = torch.where(rules.plain, plain[1][:, None], logprob_R1)
    return Draw(token_R1[:, 0], logprob_R1[:, 0], kept_RV)


def _add_up(scaled_RV: torch.Tensor, room: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights exp(scaled) and their running sums into `room`; the totals [R, 1]."""
    torch.exp(scaled_RV, out=room[0])
    # torch adds up float32 in float64 on a CPU; elsewhere a running sum is off by 1e-6, which moves a token's edges
    return torch.cumsum(room[0], dim=-1, out=room[1])[:, -1:]


def _within_reach(total_R1: torch.Tensor) -> bool:
    """Whether no total lost digits or overflowed, NaN included; a list of a few hundred numbers is read faster than
    torch looks for their extremes."""
    return all(_SMALLEST_TOTAL <= total <= 1 / _SMALLEST_TOTAL for total in total_R1[:, 0].tolist())


def _filtered(scaled_RV: torch.Tensor, top_k_R1: torch.Tensor, top_p_R1: torch.Tensor) -> torch.Tensor:
    """Minus infinity outside the top-k and nucleus sets; the order of the vocabulary stays, since the inverse of the
    cumulative distribution depends on it."""
    ordered_RV, order_RV = scaled_RV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(scaled_RV.shape[1], device=scaled_RV.device)
    ordered_RV = ordered_RV.masked_fill(rank_V >= top_k_R1, -torch.inf)
    probability_RV = ordered_RV.softmax(dim=-1)
    before_RV = probability_RV.cumsum(dim=-1) - probability_RV
    dropped_RV = (rank_V >= top_k_R1) | ((before_RV >= top_p_R1) & (top_p_R1 < 1.0))
    dropped_RV[:, 0] = False
    return scaled_RV.masked_fill(torch.zeros_like(dropped_RV).scatter_(1, order_RV, dropped_RV), -torch.inf)


def _refuse_non_finite(values: torch.Tensor) -> None:
    # a sum is finite only if all of its terms are
    if not math.isfinite(float(values.sum())):
        raise RunStopped(
            "non_finite_logits",
            "the policy's logits are NaN or infinite, so its weights are unusable; go back to a checkpoint before it "
            "diverged and lower the learning rate",
        )
