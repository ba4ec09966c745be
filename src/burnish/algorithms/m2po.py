"""M2PO: a trust region on the second moment of the log-ratio, over the whole batch.

With d_t = log(proximal(y_t) / behaviour(y_t)) and a ratio r_t of the learner to another policy (which:
`policy_loss.py`):

    M   = the tokens left when those with the largest d_t^2 are taken out until mean(d_t^2) of the rest <= moment_cap
    l_t = -r_t * A_t for t in M, 0 for the others

Source: Zheng et al., "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?", arXiv
2510.01161, moment_cap 0.04.  The second moment adds up without signs cancelling, which a mean log-ratio
does not; few tokens carry most of it, so few are masked.  As in AReaL's implementation all tokens count; the authors'
code counts those alone that an update pushes further away (r > 1 and A > 0, or r < 1 and A < 0).

Which tokens go is decided over the whole batch, as one threshold on d_t^2: each shard gives its d_t^2 (`survey`), and
the threshold (`trust_limit`) is found from all of them, so neither micro-batches nor shards change it.  Hence d is
taken at the proximal policy, the learner at the start of the step, which the batch must have been scored with; with
one update a step that is the learner itself.  Tokens with equal d_t^2 stay or go together.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.algorithms.loss import LossInputs
from burnish.algorithms.policy_loss import Objective, PolicyLoss
from burnish.algorithms.ratios import bounded_exp
from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class M2poLoss(PolicyLoss):
    """`M2poLoss(moment_cap=0.04)`; moment_cap > 0, in nats squared."""

    moment_cap: float = 0.04

    def __post_init__(self) -> None:
        PolicyLoss.__post_init__(self)
        if not self.moment_cap > 0.0:
            raise ValueError(f"moment_cap is above 0, got {self.moment_cap}")

    def needs_proximal(self, updates: int) -> bool:
        return True

    def survey(self, samples: Sequence[TrainingSample]) -> array[float]:
        """d_t^2 of every trained token."""
        squares = array("d")
        for sample in samples:
            if sample.proximal_logprobs is None:
                raise ValueError(f"{sample.trajectory_id} has no proximal log-probabilities; score the batch first")
            trained = np.frombuffer(sample.loss_mask, dtype=np.int8) != 0
            proximal = np.frombuffer(sample.proximal_logprobs, dtype=np.float32)
            log_ratio = (proximal - np.frombuffer(sample.behaviour_logprobs, dtype=np.float32))[trained]
            squares.frombytes(np.square(log_ratio.astype(np.float64)).tobytes())
        return squares

    def trust_limit(self, surveys: Iterable[Sequence[float]]) -> float:
        """The largest d_t^2 that stays; infinite where all may.

        >>> M2poLoss(moment_cap=0.04).trust_limit([[0.01, 0.25], [0.03]])
        0.03
        """
        return moment_limit(np.concatenate([np.empty(0), *map(np.asarray, surveys)]), self.moment_cap)

    def objective(self, log_ratio_N: Tensor, inputs: LossInputs) -> Objective:
        if inputs.proximal_logprobs_N is None:
            raise ValueError("M2PO decides at the proximal policy; give the learner samples with proximal_logprobs")
        square_N = (inputs.proximal_logprobs_N - inputs.behaviour_logprobs_N).double().square()
        nothing_N = torch.zeros_like(inputs.advantages_N, dtype=torch.bool)
        return Objective(
            token_loss_N=-bounded_exp(log_ratio_N) * inputs.advantages_N,
            low_N=nothing_N,
            high_N=nothing_N,
            kept_N=~(square_N > inputs.trust_limit),
        )


def moment_limit(squares_N: NDArray[np.float64], cap: float) -> float:
    """The largest value v such that the mean of all values <= v is at most `cap`; inf where that is all of them, 0
    where it is none.

    >>> moment_limit(np.array([0.3, 0.1, 0.2]), 0.16), moment_limit(np.array([0.3]), 0.1)
    (0.2, 0.0)
    """
    values = np.sort(squares_N)
    if not values.size:
        return inf
    means = np.cumsum(values) / np.arange(1, values.size + 1)
    ends_tie = np.append(values[1:] > values[:-1], True)
    fitting = np.flatnonzero((means <= cap) & ends_tie)
    if not fitting.size:
        return 0.0
    last = int(fitting[-1])
    return inf if last == values.size - 1 else float(values[last])
