"""Weight updates against a server that answers like vLLM: they arrive, or it is noticed."""

from __future__ import annotations

import asyncio
import itertools
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fake_vllm import FakeVllm, fake_vllm
from safetensors.torch import load_file

from burnish.core.errors import InvariantViolation, RunStopped
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.integrations.completions import CompletionsSampler
from burnish.integrations.vllm_weights import VllmWeights, check_arrival, server_folder, server_state
from burnish.policies.tokenizer import train_tokenizer
from burnish.training.lora import LoraSpec, add_lora

torch.set_num_threads(1)


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


def tiny(tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        tie_word_embeddings=tied,
    )
    return transformers.Qwen3ForCausalLM(config).eval()


def move(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)


async def no_sleep(_: float) -> None:
    return None


def weights(fake: FakeVllm, folder: Path, **options: Any) -> tuple[CompletionsSampler, VllmWeights]:
    sampler = CompletionsSampler(f"{fake.url}/v1", "policy")
    return sampler, VllmWeights(sampler, fake.url, folder, sleep=no_sleep, **options)


def ask(sampler: CompletionsSampler, count: int = 1, max_tokens: int = 20) -> Any:
    requests = [
        SampleRequest(
            key=str(index),
            prompt_ids=array("i", [1, 2]),
            params=SamplingParams(),
            max_tokens=max_tokens,
            seed=index,
            stop_ids=(),
        )
        for index in range(count)
    ]
    return sampler.sample(requests)


def test_an_update_arrives_whole_and_in_order(fake: FakeVllm, tmp_path: Path) -> None:
    model = tiny()
    sampler, ours = weights(fake, tmp_path)
    done = asyncio.run(ours.update(model, 7))
    assert [call.partition("?")[0] for call in fake.calls] == [
        "/pause",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/weight_info",
        "/weight_checker",
        "/resume",
    ]
    assert (sampler.version, fake.version, done.version) == (7, "7", 7)
    assert done.verified == sum(parameter.ndim == 1 for parameter in model.parameters()) == 5
    assert done.size_bytes > 4 * sum(parameter.numel() for parameter in model.parameters())
    assert not list(tmp_path.iterdir())
    [sample] = asyncio.run(ask(sampler))
    assert set(sample.versions) == {7}


def test_an_update_that_is_withheld_is_caught_at_the_first_sync(fake: FakeVllm, tmp_path: Path) -> None:
    model = tiny()
    sampler, ours = weights(fake, tmp_path)
    asyncio.run(ours.update(model, 1))
    fake.withheld = True
    asyncio.run(ours.update(model, 2))  # equal weights: nothing to miss
    move(model)
    with pytest.raises(InvariantViolation, match="the update did not reach it"):
        asyncio.run(ours.update(model, 3))
    assert sampler.version == 2
    assert fake.open.is_set(), "a server that stays paused would let every later request hang"
    with pytest.raises(RunStopped, match="did not reach it"):
        asyncio.run(ask(sampler))


def test_without_checksums_the_canary_tells(fake: FakeVllm, tmp_path: Path) -> None:
    fake.missing.add("/weight_checker")
    model = tiny()
    sampler, ours = weights(fake, tmp_path)
    prompts = [array("i", [1, 2]), array("i", [3])]

    def score(prompts: Sequence[array[int]], actions: Sequence[array[int]]) -> list[list[float]]:
        """What a learner that holds the same table would say."""
        held = FakeVllm()
        held.shift = sum(p.mean().item() for p in model.parameters() if p.ndim == 1)
        body = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        rows = []
        for prompt, action in zip(prompts, actions, strict=True):
            path = [prompt[-1], *action]
            rows.append([_log(held.distribution(a, body)[b]) for a, b in itertools.pairwise(path)])
        return rows

    assert asyncio.run(ours.update(model, 1)).verified == 0
    assert asyncio.run(check_arrival(sampler, prompts, score, tolerance=1e-4)) < 1e-6
    fake.withheld = True
    move(model)
    asyncio.run(ours.update(model, 2))
    with pytest.raises(InvariantViolation, match="other weights"):
        asyncio.run(check_arrival(sampler, prompts, score, tolerance=1e-4))


def _log(chance: float) -> float:
    return float(torch.log(torch.tensor(chance)))


@pytest.mark.parametrize("interrupt", [True, False])
def test_what_is_under_way_is_cut_or_waited_for(fake: FakeVllm, tmp_path: Path, interrupt: bool) -> None:
    fake.delay_s = 0.01
    sampler, ours = weights(fake, tmp_path, interrupt=interrupt)

    async def both() -> list[Sample]:
        await sampler.facts()
        asking = asyncio.create_task(ask(sampler, count=4, max_tokens=40))
        await asyncio.sleep(0.1)
        await ours.update(tiny(), 1)
        # What is asked after an update has its version.
        [later] = await ask(sampler, max_tokens=2)
        assert set(later.versions) == {1}
        return list(await asking)

    samples = asyncio.run(both())
    assert all(len(sample.token_ids) == 40 for sample in samples)
    expected = {0, 1} if interrupt else {0}
    assert all(set(sample.versions) == expected for sample in samples)
    assert len(fake.drawn) == (4 + 4 if interrupt else 4) + 1


@pytest.mark.parametrize("route", ["/pause", "/collective_rpc"])
def test_a_server_without_the_routes_stops_the_run(fake: FakeVllm, tmp_path: Path, route: str) -> None:
    fake.missing.add(route)
    _, ours = weights(fake, tmp_path)
    with pytest.raises(RunStopped, match="VLLM_SERVER_DEV_MODE"):
        asyncio.run(ours.update(tiny(), 1))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_stops_the_run_and_leaves_the_server_alone(
    fake: FakeVllm, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    sampler, ours = weights(fake, tmp_path / "file")
    with pytest.raises(RunStopped, match="could not write"):
        asyncio.run(ours.update(tiny(), 1))
    assert not fake.calls
    assert asyncio.run(ask(sampler))


@pytest.mark.parametrize("tied", [True, False])
def test_the_servers_folder_is_the_same_policy_with_two_embeddings(tmp_path: Path, tied: bool) -> None:
    model = tiny(tied)
    tokenizer = train_tokenizer(["a b c"], vocab_size=300)
    out = server_folder(model, tokenizer, tmp_path / "served", stop_ids=[2])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    served = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    token_ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(served(token_ids).logits, model(token_ids).logits)
    assert "lm_head.weight" in load_file(out / "model.safetensors")


def test_adapters_are_merged() -> None:
    model = add_lora(tiny(), LoraSpec(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    state = server_state(model)
    assert not any("lora" in name for name in state)
    plain = tiny(tied=False)
    plain.load_state_dict(state)
    token_ids = torch.tensor([[1, 2, 3, 4]])
    assert torch.allclose(plain(token_ids).logits, model.eval()(token_ids).logits, atol=1e-6)
    assert not torch.allclose(plain(token_ids).logits, tiny()(token_ids).logits, atol=1e-3)
