"""The embedded sampler against the plain model: what it draws, what it reports, and what it must refuse."""

from __future__ import annotations

import asyncio
import math
from array import array
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import SPECS, TINY, VOCABULARY, WINDOW, make_model

from burnish.core.errors import ConfigError, RunStopped
from burnish.core.sampling import Finish, Sample, SampleRequest, SamplingParams
from burnish.policies.checksum import sums_here, sums_there, weight_checksum
from burnish.policies.draw import DrawRules, draw
from burnish.policies.forward import CachedForward, RecomputedForward, choose_forward, computes_logits
from burnish.policies.lean import LeanForward
from burnish.policies.placing import prefill_ranges
from burnish.policies.sampler import EmbeddedSampler


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(SPECS))
def family_model(request):
    return make_model(SPECS[request.param])


@pytest.fixture(scope="module")
def model():
    return make_model(TINY)


def ids(*values: int) -> array:
    return array("i", values)


def random_ids(length: int, seed: int) -> array:
    return array("i", np.random.default_rng(seed).integers(3, VOCABULARY, length).tolist())


def ask(prompt: array, seed: int = 0, **changes) -> SampleRequest:
    given = {"key": f"r{seed}", "params": SamplingParams(), "max_tokens": 20, "stop_ids": (2,)} | changes
    return SampleRequest(prompt_ids=prompt, seed=seed, **given)


def mixed_requests(**changes) -> list[SampleRequest]:
    """Prompts shorter and much longer than the window, one of them shared by three."""
    lengths = [1, 3, 30, 7, 41, 15, 30, 9]
    prompts = [random_ids(length, index) for index, length in enumerate(lengths)]
    prompts += [prompts[2], prompts[2]]
    return [ask(prompt, seed, **changes) for seed, prompt in enumerate(prompts)]


def teacher_forced(model, prompt: array, sample: Sample, temperature: float = 1.0) -> np.ndarray:
    """Log-probabilities of the action by one plain forward pass over the whole sequence."""
    full = torch.tensor([[*prompt, *sample.token_ids]])
    with torch.no_grad():
        logits = model.eval()(input_ids=full, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1).gather(1, full[0, len(prompt) :, None])[:, 0].numpy()


def worst_gap(model, requests, samples, temperature: float = 1.0) -> float:
    return max(
        float(np.abs(teacher_forced(model, request.prompt_ids, sample, temperature) - sample.logprobs).max())
        for request, sample in zip(requests, samples, strict=True)
    )


def sampler_of(model, **changes) -> EmbeddedSampler:
    return EmbeddedSampler(model, **({"pad_id": 0} | changes))


# -- agreement with the plain model ---------------------------------------------------------------------------------


def test_logprobs_agree_with_teacher_forcing(family_model) -> None:
    requests = mixed_requests()
    samples = sampler_of(family_model).sample_now(requests)
    assert max(len(r.prompt_ids) + len(s.token_ids) for r, s in zip(requests, samples, strict=True)) > 5 * WINDOW
    assert worst_gap(family_model, requests, samples) < 1e-4


def test_logprobs_agree_at_another_temperature(family_model) -> None:
    requests = mixed_requests(params=SamplingParams(temperature=0.7))
    samples = sampler_of(family_model).sample_now(requests)
    assert worst_gap(family_model, requests, samples, temperature=0.7) < 1e-4


@pytest.mark.parametrize("kind", [CachedForward, RecomputedForward])
def test_the_slower_ways_agree_too(family_model, kind) -> None:
    sampler = sampler_of(family_model, forward=kind(family_model), max_rows=4)
    requests = mixed_requests()
    samples = sampler.sample_now(requests)
    assert worst_gap(family_model, requests, samples) < 1e-4
    later = next_turn(requests, samples)
    assert worst_gap(family_model, later, sampler.sample_now(later)) < 1e-4


def test_every_family_takes_the_lean_way(family_model) -> None:
    assert isinstance(sampler_of(family_model).forward, LeanForward)


