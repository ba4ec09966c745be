"""The embedded sampler: draws from a transformers model in this process."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from burnish.core.errors import ConfigError
from burnish.core.sampling import Finish, Sample, SampleRequest
from burnish.policies.batch import Batch, Drawn, RecomputedBatch
from burnish.policies.checksum import quick_sums, weight_checksum
from burnish.policies.forward import Forward, plan_units
from burnish.policies.prefixes import PrefixStore

__all__ = ["EmbeddedSampler", "SamplerCounts", "weight_checksum"]

_PREFILL_TOKENS_CPU = 2048
_PREFILL_TOKENS_GPU = 16384


@dataclass(slots=True, kw_only=True)
class SamplerCounts:
    """Running totals of one sampler; `SamplerCounts(generated_tokens=3840, busy_s=0.3)` is 12 800 tokens/s.

    prompt_tokens: of all requests.  prefilled_tokens: those of them that went through the model; the rest were shared
    within a batch or still cached from the turn before.
    """

    requests: int = 0
    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    busy_s: float = 0.0


class EmbeddedSampler:
    """A `Sampler` over a causal language model of transformers, with or without adapters.

    Requests decode together in batches of up to `max_rows`.  Equal prompts are prefilled once, a prompt that continues
    an earlier one of the same policy version only by what is new, and finished rows leave the batch.  What a request
    draws depends on its seed and the model alone; its log-probabilities agree with a plain forward pass to 1e-4 in
    float32.

    Models whose state is more than keys and values (recurrent and hybrid ones) are read from the start for every token:
    right, but slow.

    `version` is set by the owner after each change of the weights, which also forgets all cached keys and values.  (A
    change that was not announced is noticed too, by sums over the weights.)  `prefix_cache_bytes` bounds what is kept
    between calls; 0 keeps nothing.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int,
        device: torch.device | str | None = None,
        max_rows: int = 256,
        prefix_cache_bytes: int = 256 * 2**20,
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {max_rows}")
        self.model = model if device is None else model.to(device)
        self.device = next(model.parameters()).device
        self.pad_id = pad_id
        self.max_rows = max_rows
        self.counts = SamplerCounts()
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        on_cpu = self.device.type == "cpu"
        self._forward = Forward(model, prefill_tokens=_PREFILL_TOKENS_CPU if on_cpu else _PREFILL_TOKENS_GPU)
        self._store = PrefixStore(prefix_cache_bytes)
        self._sums: list[float] = []
        self._version = 0

    @property
    def version(self) -> int:
        """The policy version that samples are marked with."""
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        self._version = value
        self.forget()

    def forget(self) -> None:
        """Drop cached keys and values.  A run that must resume bit for bit does so at every step boundary: reuse
        changes log-probabilities by rounding, and a resumed process starts with nothing cached."""
        self._store.clear()

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One sample for each request, in order; see `sample_now`.  Holds the event loop while it computes."""
        return self.sample_now(requests)

    def sample_now(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One sample for each request, in order.

        Raises ValueError for an empty prompt, an id outside the vocabulary or max_tokens < 1, ConfigError for a prompt
        that leaves no room within the model's positions, RunStopped where the logits are not finite.
        """
        started = time.perf_counter()
        requests = [self._checked(request) for request in requests]
        was_training = self.model.training
        if was_training:
            self.model.eval()
        try:
            with torch.inference_mode():
                self._forget_stale()
                samples: list[Sample] = []
                for start in range(0, len(requests), self.max_rows):
                    samples += self._run(requests[start : start + self.max_rows])
        finally:
            if was_training:
                self.model.train()
        self.counts.busy_s += time.perf_counter() - started
        return samples

    def _run(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        units = plan_units(requests, self._store)
        kind = Batch if self._forward.caches else RecomputedBatch
        batch = kind(self._forward, requests, units, self.pad_id)
        batch.run()
        drawn = batch.results()
        self._store.add(batch.cache, batch.prefixes())
        self.counts.requests += len(requests)
        self.counts.prompt_tokens += sum(len(request.prompt_ids) for request in requests)
        self.counts.prefilled_tokens += sum(unit.new_tokens for unit in units)
        self.counts.generated_tokens += sum(len(one.token_ids) for one in drawn)
        return [self._sample(one) for one in drawn]

    def _sample(self, drawn: Drawn) -> Sample:
        token_ids, logprobs = array("i"), array("f")
        token_ids.frombytes(drawn.token_ids.tobytes())
        logprobs.frombytes(drawn.logprobs.tobytes())
        finish = Finish.STOP if drawn.stopped else Finish.LENGTH
        versions = array("i", [self._version]) * len(token_ids)
        return Sample(token_ids=token_ids, logprobs=logprobs, versions=versions, finish=finish)

    def _forget_stale(self) -> None:
        """Cached keys and values belong to the weights that made them."""
        sums = quick_sums(self.model) if self._store.max_bytes else []
        if sums != self._sums:
            self._store.clear()
            self._sums = sums

    def _checked(self, request: SampleRequest) -> SampleRequest:
        """The request with its budget cut to the model's positions."""
        length = len(request.prompt_ids)
        if length == 0:
            raise ValueError(f"request {request.key!r} has an empty prompt; a prompt holds at least one token")
        if request.max_tokens < 1:
            raise ValueError(f"request {request.key!r} asks for {request.max_tokens} tokens; at least 1 is needed")
        ids = np.frombuffer(request.prompt_ids, np.int32)
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocabulary:
            raise ValueError(
                f"request {request.key!r} holds id {low if low < 0 else high}, outside the model's vocabulary of "
                f"{self.vocabulary}; the tokenizer and the model do not belong together"
            )
        if self.max_positions is None or length + request.max_tokens <= self.max_positions:
            return request
        if length >= self.max_positions:
            raise ConfigError(
                f"the prompt of request {request.key!r} has {length} tokens and the model {self.max_positions} "
                f"positions; set limits.max_context_tokens below {self.max_positions}"
            )
        return SampleRequest(
            key=request.key,
            prompt_ids=request.prompt_ids,
            params=request.params,
            max_tokens=self.max_positions - length,
            seed=request.seed,
            stop_ids=request.stop_ids,
        )
