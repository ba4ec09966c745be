"""The learner: training samples to gradients, for any loss.

It knows nothing about an algorithm beyond `algorithms.loss.Loss`.  A batch may be cut into micro-batches and shards in
any way: with the normaliser of the whole batch given, their gradients add up to the same sum.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from burnish.algorithms.logprobs import token_logprobs
from burnish.algorithms.loss import Loss, LossInputs, LossSums
from burnish.algorithms.packing import MicroBatch, micro_batches
from burnish.core.errors import ConfigError, RunStopped
from burnish.core.learning import TrainingSample
from burnish.training.failures import NonFiniteLoss, is_out_of_memory
from burnish.training.forward import SelectedLogits
from burnish.training.gradients import trainable_parameters
from burnish.training.norms import FusedNorms


class Learner:
    """Adds the gradients of a loss to a model's `.grad`; the optimizer is somebody else's.

    model: a causal language model, peft-wrapped or not.  temperature: that of sampling (1 for SFT).
    max_micro_batch_tokens: padded tokens that go through the model at once; halved for good whenever memory runs out
    (`memory_splits` counts).  pad_id: any id, even that of a real token.  reference: a frozen model for the KL term;
    the same object as `model` stands for a peft-wrapped model with its adapters switched off.  dropout: whether the
    model's dropout is active in `accumulate`; off, the ratio of learner to behaviour is 1 on fresh samples.

    `Learner(model, GrpoLoss(), temperature=1.0, max_micro_batch_tokens=2048, pad_id=0)`
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        temperature: float = 1.0,
        max_micro_batch_tokens: int = 2048,
        pad_id: int = 0,
        reference: nn.Module | None = None,
        dropout: bool = False,
    ) -> None:
        if loss.needs_reference and reference is None:
            raise ConfigError("this loss needs a reference model; give one, or set kl_weight to 0")
        if reference is model and not hasattr(model, "disable_adapter"):
            raise ConfigError("a model can be its own reference only where LoRA adapters can be switched off")
        if not trainable_parameters(model):
            raise ConfigError("the model has no trainable parameters; add LoRA adapters or unfreeze it")
        self.model = model
        self.loss = loss
        self.temperature = temperature
        self.max_micro_batch_tokens = max_micro_batch_tokens
        self.memory_splits = 0
        self._pad_id = pad_id
        self._dropout = dropout
        self._device = next(model.parameters()).device
        self._logits = SelectedLogits(model)
        self._norms = FusedNorms(model)
        self._reference = reference
        self._reference_logits = SelectedLogits(reference) if reference is not None else None

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        """The loss's normaliser of these samples; add up those of the shards of a batch for that of the batch."""
        return self.loss.normaliser(samples)

    def accumulate(
        self, samples: Sequence[TrainingSample], normaliser: float, *, max_micro_batch_tokens: int | None = None
    ) -> LossSums:
        """Add the gradient of the loss over `samples`, divided by `normaliser`, to the model's gradients.

        normaliser: of the whole batch, above 0 where anything is trained.  max_micro_batch_tokens: another cut for this
        call.  Raises NonFiniteLoss (naming trajectories) or RunStopped (out of memory with a single sample); then the
        gradients are as they were before the call.
        """
        entry = _Gradients(self.model)
        _set_mode(self.model, self._dropout)
        while True:
            batches = self._cut(samples, max_micro_batch_tokens)
            if batches and not normaliser > 0:
                raise ValueError(f"normaliser is above 0 where tokens are trained, got {normaliser}")
            try:
                failed = self._accumulate(batches, samples, normaliser)
            except BaseException:
                entry.restore()
                raise
            if isinstance(failed, LossSums):
                return failed
            entry.restore()
            max_micro_batch_tokens = self._halve(failed)

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[array[float]]:
        """Log-probabilities of the trained tokens under the model as it is, teacher-forced.

        One array('f') of T nats for each sample, 0 outside the loss mask, as in `behaviour_logprobs`.
        """
        scores = [array("f", bytes(4 * sample.length)) for sample in samples]
        _set_mode(self.model, False)
        for batch in self._cut(samples, None):
            logprobs_N, _ = self._token_logprobs(self._logits, batch)
            values = iter(logprobs_N.float().tolist())
            for index in batch.sample_indices_B:
                for column, trained in enumerate(samples[index].loss_mask):
                    if trained:
                        scores[index][column] = next(values)
        return scores

    def _cut(self, samples: Sequence[TrainingSample], max_tokens: int | None) -> list[MicroBatch]:
        budget = min(max_tokens or self.max_micro_batch_tokens, self.max_micro_batch_tokens)
        return micro_batches(samples, max_tokens=budget, pad_id=self._pad_id)

    def _accumulate(
        self, batches: Sequence[MicroBatch], samples: Sequence[TrainingSample], normaliser: float
    ) -> LossSums | MicroBatch:
        """The statistics of all micro-batches, or the one that memory did not suffice for.

        The error itself is let go of before anything is tried again: its traceback holds the activations.
        """
        parts: list[LossSums] = []
        for batch in batches:
            try:
                parts.append(self._step(batch.to(self._device), samples, normaliser))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return batch
        shape = {"micro_batches": float(len(batches)), "padded_tokens": float(sum(b.padded_tokens for b in batches))}
        return LossSums.merge([LossSums(sums=shape), *parts])

    def _step(self, batch: MicroBatch, samples: Sequence[TrainingSample], normaliser: float) -> LossSums:
        """Forward and backward of one micro-batch."""
        logprobs_N, entropy_N = self._token_logprobs(self._logits, batch)
        inputs = LossInputs(
            logprobs_N=logprobs_N,
            behaviour_logprobs_N=batch.behaviour_logprobs_N,
            advantages_N=batch.advantages_N,
            sequence_tokens_N=batch.sequence_tokens_N,
            entropy_N=entropy_N,
            sequences=batch.rows,
            normaliser=normaliser,
            reference_logprobs_N=self._reference_logprobs(batch),
        )
        output = self.loss(inputs)
        if not torch.isfinite(output.loss):
            raise NonFiniteLoss("the loss", _suspects(inputs, batch, samples))
        output.loss.backward()  # type: ignore[no-untyped-call]
        if not _gradients_are_finite(self.model):
            raise NonFiniteLoss("the gradient", [samples[index].trajectory_id for index in batch.sample_indices_B])
        return output.statistics

    def _token_logprobs(self, logits: SelectedLogits, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        batch = batch.to(self._device)
        with self._norms.active():
            logits_NV = logits(batch.token_ids_BT, batch.positions_N)
        return token_logprobs(logits_NV, batch.target_ids_N, temperature=self.temperature)

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self._reference is None or self._reference_logits is None:
            return None
        adapters_off: AbstractContextManager[object] = nullcontext()
        if self._reference is self.model:
            adapters_off = self.model.disable_adapter()  # type: ignore[operator]
        else:
            _set_mode(self._reference, False)
        with adapters_off:
            return self._token_logprobs(self._reference_logits, batch)[0]

    def _halve(self, failed: MicroBatch) -> int:
        """The next budget after memory ran out at `failed`."""
        if failed.rows == 1:
            raise RunStopped(
                "out_of_memory",
                f"memory does not suffice for a single sample of {failed.padded_tokens} tokens; "
                "shorten max_context_tokens, use LoRA, a smaller dtype or a smaller model",
            )
        self.memory_splits += 1
        self.max_micro_batch_tokens = failed.padded_tokens // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self.max_micro_batch_tokens


def _suspects(inputs: LossInputs, batch: MicroBatch, samples: Sequence[TrainingSample]) -> list[str]:
    """Ids of the samples with a value that is not finite going into the loss; all of the micro-batch if none is."""
    streams = (inputs.logprobs_N.detach(), inputs.behaviour_logprobs_N, inputs.advantages_N)
    bad_N = ~torch.isfinite(torch.stack(streams)).all(dim=0)
    parts = torch.split_with_sizes(bad_N, list(batch.trained_tokens_B))
    bad_B = [bool(part.any()) for part in parts]
    every = not any(bad_B)
    return [
        samples[index].trajectory_id for index, bad in zip(batch.sample_indices_B, bad_B, strict=True) if bad or every
    ]


def _set_mode(model: nn.Module, training: bool) -> None:
    """Switch dropout on or off; walking over every module is left out where nothing changes."""
    if model.training != training:
        model.train(training)


def _gradients_are_finite(model: nn.Module) -> bool:
    """One sum a tensor decides: a NaN or an infinity anywhere makes the sum one."""
    totals = [parameter.grad.sum() for parameter in model.parameters() if parameter.grad is not None]
    return not totals or bool(torch.isfinite(torch.stack(totals)).all())


class _Gradients:
    """The gradients at one moment, to return to; costs memory only where some are not zero."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(trainable_parameters(model).values())
        held = [parameter.grad for parameter in self._parameters]
        empty = not any(gradient is not None and bool(gradient.any()) for gradient in held)
        self._held: list[Tensor | None] | None = None
        if not empty:
            self._held = [gradient if gradient is None else gradient.clone() for gradient in held]

    def restore(self) -> None:
        """Put the gradients back."""
        for place, parameter in enumerate(self._parameters):
            parameter.grad = None if self._held is None else self._held[place]
