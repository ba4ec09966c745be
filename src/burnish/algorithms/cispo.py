"""CISPO: the ratio is clipped as a weight, so that no token loses its gradient.

With a ratio r_t of the learner to another policy (which one: `policy_loss.py`):

    l_t = -detach(clip(r_t, 1 - clip_low, 1 + clip_high)) * A_t * log pi(y_t)

Source: MiniMax-M1, arXiv 2506.13585, section 3.1.  The paper sets no lower bound (clip_low = 1) and tunes the upper one
without giving it; the default, a cap of 5, follows ScaleRL, arXiv 2510.13786.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.algorithms.loss import LossInputs
from burnish.algorithms.policy_loss import Objective, PolicyLoss
from burnish.algorithms.ratios import bounded_exp


@dataclass(frozen=True, slots=True, kw_only=True)
class CispoLoss(PolicyLoss):
    """`CispoLoss(clip_high=4.0)` caps the weight at 5.

    clip_low in [0, 1], 1 sets no lower bound; clip_high >= 0.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        PolicyLoss.__post_init__(self)
        if not 0.0 <= self.clip_low <= 1.0:
            raise ValueError(f"clip_low lies in [0, 1], got {self.clip_low}")
        if not self.clip_high >= 0.0:
            raise ValueError(f"clip_high is at least 0, got {self.clip_high}")

    def objective(self, log_ratio_N: Tensor, inputs: LossInputs) -> Objective:
        ratio_N = bounded_exp(log_ratio_N.detach())
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        return Objective(
            token_loss_N=-ratio_N.clamp(low, high) * inputs.advantages_N * inputs.logprobs_N,
            low_N=ratio_N < low,
            high_N=ratio_N > high,
        )
