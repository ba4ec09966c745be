"""Continuous batching: rows that come and go, callers that come and go, weights that change in between."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SPECS, TINY, VOCABULARY, make_model

from burnish.core.errors import RunStopped
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.policies.decoder import agrees, describe_decoder
from burnish.policies.forward import CachedForward
from burnish.policies.packed import pack
from burnish.policies.prefixes import Prefixes
from burnish.policies.sampler import EmbeddedSampler
from burnish.policies.slots import SlotStore, fit_columns


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return make_model(TINY)


def random_ids(length: int, seed: int) -> array:
    return array("i", np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist())


def ask(prompt: array, seed: int = 0, **changes) -> SampleRequest:
    given = {"key": f"r{seed}", "params": SamplingParams(), "max_tokens": 20, "stop_ids": ()} | changes
    return SampleRequest(prompt_ids=prompt, seed=seed, **given)


def sampler_of(model, **changes) -> EmbeddedSampler:
    return EmbeddedSampler(model, **({"pad_id": 0} | changes))


def alone(model, request: SampleRequest) -> Sample:
    """What the request draws with nothing else in the batch."""
    return sampler_of(model, prefix_cache_bytes=0).sample_now([request])[0]


def same(one: Sample, other: Sample) -> bool:
    return one.token_ids == other.token_ids and np.allclose(one.logprobs, other.logprobs, rtol=0.0, atol=1e-5)


def uneven(count: int, **changes) -> list[SampleRequest]:
    """Prompts of 1 to 30 tokens, budgets of 1 to 40."""
    sizes = np.random.default_rng(5).integers(1, (31, 41), (count, 2)).tolist()
    return [
        ask(random_ids(length, seed), seed, **({"max_tokens": budget} | changes))
        for seed, (length, budget) in enumerate(sizes)
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until something has happened."""
    while not condition():  # noqa: ASYNC110 - the steps of the driver are what is waited for
        await asyncio.sleep(0)


# -- rows that come and go --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(SPECS))
def test_more_requests_than_rows_are_refilled_as_others_end(family: str) -> None:
    model = make_model(SPECS[family])
    requests = uneven(40)
    sampler = sampler_of(model, max_rows=8)
    samples = sampler.sample_now(requests)
    assert all(same(sample, alone(model, request)) for sample, request in zip(samples, requests, strict=True))
    longest = max(request.max_tokens for request in requests)
    assert sampler.counts.decode_steps < 5 * longest
    assert sampler.counts.decoded_rows / sampler.counts.decode_steps > 5


def test_memory_grows_with_the_longest_row(model) -> None:
    sampler = sampler_of(model)
    requests = [ask(random_ids(5, 1), 1, max_tokens=200), ask(random_ids(40, 2), 2, max_tokens=3)]
    samples = sampler.sample_now(requests)
    assert all(same(sample, alone(model, request)) for sample, request in zip(samples, requests, strict=True))
    assert 205 <= sampler._engine.store.columns < 300


def test_later_members_of_a_group_copy_the_prompt(model) -> None:
    sampler = sampler_of(model, max_rows=2)
    requests = [ask(random_ids(12, 0), seed, max_tokens=5 + seed) for seed in range(8)]
    samples = sampler.sample_now(requests)
    assert all(same(sample, alone(model, request)) for sample, request in zip(samples, requests, strict=True))
    # the first two share one prefill; later ones read the last token of the prompt for its logits
    assert sampler.counts.prefilled_tokens <= 12 + 6


def test_a_turn_goes_on_in_its_slot(model, monkeypatch) -> None:
    sampler = sampler_of(model)
    requests = uneven(6)
    samples = sampler.sample_now(requests)
    moved = []
    monkeypatch.setattr(SlotStore, "copy", lambda self, source, target, columns: moved.extend(source))
    later = [ask(r.prompt_ids + s.token_ids + random_ids(3, 9), 50) for r, s in zip(requests, samples, strict=True)]
    before = sampler.counts.prefilled_tokens
    sampler.sample_now(later)
    # three new tokens and the last sampled one, which was never fed
    assert sampler.counts.prefilled_tokens - before == 6 * 4
    assert moved == []


def test_conversations_wait_parked_behind_the_batch(model) -> None:
    sampler = sampler_of(model, max_rows=4)
    requests = uneven(20)
    samples = sampler.sample_now(requests)
    later = [
        ask(r.prompt_ids + s.token_ids + random_ids(2, seed), 90 + seed)
        for seed, (r, s) in enumerate(zip(requests, samples, strict=True))
    ]
    before = sampler.counts.prefilled_tokens
    again = sampler.sample_now(later)
    assert sampler.counts.prefilled_tokens - before == 20 * 3
    assert all(same(sample, alone(model, request)) for sample, request in zip(again, later, strict=True))


