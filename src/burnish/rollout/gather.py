"""Requests that come one at a time, handed to a sampler in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from burnish.core.errors import InvariantViolation
from burnish.core.sampling import Sample, Sampler, SampleRequest

MAX_WAIT_S = 0.05


class GatheredSampler:
    """A sampler that joins concurrent calls into batches of another one, which is asked for one batch at a time.

    A batch is sent off once no request has come for `quiet_s` seconds (at most MAX_WAIT_S after the first), or with
    `max_batch` requests; those that come while it is drawn are the next.  What raises in a batch raises for every
    request of it.  A cancelled request leaves its batch; its sample is dropped.
    """

    def __init__(self, sampler: Sampler, *, quiet_s: float = 0.003, max_batch: int = 256) -> None:
        self._sampler = sampler
        self._quiet_s = quiet_s
        self._max_batch = max_batch
        self._waiting: list[tuple[SampleRequest, asyncio.Future[Sample]]] = []
        self._driver: asyncio.Task[None] | None = None

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """One sample for each request, in order."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Sample]] = [loop.create_future() for _ in requests]
        self._waiting += zip(requests, futures, strict=True)
        if self._waiting and (self._driver is None or self._driver.done()):
            self._driver = asyncio.ensure_future(self._drive())
        return list(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Stop; requests that still wait are cancelled."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.cancel()
            await asyncio.wait([driver])
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()

    async def _drive(self) -> None:
        while self._waiting:
            await self._settle()
            self._waiting = [pair for pair in self._waiting if not pair[1].done()]
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            if batch:
                await self._draw(batch)

    async def _settle(self) -> None:
        """Wait until requests stop coming."""
        end_s = asyncio.get_running_loop().time() + MAX_WAIT_S
        seen = 0
        while seen < len(self._waiting) < self._max_batch and asyncio.get_running_loop().time() < end_s:
            seen = len(self._waiting)
            await asyncio.sleep(self._quiet_s)

    async def _draw(self, batch: Sequence[tuple[SampleRequest, asyncio.Future[Sample]]]) -> None:
        try:
            samples = await self._sampler.sample([request for request, _ in batch])
            if len(samples) != len(batch):
                raise InvariantViolation("sample_count", f"{len(batch)} requests came back as {len(samples)} samples")
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.cancel() if isinstance(error, asyncio.CancelledError) else future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), sample in zip(batch, samples, strict=True):
            if not future.done():
                future.set_result(sample)