def test_the_agreement_test_sees_a_wrong_position(family_model, monkeypatch) -> None:
    honest = LeanForward.decode
    monkeypatch.setattr(
        LeanForward, "decode", lambda self, store, ids, at, width: honest(self, store, ids, at - 1, width)
    )
    requests = mixed_requests()
    sampler = sampler_of(family_model, forward=LeanForward(family_model))
    assert worst_gap(family_model, requests, sampler.sample_now(requests)) > 1e-2
    assert not computes_logits(LeanForward(family_model), family_model, family_model.config)
    assert isinstance(choose_forward(family_model), CachedForward)


def test_greedy_is_what_transformers_generates(family_model) -> None:
    prompts = [random_ids(length, length) for length in (3, 12, 25)]
    params = SamplingParams(temperature=0.0)
    samples = sampler_of(family_model).sample_now([ask(prompt, params=params, max_tokens=15) for prompt in prompts])
    for prompt, sample in zip(prompts, samples, strict=True):
        expected = family_model.generate(
            input_ids=torch.tensor([prompt.tolist()]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=15,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert sample.token_ids.tolist() == expected[0, len(prompt) :].tolist()
        assert set(sample.logprobs) == {0.0}


def test_long_actions_outgrow_the_first_reserve(family_model) -> None:
    requests = [ask(random_ids(length, length), length, max_tokens=150, stop_ids=()) for length in (4, 20)]
    samples = sampler_of(family_model).sample_now(requests)
    assert [len(sample.token_ids) for sample in samples] == [150, 150]
    assert worst_gap(family_model, requests, samples) < 1e-4


def test_eager_attention_agrees_too() -> None:
    model = make_model(SPECS["gemma"])
    model.set_attn_implementation("eager")
    requests = mixed_requests()
    assert worst_gap(model, requests, sampler_of(model).sample_now(requests)) < 1e-4


def test_bfloat16_agrees_within_its_precision() -> None:
    model = make_model(TINY).to(torch.bfloat16)
    requests = mixed_requests()
    assert worst_gap(model, requests, sampler_of(model).sample_now(requests)) < 0.3


def test_a_recurrent_model_is_recomputed_and_agrees() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = MambaForCausalLM(config).eval()
    requests = mixed_requests(max_tokens=6)
    sampler = sampler_of(model)
    samples = sampler.sample_now(requests)
    assert worst_gap(model, requests, samples) < 1e-4
    assert len(sampler._engine.prefixes) == 0
    assert isinstance(sampler.forward, RecomputedForward)


# -- turns that continue --------------------------------------------------------------------------------------------


def next_turn(requests, samples) -> list[SampleRequest]:
    """Each conversation goes on with a tool result of its own."""
    return [
        ask(request.prompt_ids + sample.token_ids + random_ids(2 + seed % 5, 100 + seed), 50 + seed)
        for seed, (request, sample) in enumerate(zip(requests, samples, strict=True))
    ]


def test_later_turns_reuse_what_is_cached_and_agree(family_model) -> None:
    sampler = sampler_of(family_model)
    requests = mixed_requests()
    samples = sampler.sample_now(requests)
    for _ in range(3):
        requests = next_turn(requests, samples)
        before = sampler.counts.prefilled_tokens
        samples = sampler.sample_now(requests)
        assert sampler.counts.prefilled_tokens - before <= 7 * len(requests)
        assert worst_gap(family_model, requests, samples) < 1e-4


def test_reuse_draws_the_same_as_no_reuse(model) -> None:
    requests = mixed_requests()
    with_cache, without = sampler_of(model), sampler_of(model, prefix_cache_bytes=0)
    later = next_turn(requests, with_cache.sample_now(requests))
    without.sample_now(requests)
    assert [s.token_ids for s in with_cache.sample_now(later)] == [s.token_ids for s in without.sample_now(later)]
    assert without.counts.prefilled_tokens > with_cache.counts.prefilled_tokens


@pytest.mark.parametrize("guarded", [True, False])
def test_changed_weights_make_held_keys_and_packed_weights_worthless(guarded: bool, monkeypatch) -> None:
    model = make_model(TINY)
    sampler = sampler_of(model)
    requests = mixed_requests()
    later = next_turn(requests, sampler.sample_now(requests))
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight.add_(0.05)
    if not guarded:
        monkeypatch.setattr(EmbeddedSampler, "_notice_changes", lambda self: None)
    gap = worst_gap(model, later, sampler.sample_now(later))
    assert gap < 1e-4 if guarded else gap > 1e-3


def test_setting_the_version_forgets_and_marks(model) -> None:
    sampler = sampler_of(model)
    assert set(sampler.sample_now([ask(ids(3, 4))])[0].versions) == {0}
    assert len(sampler._engine.prefixes) == 1
    sampler.version = 7
    assert len(sampler._engine.prefixes) == 0
    assert set(sampler.sample_now([ask(ids(3, 4))])[0].versions) == {7}
    sampler.forget()
    assert (len(sampler._engine.prefixes), sampler.version) == (0, 7)


def test_prefixes_may_outlive_a_version(model) -> None:
    sampler = sampler_of(model, keep_prefixes_across_versions=True)
    sampler.sample_now([ask(ids(3, 4))])
    sampler.version = 7
    assert len(sampler._engine.prefixes) == 1


def test_what_is_held_stays_within_its_bytes(model) -> None:
    sampler = sampler_of(model, prefix_cache_bytes=100_000)
    for seed in range(12):
        sampler.sample_now([ask(random_ids(20, seed), seed)])
        engine = sampler._engine
        assert len(engine.prefixes) * engine.store.row_bytes <= 100_000
    assert 0 < len(engine.prefixes) < 12
    assert engine.store.rows < 12


# -- independence and randomness ------------------------------------------------------------------------------------


def test_a_request_does_not_depend_on_its_batch(family_model) -> None:
    requests = mixed_requests()
    together = sampler_of(family_model).sample_now(requests)
    for max_rows in (1, 3):
        apart = sampler_of(family_model, max_rows=max_rows, prefix_cache_bytes=0).sample_now(requests)
        for one, other in zip(together, apart, strict=True):
            assert one.token_ids == other.token_ids
            assert np.allclose(one.logprobs, other.logprobs, rtol=0.0, atol=1e-5)


def test_members_of_a_group_differ_by_seed_alone(model) -> None:
    prompt = random_ids(10, 0)
    first, second, again = sampler_of(model).sample_now([ask(prompt, 1), ask(prompt, 2), ask(prompt, 1)])
    assert first.token_ids != second.token_ids
    assert first.token_ids == again.token_ids


def test_equal_prompts_are_prefilled_once(model) -> None:
    sampler = sampler_of(model)
    sampler.sample_now([ask(random_ids(10, 0), seed) for seed in range(8)])
    assert (sampler.counts.prompt_tokens, sampler.counts.prefilled_tokens) == (80, 10)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(4000, 1)
    uniforms = torch.from_numpy(np.random.Generator(np.random.PCG64(0)).random(4000))
    tokens, logprobs, _ = draw(logits, uniforms, DrawRules.of([SamplingParams()] * 4000, "cpu"))
    expected = logits[0].softmax(-1)
    observed = torch.bincount(tokens, minlength=4) / 4000
    # four standard errors of a share
    assert torch.all((observed - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt())
    assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-6)


rows = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    rows,
    st.floats(0, 1 - 2**-23),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.integers(0, 5),
)
def test_draw_is_the_inverse_cdf_of_the_filtered_distribution(row, uniform, temperature, top_p, top_k) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k)
    logits = torch.tensor([row])
    token, logprob, kept_set = draw(logits, torch.tensor([uniform], dtype=torch.float64), DrawRules.of([params], "cpu"))
    scaled = (np.array(row, np.float32) - np.float32(max(row))) / np.float32(temperature)
    order = np.argsort(-scaled, kind="stable")
    kept = order[: top_k or len(row)]
    mass = np.exp(scaled[kept].astype(np.float64))
    before = (np.cumsum(mass) - mass) / mass.sum()
    # a share within rounding of top_p may fall either way
    surely = kept[(before < top_p - 1e-5) | (np.arange(len(kept)) == 0) | (top_p == 1.0)]
    maybe = kept[(before < top_p + 1e-5) | (top_p == 1.0)]
    assert int(token) in maybe
    if top_k or top_p < 1.0:
        assert set(surely) <= set(kept_set[0].nonzero()[:, 0].tolist()) <= set(maybe)
    else:
        assert kept_set is None
    if len(surely) == len(maybe):
        weights = np.zeros(len(row))
        weights[surely] = np.exp(scaled[surely].astype(np.float64))
        assert weights[int(token)] > 0
        # below 1e-38 a float32 has fewer digits
        assert float(logprob) == pytest.approx(math.log(weights[int(token)] / weights.sum()), abs=1e-4, rel=1e-5)
        below = weights[: int(token)].sum() / weights.sum()
        assert below - 1e-5 <= uniform <= below + weights[int(token)] / weights.sum() + 1e-5


