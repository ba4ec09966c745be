"""Ratios of policies on the tokens that were drawn, as logarithms, kept apart by the policy in the denominator.

- learner/behaviour: engine mismatch and staleness.  Behaviour is the policy version that drew the token.
- learner/proximal: the trust region of an update.  Proximal is the learner at the start of the step.
- learner/reference: drift from where RL began.

With d_t = log(pi(y_t) / other(y_t)) in nats: the token ratio is exp(d_t), the ratio of a sequence is the product of
those of its trained tokens, exp(sum_t d_t), the second moment is mean(d_t^2).  Figures are taken raw, before anything
is truncated, clipped or masked: after truncation they would say that all is well.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_RATIO_LIMIT_NATS = 20.0
"""Log-ratios are held within +-20 before `exp`: beyond it a ratio says only "far", and float32 would overflow.  How
many were is counted."""

SEQUENCE_LIMIT_NATS = 300.0
"""The same for the sums over sequences, which serve the effective sample size alone and are taken in double precision,
whose largest number is exp(709): squares still fit."""


def bounded_exp(log_ratio: Tensor) -> Tensor:
    """exp within the limits; no gradient beyond them.  A NaN stays one.

    >>> bounded_exp(torch.tensor([0.0, 1000.0])).log().tolist()
    [0.0, 20.0]
    """
    return torch.exp(log_ratio.clamp(-LOG_RATIO_LIMIT_NATS, LOG_RATIO_LIMIT_NATS))


def sequence_sums(values_N: Tensor, sequence_N: Tensor, sequences: int) -> Tensor:
    """Sums over the tokens of each of B sequences, differentiable, shape [B].

    >>> sequence_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), 2).tolist()
    [3.0, 4.0]
    """
    return values_N.new_zeros(sequences).index_add(0, sequence_N, values_N)
