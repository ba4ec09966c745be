"""What every loss takes and gives; the learner knows no more about an algorithm than this."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The N trained tokens of one micro-batch; tensors are float32 of shape [N] unless said otherwise.

    logprobs_N: under the learner, with gradient.  behaviour_logprobs_N: under the policy that drew them.
    proximal_logprobs_N: under the learner at the start of the step, None where it was not scored.
    reference_logprobs_N: under the reference, None without one.  entropy_N: of the learner's distribution, no gradient.
    advantages_N: 1 for SFT.  sequence_N: int64, which of the `sequences` sequences the token belongs to; each is whole.
    sequence_tokens_N: trained tokens of that sequence.  staleness_N: int64, learner version minus the version that drew
    the token, None where versions mean nothing.  normaliser, trust_limit: of the whole batch, not of this micro-batch.

    Example: one sequence of 2 tokens has sequence_N [0, 0], sequence_tokens_N [2, 2] and sequences 1.
    """

    logprobs_N: Tensor
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    sequence_N: Tensor
    sequence_tokens_N: Tensor
    entropy_N: Tensor
    sequences: int
    normaliser: float
    trust_limit: float = math.inf
    proximal_logprobs_N: Tensor | None = None
    reference_logprobs_N: Tensor | None = None
    staleness_N: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Statistics that merge over micro-batches and shards: `sums` add up, `maxima` take the larger.

    `LossSums(sums={"tokens": 3.0, "loss": 0.2, "entropy_nats": 2.4}, maxima={"log_ratio_behaviour_abs_nats": 0.01})`
    """

    sums: Mapping[str, float] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def merge(parts: Iterable[LossSums]) -> LossSums:
        """All parts as one, added in the order given (so that equal order gives equal bits).

        >>> LossSums.merge([LossSums(sums={"tokens": 1.0}), LossSums(sums={"tokens": 2.0})]).sums
        {'tokens': 3.0}
        """
        sums: dict[str, float] = {}
        maxima: dict[str, float] = {}
        for part in parts:
            for key, value in part.sums.items():
                sums[key] = sums.get(key, 0.0) + value
            for key, value in part.maxima.items():
                maxima[key] = max(maxima.get(key, value), value)
        return LossSums(sums=sums, maxima=maxima)

    def metrics(self) -> dict[str, float]:
        """Readable figures: counts and the loss as they are, every other sum as its mean over trained tokens.

        For each ratio also its effective sample sizes, (sum w)^2 / (n sum w^2), in (0, 1], 1 where all are equal:
        `ratio_NAME_ess_raw_token` and `ratio_NAME_ess_raw_sequence`; for correction weights `correction_ess_token`.
        Maxima get the suffix `_max`.

        >>> LossSums(sums={"tokens": 2.0, "loss": 0.5, "entropy_nats": 3.0}).metrics()
        {'tokens': 2.0, 'loss': 0.5, 'entropy_nats_mean': 1.5}
        """
        tokens = self.sums.get("tokens", 0.0)
        figures: dict[str, float] = {}
        for key, value in self.sums.items():
            if key in _TOTALS:
                figures[key] = value
            elif tokens > 0 and not key.startswith(_OF_SEQUENCES):
                figures[f"{key}_mean"] = value / tokens
        figures.update(self._effective_sizes())
        figures.update({f"{key}_max": value for key, value in self.maxima.items()})
        return figures

    def _effective_sizes(self) -> dict[str, float]:
        sizes: dict[str, float] = {}
        for name in (key.removesuffix("_squared") for key in self.sums if key.endswith("_squared")):
            if name not in self.sums or not self.sums[f"{name}_squared"] > 0:
                continue
            by_sequence = name.startswith(_OF_SEQUENCES)
            count = self.sums["sequences" if by_sequence else "tokens"]
            label = "correction_ess_token"
            if name != "correction_weight":
                label = f"{name.removeprefix(_OF_SEQUENCES)}_ess_raw_{'sequence' if by_sequence else 'token'}"
            sizes[label] = self.sums[name] ** 2 / (count * self.sums[f"{name}_squared"])
        return sizes


_TOTALS = frozenset({"tokens", "sequences", "loss", "micro_batches", "padded_tokens"})

_OF_SEQUENCES = "sequence_"
"""Sums over sequences serve the effective sample size; products of many ratios have no mean worth a plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """loss: scalar with gradient, already divided by the normaliser of the whole batch, so that the losses (and the
    gradients) of micro-batches add up.  statistics: see `LossSums`."""

    loss: Tensor
    statistics: LossSums


class Loss(Protocol):
    """One algorithm.  It is a value: no state between calls."""

    @property
    def needs_reference(self) -> bool:
        """Whether `LossInputs.reference_logprobs_N` must be there."""
        ...

    def needs_proximal(self, updates: int) -> bool:
        """Whether the samples of a step with so many updates must carry `proximal_logprobs`."""
        ...

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        """Z of a batch; those of its shards add up to it."""
        ...

    def survey(self, samples: Sequence[TrainingSample]) -> array[float]:
        """What a decision over the whole batch must know of some of its samples; empty where none is taken."""
        ...

    def trust_limit(self, surveys: Iterable[Sequence[float]]) -> float:
        """That decision, from the surveys of all shards in any order: `LossInputs.trust_limit` of the batch."""
        ...

    def __call__(self, inputs: LossInputs) -> LossOutput: ...
