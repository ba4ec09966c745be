"""GSPO: the clipped policy gradient with one ratio for a whole sequence.

With d_t the log of the ratio of the learner to another policy (which one: `policy_loss.py`) and n_i trained tokens:

    s_i = exp(sum_t d_t / n_i)                          the geometric mean of the token ratios
    l_t = -min(s_i * A_t, clip(s_i, 1 - clip_low, 1 + clip_high) * A_t)       for every token t of sequence i

Source: Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071, equations 5 and 7; the clip ranges 3e-4
and 4e-4 are those of its section 5.1.  They are two orders smaller than for token ratios, since noise averages out
over a sequence.  With aggregation "sequence" (the paper's) the sum over tokens is min(s_i A_i, clip(s_i) A_i) /
sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.algorithms.aggregation import Aggregation
from burnish.algorithms.grpo import clipped_objective
from burnish.algorithms.loss import LossInputs
from burnish.algorithms.policy_loss import Objective, PolicyLoss
from burnish.algorithms.ratios import bounded_exp, sequence_sums


@dataclass(frozen=True, slots=True, kw_only=True)
class GspoLoss(PolicyLoss):
    """`GspoLoss(clip_low=3e-4, clip_high=4e-4, aggregation="sequence")`

    clip_low in [0, 1); clip_high >= 0.
    """

    aggregation: Aggregation = Aggregation.SEQUENCE
    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        PolicyLoss.__post_init__(self)
        if not 0.0 <= self.clip_low < 1.0:
            raise ValueError(f"clip_low lies in [0, 1), got {self.clip_low}")
        if not self.clip_high >= 0.0:
            raise ValueError(f"clip_high is at least 0, got {self.clip_high}")

    def objective(self, log_ratio_N: Tensor, inputs: LossInputs) -> Objective:
        sums_B = sequence_sums(log_ratio_N, inputs.sequence_N, inputs.sequences)
        mean_N = sums_B[inputs.sequence_N] / inputs.sequence_tokens_N
        return clipped_objective(bounded_exp(mean_N), inputs.advantages_N, 1 - self.clip_low, 1 + self.clip_high)
