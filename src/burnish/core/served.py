"""The protocol between the loop and a policy that somebody else's server samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from burnish.core.sampling import Sample, SampleRequest


class PolicyServer(Protocol):
    """A sampler outside of the run that follows the weights of the learner.

    All calls come from one event loop; while `follow` runs, requests may be under way.
    """

    async def open(self) -> int | None:
        """Find the server; the tokens that prompt and action may have together, None where it does not say."""
        ...

    async def follow(self, model: Any, version: int) -> None:
        """Make the server hold the weights of `model` as `version`; raises RunStopped where it does not."""
        ...

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        """One sample for each request, in order, every token with the version that drew it."""
        ...