def test_a_filter_on_one_row_leaves_the_others_alone() -> None:
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    uniforms = torch.tensor([0.4, 0.6, 0.4, 0.6], dtype=torch.float64)
    plain, narrow = SamplingParams(), SamplingParams(top_k=3, top_p=0.8)
    alone = draw(logits[:2], uniforms[:2], DrawRules.of([plain, plain], "cpu"))
    mixed = draw(logits, uniforms, DrawRules.of([plain, plain, narrow, SamplingParams(temperature=0.0)], "cpu"))
    assert torch.equal(mixed[0][:2], alone[0])
    assert torch.equal(mixed[1][:2], alone[1])
    assert int(mixed[0][3]) == int(logits[3].argmax())


@pytest.mark.parametrize("far", [-1e4, -60.0, -40.0, 60.0, 1e4])
def test_logits_of_any_size_are_drawn_from_and_leave_the_others_alone(far: float) -> None:
    """A softmax is the same wherever its logits lie; a row that has to be moved for it does not move its neighbours."""
    near = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    uniforms = torch.tensor([0.3, 0.3, 0.7, 0.7], dtype=torch.float64)
    plain = DrawRules.of([SamplingParams()], "cpu")
    alone = draw(near, uniforms[[0, 2]], plain)
    mixed = draw(torch.stack([near[0], near[0] + far, near[1], near[1] + far]), uniforms, plain)
    assert torch.equal(mixed.tokens[[0, 2]], alone.tokens)
    assert torch.equal(mixed.logprobs[[0, 2]], alone.logprobs)
    assert torch.equal(mixed.tokens[[1, 3]], alone.tokens)
    # float32 knows logits of this size to about 1e-7 of them
    assert torch.allclose(mixed.logprobs[[1, 3]], alone.logprobs, atol=max(1e-5, abs(far) * 2e-7))


