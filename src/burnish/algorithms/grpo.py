"""The GRPO family: a clipped policy gradient on group advantages, with an optional pull to a reference.

With a ratio r_t of the learner to another policy (which one: `policy_loss.py`):

    l_t = -min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t)

Sources: clipping, Schulman et al., arXiv 1707.06347, equation 7; group advantages and the k3 term, GRPO, arXiv
2402.03300, equations 3 and 4; asymmetric clipping ("clip higher", 0.2 / 0.28) and token aggregation, DAPO, arXiv
2503.14476, sections 3.1 and 3.3; constant length, Dr. GRPO, arXiv 2503.20783.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.algorithms.loss import LossInputs
from burnish.algorithms.policy_loss import Objective, PolicyLoss
from burnish.algorithms.ratios import bounded_exp


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoLoss(PolicyLoss):
    """`GrpoLoss(clip_low=0.2, clip_high=0.28, aggregation="token", kl_weight=0.0)`

    clip_low in [0, 1); clip_high >= 0.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        PolicyLoss.__post_init__(self)
        if not 0.0 <= self.clip_low < 1.0:
            raise ValueError(f"clip_low lies in [0, 1), got {self.clip_low}")
        if not self.clip_high >= 0.0:
            raise ValueError(f"clip_high is at least 0, got {self.clip_high}")

    def objective(self, log_ratio_N: Tensor, inputs: LossInputs) -> Objective:
        return clipped_objective(bounded_exp(log_ratio_N), inputs.advantages_N, 1 - self.clip_low, 1 + self.clip_high)


def clipped_objective(ratio_N: Tensor, advantages_N: Tensor, low: float, high: float) -> Objective:
    """l_t as in the module's text; low_N and high_N are the tokens whose gradient the clip removed.

    >>> clipped_objective(torch.tensor([1.5, 0.5]), torch.tensor([1.0, 1.0]), 0.8, 1.2).token_loss_N.tolist()
    [-1.2000000476837158, -0.5]
    """
    loss_N = -torch.minimum(ratio_N * advantages_N, ratio_N.clamp(low, high) * advantages_N)
    return Objective(
        token_loss_N=loss_N,
        low_N=(ratio_N < low) & (advantages_N < 0),
        high_N=(ratio_N > high) & (advantages_N > 0),
    )
