"""Weight updates of a real vLLM server."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from vllm_policy import difference, moved, tiny_policy
from vllm_server import serving

from burnish.core.errors import InvariantViolation
from burnish.core.sampling import Sample, SamplingParams
from burnish.integrations import vllm_weights
from burnish.integrations.completions import CompletionsSampler
from burnish.integrations.vllm_weights import VllmWeights, check_arrival, server_state
from burnish.training.export import export_folder

TOLERANCE = 1e-4


@pytest.fixture
def policy() -> Any:
    return tiny_policy()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where the machine has such a place, as a run on one machine would."""
    shared = Path("/dev/shm")
    with TemporaryDirectory(prefix="burnish-", dir=shared if shared.is_dir() else tmp_path) as name:
        yield Path(name)


def pair(server: Any, folder: Path, **options: Any) -> tuple[CompletionsSampler, VllmWeights]:
    sampler = CompletionsSampler(f"{server.url}/v1", "policy")
    return sampler, VllmWeights(sampler, server.url, folder, **options)


def test_new_weights_change_what_is_drawn_to_what_the_learner_says(
    server: Any, policy: Any, folder: Path, note: Callable[[str], None]
) -> None:
    sampler, weights = pair(server, folder)

    async def go() -> None:
        await weights.update(policy.model, 1)
        prompts = policy.prompts(4)
        assert await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE) < TOLERANCE
        for version in (2, 3):
            old = copy.deepcopy(policy.model)
            moved(policy.model)
            # The server still holds the old weights: the canary says so.
            with pytest.raises(InvariantViolation, match="other weights"):
                await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE)
            done = await weights.update(policy.model, version)
            found = await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE)
            note(f"{done}; afterwards {found:.1e} nats")
            assert done.verified == sum(parameter.ndim == 1 for parameter in policy.model.parameters())
            requests = policy.requests(4)
            samples = await sampler.sample(requests)
            assert {v for sample in samples for v in sample.versions} == {version}
            logprobs = [sample.logprobs for sample in samples]
            assert difference(logprobs, policy.score(requests, samples)) < TOLERANCE
            assert difference(logprobs, policy.score(requests, samples, model=old)) > 0.01

    asyncio.run(go())


def test_an_update_that_is_withheld_is_caught_at_the_first_sync(
    server: Any, policy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weights = pair(server, folder)
    asyncio.run(weights.update(policy.model, 1))
    moved(policy.model, 1e-4)  # about one optimizer step
    post = weights._post

    async def without_reload(path: str, *words: Any, **more: Any) -> Any:
        return {} if path == "/collective_rpc" else await post(path, *words, **more)

    monkeypatch.setattr(weights, "_post", without_reload)
    with pytest.raises(InvariantViolation, match="the update did not reach it"):
        asyncio.run(weights.update(policy.model, 2))


def test_an_action_may_span_an_update_and_every_token_is_of_its_version(
    server: Any, policy: Any, folder: Path, note: Callable[[str], None]
) -> None:
    sampler, weights = pair(server, folder, interrupt=True)
    before = copy.deepcopy(policy.model)

    async def go() -> list[Sample]:
        await weights.update(policy.model, 5)
        await sampler.sample(requests[:1])  # a server that has just started is slow with its first requests
        moved(policy.model)
        asking = asyncio.create_task(sampler.sample(requests))
        await asyncio.sleep(0.6)
        note(str(await weights.update(policy.model, 6)))
        return list(await asking)

    requests = policy.requests(8, max_tokens=400, stop_ids=(), params=SamplingParams(temperature=0.9))
    samples = asyncio.run(go())
    assert all(len(sample.token_ids) == 400 for sample in samples)
    spans = [list(sample.versions) for sample in samples]
    cuts = [versions.count(5) for versions in spans]
    note(f"cut after {cuts} of 400 tokens")
    assert all(versions == [5] * cut + [6] * (400 - cut) for versions, cut in zip(spans, cuts, strict=True))
    assert any(0 < cut < 400 for cut in cuts)
    old = policy.score(requests, samples, model=before)
    new = policy.score(requests, samples)
    for sample, cut, was, now in zip(samples, cuts, old, new, strict=True):
        assert difference([sample.logprobs[:cut]], [was[:cut]]) < TOLERANCE
        assert difference([sample.logprobs[cut:]], [now[cut:]]) < TOLERANCE


def test_without_the_output_embedding_a_tied_model_keeps_the_old_one(
    tmp_path: Path, policy: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why both embeddings are sent: every vector arrives, and the canary is what tells."""
    export_folder(policy.model, policy.tokenizer, tmp_path / "tied", stop_ids=policy.renderer.stop_ids)
    with serving(tmp_path / "tied", tmp_path / "server.log", "--dtype", "float32") as served:
        sampler, weights = pair(served, folder)

        async def go() -> None:
            prompts = policy.prompts(4)
            assert await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE) < TOLERANCE
            moved(policy.model)
            with monkeypatch.context() as patch:
                patch.setattr(vllm_weights, "server_state", without_head)
                assert (await weights.update(policy.model, 1)).verified > 0
            with pytest.raises(InvariantViolation, match="other weights"):
                await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE)
            await weights.update(policy.model, 2)
            assert await check_arrival(sampler, prompts, policy.score_actions, tolerance=TOLERANCE) < TOLERANCE

        def without_head(model: Any) -> dict[str, Any]:
            state = server_state(model)
            del state["lm_head.weight"]
            return state

        asyncio.run(go())
