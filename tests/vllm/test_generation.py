"""Tokens and log-probabilities of a real vLLM server."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from vllm_policy import difference, tiny_policy

from burnish.core.errors import ConfigError
from burnish.core.sampling import Finish, SamplingParams
from burnish.integrations.completions import CompletionsOptions, CompletionsSampler
from burnish.testing.sampler import SamplerConformance

TOLERANCE = 1e-4
"""Nats, float32 against float32; 2e-6 was measured."""


@pytest.fixture(scope="module")
def policy() -> Any:
    return tiny_policy()


class TestServer(SamplerConformance):
    tolerance = 1e-4

    @pytest.fixture(autouse=True)
    def _serve(self, server: Any, policy: Any) -> None:
        self.server = server
        self.vocab_size = policy.model.config.vocab_size
        self.stop_ids = policy.renderer.stop_ids
        self.prompts = policy.prompts(3)

    def make_sampler(self) -> CompletionsSampler:
        return sampler(self.server)


def sampler(server: Any, **options: Any) -> CompletionsSampler:
    return CompletionsSampler(f"{server.url}/v1", "policy", options=CompletionsOptions(max_kept=64, **options))


def test_the_server_is_what_it_is_taken_for(server: Any) -> None:
    facts = asyncio.run(sampler(server).facts())
    assert (facts.max_positions, facts.processed_logprobs) == (512, True)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=5),
        SamplingParams(temperature=0.3, top_p=0.3),
        SamplingParams(temperature=0.8, top_p=0.8, top_k=7),
    ],
)
def test_log_probabilities_agree_with_the_learner(
    server: Any, policy: Any, params: SamplingParams, note: Callable[[str], None]
) -> None:
    requests = policy.requests(8, params)
    samples = asyncio.run(sampler(server).sample(requests))
    found = difference([sample.logprobs for sample in samples], policy.score(requests, samples))
    note(f"{params}: {found:.1e} nats over {sum(len(s.token_ids) for s in samples)} tokens")
    assert found < TOLERANCE
    cut = params.top_k > 0 or params.top_p < 1
    assert all((sample.kept is not None) == cut for sample in samples)


def test_a_stop_id_ends_the_action_and_is_kept(server: Any, policy: Any) -> None:
    # Ids that come early with these seeds, so that stops are seen for sure.
    free = asyncio.run(sampler(server).sample(policy.requests(4, stop_ids=())))
    assert all(len(sample.token_ids) == 24 for sample in free)
    stop_ids = tuple({sample.token_ids[5] for sample in free})
    stopped = asyncio.run(sampler(server).sample(policy.requests(4, stop_ids=stop_ids)))
    assert all(sample.finish is Finish.STOP and len(sample.token_ids) <= 6 for sample in stopped)
    for whole, part in zip(free, stopped, strict=True):
        assert whole.token_ids[: len(part.token_ids)] == part.token_ids


def test_the_context_of_the_server_bounds_an_action(server: Any, policy: Any) -> None:
    [request] = policy.requests(1)[:1]
    long = replace(request, prompt_ids=array("i", [5] * 500), stop_ids=(), max_tokens=40)
    [sample] = asyncio.run(sampler(server).sample([long]))
    assert (len(sample.token_ids), sample.finish) == (12, Finish.LENGTH)
    with pytest.raises(ConfigError, match="max_context_tokens"):
        asyncio.run(sampler(server).sample([replace(long, prompt_ids=array("i", [5] * 512))]))


def test_throughput(server: Any, policy: Any, note: Callable[[str], None]) -> None:
    ours = sampler(server)
    requests = policy.requests(64, max_tokens=64, stop_ids=())
    asyncio.run(ours.sample(requests[:8]))
    started = time.perf_counter()
    samples = asyncio.run(ours.sample(requests))
    seconds = time.perf_counter() - started
    tokens = sum(len(sample.token_ids) for sample in samples)
    note(f"{tokens} tokens of {len(requests)} requests in {seconds:.2f} s: {tokens / seconds:.0f} tokens/s")
    assert tokens == 64 * len(requests)
