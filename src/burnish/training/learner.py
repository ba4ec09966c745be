"""The learner: training samples to gradients, for any loss.

It knows nothing about an algorithm beyond `algorithms.loss.Loss`.  A batch may be cut into micro-batches and shards in
any way: with the normaliser of the whole batch given, their gradients add up to the same sum.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from burnish.algorithms.loss import Loss, LossInputs, LossSums
from burnish.algorithms.packing import MicroBatch
from burnish.core.errors import ConfigError, InvariantViolation, RunStopped
from burnish.core.learning import TrainingSample
from burnish.training.failures import NonFiniteLoss, is_out_of_memory
from burnish.training.gradients import trainable_parameters
from burnish.training.passes import Passes, passes_for
from burnish.training.token_record import TokenRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """What holds for all micro-batches of one call.  `_Whole(samples=[...], normaliser=9.0, ...)`"""

    samples: Sequence[TrainingSample]
    normaliser: float
    version: int | None
    trust_limit: float
    record: TokenRecord | None = None


class Learner:
    """Adds the gradients of a loss to a model's `.grad`; the optimizer is somebody else's.

    model: a causal language model, peft-wrapped or not.  temperature: that of sampling (1 for SFT).
    max_micro_batch_tokens: tokens, padding included, that go through the model at once; halved for good whenever memory
    runs out (`memory_splits` counts).  pad_id: any id, even that of a real token.  reference: a frozen model for the KL
    term; the same object as `model` stands for a peft-wrapped model with its adapters switched off.  dropout: whether
    the model's dropout is active in `accumulate`; off, the ratio of learner to behaviour is 1 on fresh samples.

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
        self._dropout = dropout
        self._device = next(model.parameters()).device
        self._reference = reference
        self._passes, *others = passes_for(model, reference, pad_id=pad_id, dropout=dropout)
        self._reference_passes: Passes | None = others[0] if others else None

    def normaliser(self, samples: Sequence[TrainingSample]) -> float:
        """The loss's normaliser of these samples; add up those of the shards of a batch for that of the batch."""
        return self.loss.normaliser(samples)

    def accumulate(
        self,
        samples: Sequence[TrainingSample],
        normaliser: float,
        *,
        version: int | None = None,
        trust_limit: float = math.inf,
        max_micro_batch_tokens: int | None = None,
        record: TokenRecord | None = None,
    ) -> LossSums:
        """Add the gradient of the loss over `samples`, divided by `normaliser`, to the model's gradients.

        normaliser: of the whole batch, above 0 where anything is trained.  version: of the model as it is, for the
        staleness of every token; None where versions mean nothing.  trust_limit: of the whole batch, for losses that
        decide over it (`Loss.trust_limit`).  max_micro_batch_tokens: another cut for this call.  record: filled with
        what was computed at every trained token.

        Raises NonFiniteLoss (naming trajectories), InvariantViolation (tokens that this version or these kept sets
        cannot have given) or RunStopped (out of memory with a single sample); then the gradients are as they were.
        """
        _set_mode(self.model, self._dropout)
        while True:
            batches = self._cut(samples, max_micro_batch_tokens)
            if version is not None:
                _check_versions(batches, version)
            if batches and not normaliser > 0:
                raise ValueError(f"normaliser is above 0 where tokens are trained, got {normaliser}")
            whole = _Whole(
                samples=samples, normaliser=normaliser, version=version, trust_limit=trust_limit, record=record
            )
            if record is not None:
                record.begin(samples)
            self._begin()
            try:
                failed = self._accumulate(batches, whole)
            except BaseException:
                self._passes.undo()
                raise
            if isinstance(failed, LossSums):
                return failed
            self._passes.undo()
            max_micro_batch_tokens = self._halve(failed)

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[array[float]]:
        """Log-probabilities of the trained tokens under the model as it is, teacher-forced.

        One array('f') of T nats for each sample, 0 outside the loss mask, as in `behaviour_logprobs`.
        """
        scores = [array("f", bytes(4 * sample.length)) for sample in samples]
        _set_mode(self.model, False)
        self._passes.begin()
        for batch in self._cut(samples, None):
            logprobs_N = self._passes.token_logprobs(batch.to(self._device), self.temperature).logprobs_N
            parts = np.split(logprobs_N.float().cpu().numpy(), np.cumsum(batch.trained_tokens_B)[:-1])
            for index, part in zip(batch.sample_indices_B, parts, strict=True):
                trained = np.frombuffer(samples[index].loss_mask, dtype=np.int8) != 0
                np.frombuffer(scores[index], dtype=np.float32)[trained] = part
        self._passes.undo()
        return scores

    def with_proximal(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with `proximal_logprobs` of the model as it is; for the start of a step, before its updates."""
        scores = self.score(samples)
        return [replace(sample, proximal_logprobs=score) for sample, score in zip(samples, scores, strict=True)]

    def _cut(self, samples: Sequence[TrainingSample], max_tokens: int | None) -> list[MicroBatch]:
        budget = min(max_tokens or self.max_micro_batch_tokens, self.max_micro_batch_tokens)
        return self._passes.cut(samples, budget)

    def _begin(self) -> None:
        self._passes.begin()
        if self._reference_passes is not None:
            with torch.no_grad():
                self._reference_passes.begin()

    def _accumulate(self, batches: Sequence[MicroBatch], whole: _Whole) -> LossSums | MicroBatch:
        """The statistics of all micro-batches, or the one that memory did not suffice for.

        The error itself is let go of before anything is tried again: its traceback holds the activations.
        """
        parts: list[LossSums] = []
        for batch in batches:
            try:
                parts.append(self._step(batch.to(self._device), whole))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return batch
        if not self._passes.finish():
            raise NonFiniteLoss("the gradient", [sample.trajectory_id for sample in whole.samples])
        shape = {"micro_batches": float(len(batches)), "padded_tokens": float(sum(b.padded_tokens for b in batches))}
        return LossSums.merge([LossSums(sums=shape), *parts])

    def _step(self, batch: MicroBatch, whole: _Whole) -> LossSums:
        """Forward and backward of one micro-batch."""
        record = whole.record
        wanted = record is not None and record.score_norm
        scores = self._passes.token_logprobs(batch, self.temperature, score_norm=wanted)
        inputs = LossInputs(
            logprobs_N=scores.logprobs_N,
            behaviour_logprobs_N=batch.behaviour_logprobs_N,
            proximal_logprobs_N=batch.proximal_logprobs_N,
            reference_logprobs_N=self._reference_logprobs(batch),
            advantages_N=batch.advantages_N,
            sequence_N=batch.sequence_N,
            sequence_tokens_N=batch.sequence_tokens_N,
            staleness_N=None if whole.version is None else whole.version - batch.versions_N,
            entropy_N=scores.entropy_N,
            sequences=batch.rows,
            normaliser=whole.normaliser,
            trust_limit=whole.trust_limit,
        )
        if record is not None:
            record.add(batch, scores, inputs.reference_logprobs_N)
        output = self.loss(inputs)
        if not torch.isfinite(output.loss):
            raise NonFiniteLoss("the loss", _suspects(inputs, batch, whole.samples))
        output.loss.backward()  # type: ignore[no-untyped-call]
        if not self._passes.gradients_are_finite():
            raise NonFiniteLoss(
                "the gradient", [whole.samples[index].trajectory_id for index in batch.sample_indices_B]
            )
        return output.statistics

    @torch.no_grad()
    def _reference_logprobs(self, batch: MicroBatch) -> Tensor | None:
        if self._reference is None or self._reference_passes is None:
            return None
        adapters_off: AbstractContextManager[object] = nullcontext()
        if self._reference is self.model:
            adapters_off = self.model.disable_adapter()  # type: ignore[operator]
        else:
            _set_mode(self._reference, False)
        with adapters_off:
            return self._reference_passes.token_logprobs(batch, self.temperature).logprobs_N

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


def _check_versions(batches: Sequence[MicroBatch], version: int) -> None:
    """Nothing can have been drawn by a version that does not exist yet, or by none."""
    for batch in batches:
        oldest, newest = int(batch.versions_N.min()), int(batch.versions_N.max())
        if oldest < 0 or newest > version:
            raise InvariantViolation(
                "staleness",
                f"trained tokens carry versions {oldest} to {newest}, and the learner is at version {version}; "
                "a version is the number of optimizer steps when the token was drawn",
            )


def _suspects(inputs: LossInputs, batch: MicroBatch, samples: Sequence[TrainingSample]) -> list[str]:
    """Ids of the samples with a value that is not finite going into the loss; all of the micro-batch if none is."""
    streams = [inputs.logprobs_N.detach(), inputs.behaviour_logprobs_N, inputs.advantages_N]
    if inputs.proximal_logprobs_N is not None:
        streams.append(inputs.proximal_logprobs_N)
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