def test_the_oldest_conversation_makes_room(model) -> None:
    sampler = sampler_of(model, prefix_cache_bytes=100_000)
    sampler.sample_now([ask(random_ids(30, 99))])
    requests = [ask(random_ids(10, seed), seed, max_tokens=5) for seed in range(9)]
    samples = [sampler.sample_now([request])[0] for request in requests]
    room = 100_000 // sampler._engine.store.row_bytes
    assert 1 <= room < 9
    costs = []
    for request, sample in [*zip(requests, samples, strict=True)][::-1]:
        before = sampler.counts.prefilled_tokens
        sampler.sample_now([ask(request.prompt_ids + sample.token_ids, 3, max_tokens=1)])
        costs.append(sampler.counts.prefilled_tokens - before)
    assert costs[:room] == [1] * room
    assert costs[-1] == 15


turns = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 12), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=25
)


@settings(max_examples=25, deadline=None)
@given(turns, st.integers(1, 5), st.sampled_from([0, 40_000, 10**8]), st.booleans())
def test_any_order_of_turns_draws_what_each_draws_alone(model, turns, max_rows, warm_bytes, cached) -> None:
    """Conversations, continued in any order with any memory; (conversation, new tokens, budget, steps to wait)."""
    forward = CachedForward(model) if cached else None
    sampler = sampler_of(model, max_rows=max_rows, prefix_cache_bytes=warm_bytes, forward=forward)

    async def play() -> list[tuple[SampleRequest, Sample]]:
        locks = [asyncio.Lock() for _ in range(6)]
        texts = [random_ids(3, seed) for seed in range(6)]
        played = []

        async def turn(number: int, talk: int, new: int, budget: int, wait: int) -> None:
            for _ in range(wait):
                await asyncio.sleep(0)
            async with locks[talk]:
                request = ask(texts[talk] + random_ids(new, number), number, max_tokens=budget)
                sample = (await sampler.sample([request]))[0]
                texts[talk] = request.prompt_ids + sample.token_ids
                played.append((request, sample))

        await asyncio.gather(*(turn(number, *values) for number, values in enumerate(turns)))
        return played

    for request, sample in asyncio.run(play()):
        assert same(sample, alone(model, request))
    assert (sampler.live, sampler.queued) == (0, 0)


# -- kept sets --------------------------------------------------------------------------------------------------------


def test_kept_sets_renormalise_to_the_log_probabilities(model) -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, top_k=20)
    kinds = [params, SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_k=VOCABULARY)]
    requests = [ask(random_ids(6, seed), seed, params=kinds[seed % 4]) for seed in range(12)]
    sampler = sampler_of(model, max_rows=5)
    for seed, (request, sample) in enumerate(zip(requests, sampler.sample_now(requests), strict=True)):
        if seed % 4:
            assert sample.kept is None
            continue
        full = torch.tensor([[*request.prompt_ids, *sample.token_ids]])
        with torch.no_grad():
            logits = model(input_ids=full).logits[0, len(request.prompt_ids) - 1 : -1].double() / 0.8
        assert len(sample.kept.counts) == len(sample.token_ids)
        assert max(sample.kept.counts) <= 20
        start = 0
        for at, (count, token) in enumerate(zip(sample.kept.counts, sample.token_ids, strict=True)):
            among = list(sample.kept.ids[start : start + count])
            start += count
            assert token in among
            found = float(logits[at, token] - logits[at, among].logsumexp(0))
            assert found == pytest.approx(sample.logprobs[at], abs=1e-4)


# -- callers that come and go -----------------------------------------------------------------------------------------


def test_concurrent_callers_share_one_batch(model) -> None:
    sampler = sampler_of(model)
    requests = uneven(16, max_tokens=20)

    async def main() -> list[list[Sample]]:
        return await asyncio.gather(*(sampler.sample([request]) for request in requests))

    for request, (sample,) in zip(requests, asyncio.run(main()), strict=True):
        assert same(sample, alone(model, request))
    assert sampler.counts.decode_steps == 19


def test_other_tasks_run_between_steps_and_loops_may_follow_each_other(model) -> None:
    sampler = sampler_of(model)

    async def main() -> int:
        ticks, task = 0, asyncio.create_task(sampler.sample([ask(random_ids(4, 0), max_tokens=30)]))
        while not task.done():
            ticks += 1
            await asyncio.sleep(0)
        return ticks

    assert asyncio.run(main()) >= 30
    assert asyncio.run(main()) >= 30
    assert sampler._driver.done()