@pytest.mark.parametrize("params", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}])
def test_parameters_out_of_range_are_refused(model, params) -> None:
    with pytest.raises(ValueError, match="temperature >= 0"):
        sampler_of(model).sample_now([ask(ids(3), params=SamplingParams(**params))])


# -- ends -----------------------------------------------------------------------------------------------------------


def test_each_request_obeys_its_own_stop_ids_and_budget(model) -> None:
    prompt = random_ids(6, 0)
    free = sampler_of(model).sample_now([ask(prompt, 3, stop_ids=(), max_tokens=12)])[0]
    stop = free.token_ids[4]
    assert stop not in free.token_ids[:4]
    stopped, cut, exact, other = sampler_of(model).sample_now(
        [
            ask(prompt, 3, stop_ids=(stop, 10_000), max_tokens=12),
            ask(prompt, 3, stop_ids=(), max_tokens=4),
            ask(prompt, 3, stop_ids=(stop,), max_tokens=5),
            ask(prompt, 3, stop_ids=(free.token_ids[0],), max_tokens=9),
        ]
    )
    assert (stopped.token_ids, stopped.finish) == (free.token_ids[:5], Finish.STOP)
    assert (cut.token_ids, cut.finish) == (free.token_ids[:4], Finish.LENGTH)
    assert (exact.token_ids, exact.finish) == (free.token_ids[:5], Finish.STOP)
    assert (other.token_ids, other.finish) == (free.token_ids[:1], Finish.STOP)
    assert len(stopped.logprobs) == 5


def test_padding_may_be_the_stop_id_and_stand_in_prompts(model) -> None:
    requests = [ask(ids(2, 2, 5, 2), 1), ask(random_ids(20, 1), 2), ask(ids(2), 3)]
    with_pad = sampler_of(model, pad_id=2).sample_now(requests)
    other_pad = sampler_of(model, pad_id=0).sample_now(requests)
    assert [s.token_ids for s in with_pad] == [s.token_ids for s in other_pad]
    assert worst_gap(model, requests, with_pad) < 1e-4


