"""Drawing tokens: temperature, top-k, top-p and the inverse of the cumulative distribution.

One uniform number per row and step decides: token = the first i with cumulative probability above u.  The uniforms of a
request come from its own PCG64 stream, so what is drawn does not depend on what else is in the batch.  Top-p is nucleus
sampling (Holtzman et al. 2020, arXiv 1904.09751), applied after temperature and top-k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from burnish.core.errors import RunStopped
from burnish.core.sampling import SamplingParams

_LARGEST_UNIFORM = 1.0 - 2.0**-40
"""Keeps u * total strictly below total in float64, so that the last token with zero probability is never drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawRules:
    """How each of R rows is drawn; tensors [R, 1] on the model's device.

    `DrawRules.of([SamplingParams(), SamplingParams(temperature=0.0)], "cpu").has_greedy` is True.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    greedy: torch.Tensor
    has_greedy: bool
    has_sampled: bool
    has_filter: bool

    @staticmethod
    def of(params_R: Sequence[SamplingParams], device: torch.device | str) -> DrawRules:
        """Raises ValueError where a parameter is out of range."""
        for params in params_R:
            if not (params.temperature >= 0.0 and 0.0 < params.top_p <= 1.0 and params.top_k >= 0):
                raise ValueError(f"temperature >= 0, top_p in (0, 1] and top_k >= 0 are needed, got {params}")
        return DrawRules(
            temperature=torch.tensor([[p.temperature or 1.0] for p in params_R], dtype=torch.float32, device=device),
            top_p=torch.tensor([[p.top_p] for p in params_R], dtype=torch.float32, device=device),
            top_k=torch.tensor([[p.top_k or 2**31 - 1] for p in params_R], device=device),
            greedy=torch.tensor([[p.temperature == 0.0] for p in params_R], device=device),
            has_greedy=any(p.temperature == 0.0 for p in params_R),
            has_sampled=any(p.temperature > 0.0 for p in params_R),
            has_filter=any(p.top_p < 1.0 or p.top_k > 0 for p in params_R),
        )

    def reordered(self, order: torch.Tensor) -> DrawRules:
        """The same rules with rows in another order."""
        return DrawRules(
            temperature=self.temperature[order],
            top_p=self.top_p[order],
            top_k=self.top_k[order],
            greedy=self.greedy[order],
            has_greedy=self.has_greedy,
            has_sampled=self.has_sampled,
            has_filter=self.has_filter,
        )


def draw(logits_RV: torch.Tensor, uniforms_R: torch.Tensor, rules: DrawRules) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [R] and their natural log-probabilities [R] under the distribution that was sampled from.

    uniforms_R: float64 in [0, 1).  `rules` may hold more rows than the logits; the first R count.  The log-probability
    of a greedy row is 0, that of a sure event.  Raises RunStopped where the logits are not finite, since nothing drawn
    from them could be trained on.
    """
    rows = logits_RV.shape[0]
    best_R1, argmax_R1 = logits_RV.max(dim=-1, keepdim=True)
    if not rules.has_sampled:
        _refuse_non_finite(best_R1)
        return argmax_R1[:, 0], torch.zeros(rows, device=logits_RV.device)
    scaled_RV = (logits_RV - best_R1).float()
    scaled_RV /= rules.temperature[:rows]
    if rules.has_filter:
        scaled_RV = _filtered(scaled_RV, rules.top_k[:rows], rules.top_p[:rows])
    # float64 sums keep the error of a log-probability near 1e-7 whatever the size of the vocabulary
    wide = torch.float32 if logits_RV.device.type == "mps" else torch.float64
    cumulative_RV = torch.cumsum(scaled_RV.exp(), dim=-1, dtype=wide)
    total_R1 = cumulative_RV[:, -1:]
    _refuse_non_finite(total_R1)
    threshold_R1 = uniforms_R[:, None].clamp(max=_LARGEST_UNIFORM).to(wide) * total_R1
    token_R1 = torch.searchsorted(cumulative_RV, threshold_R1, right=True).clamp_(max=logits_RV.shape[1] - 1)
    logprob_R1 = scaled_RV.gather(1, token_R1) - total_R1.log()
    if rules.has_greedy:
        token_R1 = torch.where(rules.greedy[:rows], argmax_R1, token_R1)
        logprob_R1 = torch.where(rules.greedy[:rows], 0.0, logprob_R1)
    return token_R1[:, 0], logprob_R1[:, 0].float()


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
    if not bool(torch.isfinite(values).all()):
        raise RunStopped(
            "non_finite_logits",
            "the policy's logits are NaN or infinite, so its weights are unusable; go back to a checkpoint before it "
            "diverged and lower the learning rate",
        )
