"""Supervised fine-tuning: maximum likelihood of demonstrated actions.

L = -sum_t w_t * a_t * log pi(y_t | y_<t) / Z over the tokens under the loss mask, weights w and Z by the aggregation
(`aggregation.py`); a_t is the sample's advantage, 1 for a plain demonstration.  With "token" this is the usual
cross-entropy per trained token.  Source: Ouyang et al., arXiv 2203.02155, section 3.5.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

from burnish.algorithms.aggregation import Aggregation, batch_normaliser, token_weights
from burnish.algorithms.figures import Figures
from burnish.algorithms.loss import LossInputs, LossOutput
from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class SftLoss:
    """Cross-entropy on the trained tokens.  `SftLoss(aggregation="token")`

    aggregation: token, sequence or constant (then constant_tokens is L, at least 1).
    """

    aggregation: Aggregation = Aggregation.TOKEN
    constant_tokens: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "aggregation", Aggregation(self.aggregation))
        if self.constant_tokens < 1:
            raise ValueError(f"constant_tokens is at least 1, got {self.constant_tokens}")

    @property
    def needs_reference(self) -> bool:
        return False

    def needs_proximal(self, updates: int) -> bool:
        return False

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        return batch_normaliser(self.aggregation, samples)

    def survey(self, samples: Sequence[TrainingSample]) -> array[float]:
        return array("d")

    def trust_limit(self, surveys: Iterable[Sequence[float]]) -> float:
        return inf

    def __call__(self, inputs: LossInputs) -> LossOutput:
        weights_N = token_weights(self.aggregation, inputs.sequence_tokens_N, self.constant_tokens)
        loss = -(weights_N * inputs.advantages_N * inputs.logprobs_N).sum() / inputs.normaliser
        figures = Figures(inputs, loss)
        figures.add("nll_nats", -inputs.logprobs_N)
        return LossOutput(loss=loss, statistics=figures.sums())
