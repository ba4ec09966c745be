"""A server's sampler with what a shard asks of a sampler of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.sampling import Sample, SampleRequest
from burnish.core.served import PolicyServer


@dataclass(slots=True)
class ServedCounts:
    """What was asked for and drawn so far."""

    requests: int = 0
    generated_tokens: int = 0


class ServedSampler:
    """`ServedSampler(server, model)`: the weights of `model` go to the server whenever there are new ones.

    context_tokens: what the server must be able to hold.  The server keeps prefixes by itself, and the weights that it
    has until it is given others, so that nothing must be forgotten or held back here.
    """

    def __init__(self, server: PolicyServer, model: Any) -> None:
        config = getattr(model, "config", None)
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)
        self.context_tokens = 0
        self.version = 0
        self.counts = ServedCounts()
        self._server = server
        self._model = model
        self._opened = False

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order."""
        self.counts.requests += len(requests)
        samples = await self._server.sample(requests)
        self.counts.generated_tokens += sum(len(sample.token_ids) for sample in samples)
        return samples

    async def follow(self, version: int, canary: Sequence[SampleRequest]) -> Sequence[Sample]:
        """Hand over the weights as `version`; what the server then draws for `canary`.

        Raises ConfigError where the server cannot hold `context_tokens`, else what the server raises.
        """
        if not self._opened:
            positions = await self._server.open()
            if positions is not None and positions < self.context_tokens:
                raise ConfigError(
                    f"the server holds {positions} tokens and limits.max_context_tokens is {self.context_tokens}; "
                    "lower it, or start the server with a larger --max-model-len"
                )
            self._opened = True
        await self._server.follow(self._model, version)
        self.version = version
        return await self.sample(canary) if canary else []

    def forget(self) -> None:
        """Nothing is kept here."""

    def hold(self) -> None:
        """Actions go on under the weights that the server has."""
