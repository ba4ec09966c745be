"""A run's policy on a vLLM server: the sampler and the weight updates as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.core.sampling import Sample, SampleRequest
from burnish.integrations.completions import CompletionsOptions, CompletionsSampler
from burnish.integrations.vllm_weights import VllmWeights


class VllmPolicy:
    """A core `PolicyServer`.  `VllmPolicy("http://127.0.0.1:8000", "policy", Path("/dev/shm/run"))`

    url: of the server, without /v1.  folder: seen by this process and by the server.  interrupt: an update cuts running
    actions, which go on with the new weights; otherwise it waits for them.
    """

    def __init__(
        self,
        url: str,
        model: str,
        folder: Path,
        *,
        api_key: str = "",
        max_in_flight: int = 256,
        interrupt: bool = False,
    ) -> None:
        root = url.rstrip("/").removesuffix("/v1")
        options = CompletionsOptions(max_in_flight=max_in_flight)
        self.sampler = CompletionsSampler(f"{root}/v1", model, api_key, options=options)
        self._weights = VllmWeights(self.sampler, root, folder, api_key, interrupt=interrupt)

    async def open(self) -> int | None:
        return (await self.sampler.facts()).max_positions

    async def follow(self, model: Any, version: int) -> None:
        await self._weights.update(model, version)

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        return await self.sampler.sample(requests)