def test_a_cancelled_caller_withdraws_its_requests_alone(model) -> None:
    sampler = sampler_of(model, max_rows=2)
    kept, dropped = ask(random_ids(4, 0), 1, max_tokens=40), uneven(5, max_tokens=50)

    async def main() -> Sample:
        stays = asyncio.create_task(sampler.sample([kept]))
        leaves = asyncio.create_task(sampler.sample(dropped))
        await until(lambda: sampler.live == 2)
        leaves.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        assert (sampler.live, sampler.queued) == (1, 0)
        return (await stays)[0]

    assert same(asyncio.run(main()), alone(model, kept))


def test_a_loop_that_ends_in_the_middle_leaves_nothing_behind(model) -> None:
    sampler = sampler_of(model)

    async def abandon() -> None:
        task = asyncio.create_task(sampler.sample([ask(random_ids(4, 0), max_tokens=100)]))
        await until(lambda: sampler.live > 0)
        del task

    asyncio.run(abandon())
    request = ask(random_ids(4, 1), 7)
    assert same(asyncio.run(sampler.sample([request]))[0], alone(model, request))
    assert sampler.counts.requests == 2


def test_an_error_reaches_every_caller_and_the_sampler_survives() -> None:
    model = make_model(TINY)
    sampler = sampler_of(model)
    before = model.model.norm.weight.detach().clone()

    async def main() -> list[object]:
        tasks = [asyncio.create_task(sampler.sample([ask(random_ids(4, seed), seed)])) for seed in range(3)]
        await until(lambda: sampler.live > 0)
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        sampler.version = 1
        return await asyncio.gather(*tasks, return_exceptions=True)

    errors = asyncio.run(main())
    assert [type(error) for error in errors] == [RunStopped] * 3
    with torch.no_grad():
        model.model.norm.weight.copy_(before)
    request = ask(random_ids(4, 9), 9)
    assert same(sampler.sample_now([request])[0], alone(model, request))


# -- weights that change ----------------------------------------------------------------------------------------------


def test_a_new_version_takes_effect_in_flight() -> None:
    model = make_model(TINY)
    sampler = sampler_of(model)
    request = ask(random_ids(6, 0), 3, max_tokens=30)
    old = alone(model, request)

    async def main() -> Sample:
        task = asyncio.create_task(sampler.sample([request]))
        await until(lambda: sampler.counts.decode_steps >= 9)
        with torch.no_grad():
            model.lm_head.weight.add_(torch.randn(model.lm_head.weight.shape) * 0.3)
        sampler.version = 4
        return (await task)[0]

    sample = asyncio.run(main())
    assert sample.versions.tolist() == [0] * 10 + [4] * 20
    assert sample.token_ids[:10] == old.token_ids[:10]
    # the new weights drew the rest: they read the old keys, so only the shared beginning can be compared
    assert sample.token_ids[10:] != old.token_ids[10:]


def test_hold_stops_every_step_until_release(model) -> None:
    sampler = sampler_of(model)
    request = ask(random_ids(6, 0), 3, max_tokens=12)

    async def main() -> Sample:
        task = asyncio.create_task(sampler.sample([request]))
        await until(lambda: sampler.counts.decode_steps >= 3)
        sampler.hold()
        sampler.hold()
        steps = sampler.counts.decode_steps
        for _ in range(20):
            await asyncio.sleep(0)
        assert (sampler.counts.decode_steps, sampler.live, task.done()) == (steps, 1, False)
        # a canary may be drawn meanwhile
        other = ask(random_ids(5, 5), 5)
        assert same(sampler.sample_now([other])[0], alone(model, other))
        assert sampler.live == 1
        sampler.release()
        sampler.release()
        return (await task)[0]

    assert same(asyncio.run(main()), alone(model, request))


@pytest.mark.parametrize("announced", [True, False])
def test_packed_weights_follow_a_parameter_bound_to_other_memory(announced: bool, monkeypatch) -> None:
    model = make_model(TINY)
    sampler = sampler_of(model)
    request = ask(random_ids(6, 0), 3)
    sampler.sample_now([request])
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5
    if announced:
        sampler.version = 1
    else:
        monkeypatch.setattr(EmbeddedSampler, "_notice_changes", lambda self: None)
    assert same(sampler.sample_now([request])[0], alone(model, request)) == announced


# -- descriptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(SPECS))
def test_descriptions_agree_and_see_weights_where_they_are(family: str) -> None:
    model = make_model(SPECS[family])
    decoder = describe_decoder(model)
    assert agrees(model, decoder)
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1
    assert agrees(model, decoder)


def test_a_wrong_description_does_not_agree() -> None:
    model = make_model(SPECS["mistral"])
    decoder = describe_decoder(model)
    model.config.sliding_window = 4
    assert not agrees(model, decoder)


