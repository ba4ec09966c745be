"""What every loss takes and gives; the learner knows no more about an algorithm than this."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from burnish.core.learning import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """The N trained tokens of one micro-batch; all tensors are float32 of shape [N].

    logprobs_N: under the learner, with gradient.  behaviour_logprobs_N: under the policy that drew them.
    reference_logprobs_N: under the reference, None without one.  entropy_N: of the learner's distribution, no gradient.
    advantages_N: 1 for SFT.  sequence_tokens_N: trained tokens of the sequence that the token belongs to.
    sequences: how many sequences.  normaliser: of the whole batch, not of this micro-batch.

    Example: one sequence of 2 tokens has sequence_tokens_N [2, 2] and sequences 1.
    """

    logprobs_N: Tensor
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    sequence_tokens_N: Tensor
    entropy_N: Tensor
    sequences: int
    normaliser: float
    reference_logprobs_N: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Statistics that merge over micro-batches and shards: `sums` add up, `maxima` take the larger.

    `LossSums(sums={"tokens": 3.0, "loss": 0.2, "entropy_nats": 2.4}, maxima={"log_ratio_abs_nats": 0.01})`
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

        With ratios among the sums also `ratio_ess_raw_token`: (sum w)^2 / (n sum w^2) of the raw learner/behaviour
        token ratios, in (0, 1], 1 on policy.  Maxima get the suffix `_max`.

        >>> LossSums(sums={"tokens": 2.0, "loss": 0.5, "entropy_nats": 3.0}).metrics()
        {'tokens': 2.0, 'loss': 0.5, 'entropy_nats_mean': 1.5}
        """
        tokens = self.sums.get("tokens", 0.0)
        figures: dict[str, float] = {}
        for key, value in self.sums.items():
            if key in _TOTALS:
                figures[key] = value
            elif tokens > 0:
                figures[f"{key}_mean"] = value / tokens
        if tokens > 0 and "ratio_squared" in self.sums:
            figures["ratio_ess_raw_token"] = self.sums["ratio"] ** 2 / (tokens * self.sums["ratio_squared"])
        figures.update({f"{key}_max": value for key, value in self.maxima.items()})
        return figures


_TOTALS = frozenset({"tokens", "sequences", "loss", "micro_batches", "padded_tokens"})


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

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        """Z of a batch; those of its shards add up to it."""
        ...

    def __call__(self, inputs: LossInputs) -> LossOutput: ...
