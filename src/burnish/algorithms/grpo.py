"""The GRPO family: a clipped policy gradient on group advantages, with an optional pull to a reference.

With the ratio r_t = pi(y_t) / mu(y_t) of the learner to the policy that drew the token:

    l_t = -min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t) + kl_weight * k3(pi, reference)_t
    L   = sum_t w_t * l_t / Z                           (w and Z: `aggregation.py`)

Sources: clipping, Schulman et al., arXiv 1707.06347, equation 7; group advantages and the k3 term, GRPO, arXiv
2402.03300, equations 3 and 4; asymmetric clipping ("clip higher", 0.2 / 0.28) and token aggregation, DAPO, arXiv
2503.14476, sections 3.1 and 3.3; constant length, Dr. GRPO, arXiv 2503.20783.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from burnish.algorithms.aggregation import Aggregation, batch_normaliser, token_weights
from burnish.algorithms.kl import LOG_RATIO_LIMIT_NATS, k3
from burnish.algorithms.loss import LossInputs, LossOutput, LossSums
from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoLoss:
    """`GrpoLoss(clip_low=0.2, clip_high=0.28, aggregation="token", kl_weight=0.0)`

    clip_low in [0, 1); clip_high >= 0; constant_tokens >= 1, used by aggregation "constant" alone; kl_weight >= 0, and
    above 0 it needs a reference.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregation: Aggregation = Aggregation.TOKEN
    constant_tokens: int = 1024
    kl_weight: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "aggregation", Aggregation(self.aggregation))
        if not 0.0 <= self.clip_low < 1.0:
            raise ValueError(f"clip_low lies in [0, 1), got {self.clip_low}")
        if not self.clip_high >= 0.0:
            raise ValueError(f"clip_high is at least 0, got {self.clip_high}")
        if self.constant_tokens < 1:
            raise ValueError(f"constant_tokens is at least 1, got {self.constant_tokens}")
        if not self.kl_weight >= 0.0:
            raise ValueError(f"kl_weight is at least 0, got {self.kl_weight}")

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0.0

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        return batch_normaliser(self.aggregation, samples)

    def __call__(self, inputs: LossInputs) -> LossOutput:
        log_ratio_N = inputs.logprobs_N - inputs.behaviour_logprobs_N
        ratio_N = torch.exp(log_ratio_N.clamp(-LOG_RATIO_LIMIT_NATS, LOG_RATIO_LIMIT_NATS))
        clipped_N = ratio_N.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        token_loss_N = -torch.minimum(ratio_N * inputs.advantages_N, clipped_N * inputs.advantages_N)
        kl_N = None
        if inputs.reference_logprobs_N is not None:
            kl_N = k3(inputs.logprobs_N, inputs.reference_logprobs_N)
            token_loss_N = token_loss_N + self.kl_weight * kl_N
        elif self.needs_reference:
            raise ValueError(f"kl_weight is {self.kl_weight} but there is no reference; give the learner one")
        weights_N = token_weights(self.aggregation, inputs.sequence_tokens_N, self.constant_tokens)
        loss = (weights_N * token_loss_N).sum() / inputs.normaliser
        return LossOutput(loss=loss, statistics=self._statistics(inputs, loss, log_ratio_N.detach(), kl_N))

    def _statistics(self, inputs: LossInputs, loss: Tensor, log_ratio_N: Tensor, kl_N: Tensor | None) -> LossSums:
        """Sums over tokens; ratios are recorded raw, before any clipping, in double precision."""
        raw_N = log_ratio_N.double()
        ratio_N = raw_N.exp()
        positive_N = inputs.advantages_N > 0
        negative_N = inputs.advantages_N < 0
        figures = {
            "loss": loss.detach().double(),
            "entropy_nats": inputs.entropy_N.double().sum(),
            "advantage_abs": inputs.advantages_N.double().abs().sum(),
            "ratio": ratio_N.sum(),
            "ratio_squared": ratio_N.square().sum(),
            "log_ratio_abs_nats": raw_N.abs().sum(),
            "kl_behaviour_nats": (ratio_N - raw_N - 1.0).sum(),
            "clipped_low": ((ratio_N < 1.0 - self.clip_low) & negative_N).sum().double(),
            "clipped_high": ((ratio_N > 1.0 + self.clip_high) & positive_N).sum().double(),
            "largest": raw_N.abs().max(),
        }
        if kl_N is not None:
            figures["kl_reference_nats"] = kl_N.detach().double().sum()
        values = torch.stack(list(figures.values())).tolist()
        sums = {"tokens": float(raw_N.numel()), "sequences": float(inputs.sequences)}
        sums.update(zip(figures, values, strict=True))
        return LossSums(sums=sums, maxima={"log_ratio_abs_nats": sums.pop("largest")})
