"""The embedded sampler: draws from a transformers model in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from burnish.core.errors import ConfigError
from burnish.core.sampling import Sample, SampleRequest
from burnish.policies.checksum import quick_sums, weight_checksum
from burnish.policies.draw import check_params
from burnish.policies.engine import Engine, Row
from burnish.policies.forward import Forward, choose_forward
from burnish.policies.lean import LeanForward
from burnish.policies.results import SamplerCounts
from burnish.policies.sight import number_images

__all__ = ["EmbeddedSampler", "SamplerCounts", "quick_sums", "weight_checksum"]

_PREFILL_TOKENS_CPU = 2048
_PREFILL_TOKENS_GPU = 16384


class EmbeddedSampler:
    """A `Sampler` over a causal language model of transformers, with or without adapters.

    The requests of all callers decode together, up to `max_rows` at once; who ends makes room for the next.  Equal
    prompts are prefilled once, and a prompt that continues an earlier text only by what is new.  What a request draws
    depends on its seed and the model alone; its log-probabilities agree with a plain forward pass to 1e-4 in float32.

    `sample` may be awaited by many tasks of one event loop; between two decode steps the loop goes on with other work.
    `sample_now` is for callers without a loop.  Not for use by two threads.  Images are encoded once for each state of
    the weights.

    `version` is set by the owner after each change of the weights, between steps, and marks the next tokens; rows in
    flight go on from the keys and values they have, finished texts are forgotten unless
    `keep_prefixes_across_versions`.  Between `hold()` and `release()` no step is taken for `sample`.  A change of the
    weights that was not announced is noticed when the next batch begins.  `prefix_cache_bytes` bounds the keys and
    values of finished texts; 0 keeps nothing.

    forward: how logits are computed, by default whatever `choose_forward` finds fastest and right.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_id: int,
        device: torch.device | str | None = None,
        max_rows: int = 256,
        prefix_cache_bytes: int = 256 * 2**20,
        keep_prefixes_across_versions: bool = False,
        forward: Forward | None = None,
    ) -> None:
        if max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1, got {max_rows}")
        self.model = model if device is None else model.to(device)
        self.device = next(model.parameters()).device
        self.pad_id = pad_id
        self.max_rows = max_rows
        self.keep_prefixes_across_versions = keep_prefixes_across_versions
        self.counts = SamplerCounts()
        config = model.config.get_text_config()
        self.vocabulary = int(config.vocab_size)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.forward = forward if forward is not None else choose_forward(model)
        self._engine = self._new_engine(prefix_cache_bytes)
        self._sums: list[float] = quick_sums(self.model)
        self._changed = False
        self._version = 0
        self._released: asyncio.Event | None = None
        self._driver: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.Future[Sample], Row] = {}

    @property
    def version(self) -> int:
        """The policy version that the next tokens are marked with."""
        return self._version

    @version.setter
    def version(self, value: int) -> None:
        self._version = value
        self._changed = True
        self._engine.set_version(value, keep_prefixes=self.keep_prefixes_across_versions)

    @property
    def live(self) -> int:
        """Requests that are decoding."""
        return self._engine.live

    @property
    def queued(self) -> int:
        """Requests that wait for room."""
        return len(self._engine.queue)

    def hold(self) -> None:
        """Take no further step for `sample` until `release`; callers wait.  To be called by the event loop's thread."""
        if self._released is None:
            self._released = asyncio.Event()

    def release(self) -> None:
        """Go on after `hold`."""
        if self._released is not None:
            self._released.set()
            self._released = None

    async def follow(self, version: int, canary: Sequence[SampleRequest]) -> Sequence[Sample]:
        """The weights are now those of `version`: go on after `hold`; what they draw for `canary`."""
        self.version = version
        samples = self.sample_now(canary) if canary else []
        self.release()
        return samples

    def forget(self) -> None:
        """Drop held texts.  A run that must resume bit for bit does so at every step boundary: reuse changes
        log-probabilities by rounding, and a resumed process starts with nothing held."""
        self._engine.forget()

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One sample for each request, in order; errors as in `sample_now`.

        Other tasks run between decode steps.  Cancelling the call withdraws its requests and no others.
        """
        checked = [self._checked(request) for request in requests]
        loop = asyncio.get_running_loop()
        self._join(loop)
        futures = [self._queue(request, loop) for request in checked]
        if futures and (self._driver is None or self._driver.done()):
            self._driver = loop.create_task(self._drive())
        try:
            return list(await asyncio.gather(*futures))
        finally:
            self._withdraw(futures)

    def sample_now(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One sample for each request, in order, without an event loop; requests of `sample` in flight stand still.

        Raises ValueError for an empty prompt, an id outside the vocabulary, max_tokens < 1 or parameters out of range,
        ConfigError for a prompt that leaves no room within the model's positions, RunStopped where the logits are not
        finite.
        """
        checked = [self._checked(request) for request in requests]
        # rows in flight must not move while they are held or waited for
        engine = self._new_engine(0) if self._engine.busy else self._engine
        engine.version = self._version
        found: dict[int, Sample] = {}
        self._notice_changes()
        self.counts.requests += len(checked)
        try:
            for index, request in enumerate(checked):
                engine.submit(request, partial(found.__setitem__, index), self._numbered(request))
            while engine.busy:
                self._advance(engine)
        finally:
            if engine.busy:
                engine.reset()
        return [found[index] for index in range(len(checked))]

    # -- the driver ------------------------------------------------------------------------------------------------

    def _join(self, loop: asyncio.AbstractEventLoop) -> None:
        """One loop at a time; what a closed loop left behind is dropped."""
        if self._driver is not None and not self._driver.done() and self._driver.get_loop() is not loop:
            if not self._driver.get_loop().is_closed():
                raise RuntimeError("this sampler is in use by another event loop; give each loop a sampler of its own")
            self._engine.withdraw(list(self._waiting.values()))
            self._waiting.clear()
            self._driver = None
        if not self._engine.busy:
            self._notice_changes()

    def _queue(self, request: SampleRequest, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Sample]:
        future: asyncio.Future[Sample] = loop.create_future()
        self._waiting[future] = self._engine.submit(request, _deliver_to(future), self._numbered(request))
        self.counts.requests += 1
        return future

    def _withdraw(self, futures: Sequence[asyncio.Future[Sample]]) -> None:
        rows = [(future, self._waiting.pop(future)) for future in futures if future in self._waiting]
        unwanted = [row for future, row in rows if future.cancelled() or not future.done()]
        if unwanted:
            self._engine.withdraw(unwanted)

    async def _drive(self) -> None:
        """Step while there is work.  The boundary at which an error of the model becomes that of all who wait."""
        try:
            while self._engine.busy:
                if self._released is not None:
                    await self._released.wait()
                    continue
                self._advance(self._engine)
                await asyncio.sleep(0)
        except Exception as error:  # noqa: BLE001 - the boundary: nobody may wait for ever
            self._engine.reset()
            for future in self._waiting:
                if not future.done():
                    future.set_exception(error)
        finally:
            for future in self._waiting:
                future.cancel()

    def _advance(self, engine: Engine) -> None:
        """One step, with the weights as they are."""
        started = time.perf_counter()
        if self._changed:
            self._changed = False
            self._sums = quick_sums(self.model)
            self.forward.refresh()
        # dropout is no part of the lean pass
        was_training = self.model.training and not isinstance(self.forward, LeanForward)
        if was_training:
            self.model.eval()
        try:
            with torch.inference_mode():
                engine.advance()
        finally:
            if was_training:
                self.model.train()
        self.counts.busy_s += time.perf_counter() - started

    def _notice_changes(self) -> None:
        """Packed weights and held texts belong to the weights that made them."""
        if not self._changed and quick_sums(self.model) != self._sums:
            self._changed = True
            self._engine.prefixes.clear()

    def _new_engine(self, warm_bytes: int) -> Engine:
        return Engine(
            self.forward,
            vocabulary=self.vocabulary,
            max_rows=self.max_rows,
            warm_bytes=warm_bytes,
            prefill_tokens=_PREFILL_TOKENS_CPU if self.device.type == "cpu" else _PREFILL_TOKENS_GPU,
            counts=self.counts,
        )

    def _numbered(self, request: SampleRequest) -> npt.NDArray[np.int32] | None:
        if not request.images:
            return None
        ids = np.frombuffer(request.prompt_ids, np.int32)
        return number_images(self.model, ids, request.images, where=f"request {request.key!r}")

    def _checked(self, request: SampleRequest) -> SampleRequest:
        """The request with its budget cut to the model's positions."""
        length = len(request.prompt_ids)
        if length == 0:
            raise ValueError(f"request {request.key!r} has an empty prompt; a prompt holds at least one token")
        if request.max_tokens < 1:
            raise ValueError(f"request {request.key!r} asks for {request.max_tokens} tokens; at least 1 is needed")
        check_params(request.params)
        ids = np.frombuffer(request.prompt_ids, np.int32)
        # As an unsigned number a negative id is larger than any vocabulary.
        if int(ids.view(np.uint32).max()) >= self.vocabulary:
            low, high = int(ids.min()), int(ids.max())
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
            images=request.images,
        )


def _deliver_to(future: asyncio.Future[Sample]) -> Callable[[Sample], None]:
    def deliver(sample: Sample) -> None:
        if not future.done():
            future.set_result(sample)

    return deliver
