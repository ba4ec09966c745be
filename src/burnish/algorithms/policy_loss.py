"""What every policy-gradient loss shares; the algorithms differ in their objective alone.

    L = sum_t v_t * m_t * (w_t * l_t + kl_weight * k3(pi, reference)_t) / Z

v and Z: the aggregation (`aggregation.py`).  w: the importance correction, detached, m: 0 for a token that a mask
took out (`correction.py`).  l: the objective of the algorithm, a function of one ratio:

- correction "none": the ratio learner/behaviour is importance weight and trust region at once (PPO, GRPO).
- any other: the *decoupled* form, AReaL, arXiv 2505.24298, section 5.2.  The trust region is around the proximal
  policy, the learner at the start of the step: l takes the ratio learner/proximal, and w = proximal/behaviour,
  bounded, undoes the staleness.  Clipping around an old behaviour policy would pull the learner back to it.

Where the proximal log-probabilities are not given, the learner's own (detached) stand for them.  With one update a
step they are the same numbers: the ratio learner/proximal is then 1 at every token and the trust region never acts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from burnish.algorithms.aggregation import Aggregation, batch_normaliser, token_weights
from burnish.algorithms.correction import Correction, CorrectionKind, Weights
from burnish.algorithms.figures import Figures
from burnish.algorithms.kl import k3
from burnish.algorithms.loss import LossInputs, LossOutput
from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """token_loss_N: l_t, with gradient.  low_N, high_N: bool, tokens whose ratio the algorithm bounded, by side.
    kept_N: bool, False where the algorithm takes a token out of the loss; None keeps all."""

    token_loss_N: Tensor
    low_N: Tensor
    high_N: Tensor
    kept_N: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyLoss(ABC):
    """Options of all policy-gradient losses.

    constant_tokens >= 1: used by aggregation "constant" alone.  kl_weight >= 0: above 0 it needs a reference.
    correction, correction_cap, correction_floor: see `Correction`.
    """

    aggregation: Aggregation = Aggregation.TOKEN
    constant_tokens: int = 1024
    kl_weight: float = 0.0
    correction: CorrectionKind = CorrectionKind.NONE
    correction_cap: float | None = None
    correction_floor: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "aggregation", Aggregation(self.aggregation))
        object.__setattr__(self, "correction", CorrectionKind(self.correction))
        if self.constant_tokens < 1:
            raise ValueError(f"constant_tokens is at least 1, got {self.constant_tokens}")
        if not self.kl_weight >= 0.0:
            raise ValueError(f"kl_weight is at least 0, got {self.kl_weight}")
        self._correction()

    @property
    def needs_reference(self) -> bool:
        return self.kl_weight > 0.0

    def needs_proximal(self, updates: int) -> bool:
        return self.correction is not CorrectionKind.NONE and updates > 1

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        return batch_normaliser(self.aggregation, samples)

    def survey(self, samples: Sequence[TrainingSample]) -> array[float]:
        return array("d")

    def trust_limit(self, surveys: Iterable[Sequence[float]]) -> float:
        return inf

    @abstractmethod
    def objective(self, log_ratio_N: Tensor, inputs: LossInputs) -> Objective:
        """The algorithm: l_t for each token, from the log of learner/behaviour, or of learner/proximal where a
        correction is on; with gradient."""
        ...

    def __call__(self, inputs: LossInputs) -> LossOutput:
        log_ratio_N, weights = self._ratio_and_weights(inputs)
        objective = self.objective(log_ratio_N, inputs)
        token_loss_N = objective.token_loss_N if weights is None else weights.weights_N * objective.token_loss_N
        kl_N = None
        if inputs.reference_logprobs_N is not None:
            kl_N = k3(inputs.logprobs_N, inputs.reference_logprobs_N)
            token_loss_N = token_loss_N + self.kl_weight * kl_N
        elif self.needs_reference:
            raise ValueError(f"kl_weight is {self.kl_weight} but there is no reference; give the learner one")
        kept_N = _both(objective.kept_N, None if weights is None else weights.kept_N)
        if kept_N is not None:
            token_loss_N = token_loss_N.masked_fill(~kept_N, 0.0)
        aggregation_N = token_weights(self.aggregation, inputs.sequence_tokens_N, self.constant_tokens)
        loss = (aggregation_N * token_loss_N).sum() / inputs.normaliser
        figures = Figures(inputs, loss)
        figures.add("advantage_abs", inputs.advantages_N.abs())
        figures.add_ratios()
        figures.add("clipped_low", objective.low_N)
        figures.add("clipped_high", objective.high_N)
        if weights is not None:
            figures.add_correction(weights)
        if kept_N is not None:
            figures.add("masked", ~kept_N)
        if kl_N is not None:
            figures.add("kl_reference_nats", kl_N)
        figures.add_staleness()
        return LossOutput(loss=loss, statistics=figures.sums())

    def _ratio_and_weights(self, inputs: LossInputs) -> tuple[Tensor, Weights | None]:
        """The log of the objective's ratio, and what corrects for the rest of the way to the behaviour policy."""
        if self.correction is CorrectionKind.NONE:
            return inputs.logprobs_N - inputs.behaviour_logprobs_N, None
        proximal_N = inputs.proximal_logprobs_N
        if proximal_N is None:
            proximal_N = inputs.logprobs_N.detach()
        weights = self._correction().weights(
            proximal_N - inputs.behaviour_logprobs_N, inputs.sequence_N, inputs.sequences
        )
        return inputs.logprobs_N - proximal_N, weights

    def _correction(self) -> Correction:
        return Correction(kind=self.correction, cap=self.correction_cap, floor=self.correction_floor)


def _both(first_N: Tensor | None, second_N: Tensor | None) -> Tensor | None:
    if first_N is None or second_N is None:
        return second_N if first_N is None else first_N
    return first_N & second_N
