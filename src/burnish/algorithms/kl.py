"""Estimators of the Kullback-Leibler divergence from sampled tokens.

k3 = exp(d) - d - 1 with d = log q(x) - log p(x), x drawn from p: unbiased for KL(p || q), never negative, low variance.
Source: J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html; used as the penalty of
GRPO, arXiv 2402.03300, equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT_NATS = 20.0
"""Log-ratios are held within +-20 before `exp`: beyond it a ratio says only "far", and float32 would overflow."""


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """Estimate of KL(p || q) in nats at each of N tokens drawn from p; differentiable in both arguments.

    logprobs_N: log p of the drawn tokens; other_logprobs_N: log q of the same tokens.

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0])).item()
    0.0
    """
    difference = other_logprobs_N - logprobs_N
    return torch.exp(difference.clamp(-LOG_RATIO_LIMIT_NATS, LOG_RATIO_LIMIT_NATS)) - difference - 1.0