def test_the_budget_ends_with_the_models_positions() -> None:
    model = make_model(replace(SPECS["gpt2"], max_positions=16))
    sampler = sampler_of(model)
    request = ask(random_ids(12, 0), stop_ids=(), max_tokens=50)
    sample = sampler.sample_now([request])[0]
    assert (len(sample.token_ids), sample.finish) == (4, Finish.LENGTH)
    assert worst_gap(model, [request], [sample]) < 1e-4
    with pytest.raises(ConfigError, match="max_context_tokens below 16"):
        sampler.sample_now([ask(random_ids(16, 0))])


def test_requests_that_make_no_sense_are_refused(model) -> None:
    sampler = sampler_of(model)
    with pytest.raises(ValueError, match="empty prompt"):
        sampler.sample_now([ask(ids())])
    with pytest.raises(ValueError, match="asks for 0 tokens"):
        sampler.sample_now([ask(ids(3), max_tokens=0)])
    with pytest.raises(ValueError, match=f"holds id {VOCABULARY}, outside"):
        sampler.sample_now([ask(ids(3, VOCABULARY))])
    with pytest.raises(ConfigError, match="max_rows"):
        sampler_of(model, max_rows=0)
    assert asyncio.run(sampler.sample([])) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_gone_bad_stop_the_run(temperature: float) -> None:
    model = make_model(TINY)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunStopped, match="NaN") as caught:
        sampler_of(model).sample_now([ask(ids(3), params=SamplingParams(temperature=temperature))])
    assert caught.value.cause == "non_finite_logits"


# -- the model it drives --------------------------------------------------------------------------------------------


def test_training_mode_is_left_and_restored() -> None:
    model = make_model(SPECS["gpt2"])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    requests = mixed_requests()
    model.train()
    samples = sampler_of(model).sample_now(requests)
    assert model.training
    assert worst_gap(model, requests, samples) < 1e-4
    loss = model.train()(input_ids=torch.tensor([requests[2].prompt_ids.tolist()])).logits.sum()
    loss.backward()
    assert model.transformer.wte.weight.grad is not None


def test_adapters_take_part_in_samples_and_checksum() -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model(TINY)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3))
    fresh = weight_checksum(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(3))
    assert weight_checksum(model) != fresh
    requests = mixed_requests()
    samples = sampler_of(model.train()).sample_now(requests)
    assert worst_gap(model, requests, samples) < 1e-4
    with model.disable_adapter():
        assert worst_gap(model, requests, samples) > 1e-2


def test_the_checksum_sees_one_bit_and_one_exchange() -> None:
    model = make_model(TINY)
    start = weight_checksum(model)
    assert start == weight_checksum(make_model(TINY))
    weight = model.model.layers[3].mlp.down_proj.weight
    with torch.no_grad():
        kept = weight.clone()
        weight.view(torch.int32)[0, 0] ^= 1
        assert weight_checksum(model) != start
        weight.copy_(kept)
        weight[0, 0], weight[0, 1] = kept[0, 1], kept[0, 0]
        assert weight_checksum(model) != start
        weight.copy_(kept)
    assert weight_checksum(model) == start


@pytest.mark.parametrize("bits", [torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 65521, 65522, 140_000, 32 * 65521 + 1])
def test_checksums_of_arrays_and_of_tensors_are_the_same(bits: torch.dtype, count: int) -> None:
    limits = torch.iinfo(bits)
    generator = torch.Generator().manual_seed(count)
    words = torch.randint(limits.min, limits.max, (count,), dtype=bits, generator=generator)
    assert sums_here(words.numpy()).tolist() == sums_there(words).tolist()
    if count > 1:
        exchanged = torch.cat([words[1:2], words[:1], words[2:]])
        assert (sums_here(exchanged.numpy()) == sums_here(words.numpy())).tolist() == [True, words[0] == words[1]]


# -- planning -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 2000))
def test_prefill_ranges_cover_every_unit_once_within_the_budget(lengths, budget) -> None:
    lengths = sorted(lengths)
    spans = prefill_ranges(lengths, budget)
    assert [row for first, end in spans for row in range(first, end)] == list(range(len(lengths)))
    for first, end in spans:
        assert end - first == 1 or (end - first) * lengths[end - 1] <= budget
