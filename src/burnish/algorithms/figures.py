"""Statistics of a micro-batch: sums and maxima, gathered on the device and fetched in one go."""

from __future__ import annotations

import torch
from torch import Tensor

from burnish.algorithms.correction import Weights
from burnish.algorithms.kl import k3
from burnish.algorithms.loss import LossInputs, LossSums
from burnish.algorithms.ratios import LOG_RATIO_LIMIT_NATS, SEQUENCE_LIMIT_NATS, bounded_exp, sequence_sums


class Figures:
    """`figures.add("masked", mask_N)`, ..., then `figures.sums()`.  Sums are taken in double precision."""

    def __init__(self, inputs: LossInputs, loss: Tensor) -> None:
        self._inputs = inputs
        self._sums: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}
        self.add("loss", loss)
        self.add("entropy_nats", inputs.entropy_N)

    def add(self, name: str, values: Tensor) -> None:
        """The sum of `values`; of a bool tensor, how many are true."""
        self._sums[name] = values.detach().double().sum()

    def add_ratio(self, name: str, other_logprobs_N: Tensor) -> None:
        """Raw figures of the ratio learner/`name`: of tokens, and of sequences (the product over their tokens)."""
        inputs = self._inputs
        raw_N = (inputs.logprobs_N - other_logprobs_N).detach().double()
        ratio_N = bounded_exp(raw_N)
        log_B = sequence_sums(raw_N, inputs.sequence_N, inputs.sequences)
        ratio_B = log_B.clamp(-SEQUENCE_LIMIT_NATS, SEQUENCE_LIMIT_NATS).exp()
        self.add(f"ratio_{name}", ratio_N)
        self.add(f"ratio_{name}_squared", ratio_N.square())
        self.add(f"ratio_{name}_overflow", raw_N.abs() > LOG_RATIO_LIMIT_NATS)
        self.add(f"log_ratio_{name}_abs_nats", raw_N.abs())
        self.add(f"log_ratio_{name}_squared", raw_N.square())
        self.add(f"sequence_ratio_{name}", ratio_B)
        self.add(f"sequence_ratio_{name}_squared", ratio_B.square())
        self._maxima[f"log_ratio_{name}_abs_nats"] = raw_N.abs().max()

    def add_ratios(self) -> None:
        """The three ratios, as far as the inputs have them, and the KL of behaviour and learner."""
        inputs = self._inputs
        self.add_ratio("behaviour", inputs.behaviour_logprobs_N)
        self.add("kl_behaviour_nats", k3(inputs.behaviour_logprobs_N.double(), inputs.logprobs_N.detach().double()))
        if inputs.proximal_logprobs_N is not None:
            self.add_ratio("proximal", inputs.proximal_logprobs_N)
        if inputs.reference_logprobs_N is not None:
            self.add_ratio("reference", inputs.reference_logprobs_N)

    def add_correction(self, weights: Weights) -> None:
        """The weights as applied, and how many raw ones lay outside the bounds."""
        self.add("correction_weight", weights.weights_N)
        self.add("correction_weight_squared", weights.weights_N.double().square())
        self.add("correction_above", weights.above_N)
        self.add("correction_below", weights.below_N)

    def add_staleness(self) -> None:
        """Learner version minus behaviour version, where the versions are known."""
        staleness_N = self._inputs.staleness_N
        if staleness_N is not None:
            self.add("staleness", staleness_N)
            self.add("stale", staleness_N > 0)
            self._maxima["staleness"] = staleness_N.max().double()

    def sums(self) -> LossSums:
        """Everything as numbers; the one place that waits for the device."""
        values = torch.stack([*self._sums.values(), *self._maxima.values()]).tolist()
        counts = {"tokens": float(self._inputs.logprobs_N.numel()), "sequences": float(self._inputs.sequences)}
        return LossSums(
            sums=counts | dict(zip(self._sums, values, strict=False)),
            maxima=dict(zip(self._maxima, values[len(self._sums) :], strict=True)),
        )
