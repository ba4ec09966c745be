"""Estimators of the Kullback-Leibler divergence from sampled tokens.

k3 = exp(d) - d - 1 with d = log q(x) - log p(x), x drawn from p: unbiased for KL(p || q), never negative, low variance.
Source: J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html; used as the penalty of
GRPO, arXiv 2402.03300, equation 4.
"""

from __future__ import annotations

from torch import Tensor

from burnish.algorithms.ratios import bounded_exp


def k3(logprobs_N: Tensor, other_logprobs_N: Tensor) -> Tensor:
    """Estimate of KL(p || q) in nats at each of N tokens drawn from p; differentiable in both arguments.

    logprobs_N: log p of the drawn tokens; other_logprobs_N: log q of the same tokens.

    >>> import torch
    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.0])).item()
    0.0
    """
    difference = other_logprobs_N - logprobs_N
    return bounded_exp(difference) - difference - 1.0