def test_what_is_not_understood_is_not_described() -> None:
    from peft import LoraConfig, get_peft_model

    model = make_model(TINY)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert describe_decoder(model) is None
    handle.remove()
    assert describe_decoder(model) is not None
    model.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    assert describe_decoder(model) is None
    adapted = get_peft_model(make_model(TINY), LoraConfig(r=2, target_modules=["q_proj"]))
    assert describe_decoder(adapted) is None
    assert describe_decoder(adapted, adapters=True) is not None
    capped = make_model(SPECS["gemma"])
    capped.config.final_logit_softcapping = 5.0
    assert describe_decoder(capped) is None


def test_packed_weights_are_copies() -> None:
    model = make_model(TINY)
    packed = pack(describe_decoder(model))
    before = packed.layers[0].o.weight.clone()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    assert torch.equal(packed.layers[0].o.weight, before)


# -- slots and prefixes -----------------------------------------------------------------------------------------------


def test_columns_are_never_a_power_of_two() -> None:
    widths = [fit_columns(columns) for columns in range(1, 400)]
    assert all(width >= columns and width % 32 == 16 for columns, width in enumerate(widths, start=1))


def test_swapped_slots_change_places() -> None:
    store = SlotStore(layers=1, device=torch.device("cpu"), keys_across=True)
    store.allocate(0, heads=2, key_dim=4, value_dim=4, dtype=torch.float32)
    store.ensure(5, 16)
    keys, values = store.layer(0)
    keys.normal_()
    values.normal_()
    kept, held = keys.clone(), values.clone()
    store.swap([0, 1], [4, 2], 16)
    order = [4, 2, 1, 3, 0]
    assert torch.equal(keys, kept[order])
    assert torch.equal(values, held[order])


def test_prefixes_follow_their_slots() -> None:
    prefixes = Prefixes()
    texts = {slot: np.arange(slot, slot + 5, dtype=np.int32) for slot in range(4)}
    for slot, text in texts.items():
        prefixes.add(slot, text, (5, 3), warm=slot != 2)
    prefixes.exchange([(0, 3)])
    found = {slot: prefixes.longest(np.append(text, 99).astype(np.int32)) for slot, text in texts.items()}
    assert [[held.slot for held in found[slot][0]] for slot in range(4)] == [[3], [1], [2], [0]]
    assert [length for _, length in found.values()] == [5] * 4
    assert list(prefixes.warm_slots()) == [3, 1, 0]
    prefixes.drop(1)
    assert found[1][0][0].slot == -1
    assert prefixes.longest(np.append(texts[1], 99).astype(np.int32)) == ([], 0)
    assert prefixes.longest(texts[0])[1] == 3


def test_equal_texts_are_all_found_and_spare_but_for_the_last() -> None:
    prefixes = Prefixes()
    text, more = np.arange(5, dtype=np.int32), np.arange(6, dtype=np.int32)
    for slot in (4, 1, 3):
        prefixes.add(slot, text, (5, 2), warm=True)
    prefixes.add(0, np.array([0, 1, 9], np.int32), (3, 2), warm=True)
    held, length = prefixes.longest(more)
    assert ([one.slot for one in held], length) == ([3, 1, 4], 5)
    assert [slot for slot in range(6) if prefixes.is_spare(slot)] == [1, 2, 3, 4, 5]
    prefixes.drop(3)
    prefixes.drop(1)
    assert not prefixes.is_spare(4)
    prefixes.drop(4)
    assert [one.slot for one in prefixes.longest(more)[0]] == [0]
    assert not prefixes.is_spare(0)


def test_members_that_said_the_same_go_on_in_their_own_slots(model) -> None:
    """Four members of a group say the same and hear the same: one prefill, and only what is new is copied."""
    sampler = sampler_of(model)
    said = sampler.sample_now([ask(random_ids(9, 1), 5)] * 4)
    assert all(sample.token_ids == said[0].token_ids for sample in said)
    heard = array("i", [*random_ids(9, 1), *said[0].token_ids, *random_ids(6, 2)])
    copied, copy = [], SlotStore.copy
    before = sampler.counts.prefilled_tokens
    with pytest.MonkeyPatch.context() as patch:

        def noted(store, source, target, columns, *, first=0):
            copied.extend([(len(source), columns - first)] if source else [])
            copy(store, source, target, columns, first=first)

        patch.setattr(SlotStore, "copy", noted)
        found = sampler.sample_now([ask(heard, seed) for seed in range(4)])
    # the last token drawn has not been through the model yet
    assert sampler.counts.prefilled_tokens - before == 7
    assert copied == [(3, 7)]
    for seed, sample in enumerate(found):
        assert same(sample, alone(model, ask(heard, seed)))
