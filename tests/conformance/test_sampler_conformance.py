"""The conformance tests for samplers: they pass for samplers that conform and fail for each way not to."""

from __future__ import annotations

import math
from array import array
from random import Random

import pytest

from burnish.core.message import Message
from burnish.core.sampling import Finish, Sample
from burnish.testing.fakes import FakeRenderer, ScriptedSampler
from burnish.testing.sampler import SamplerConformance

VOCAB = 8


class TestScriptedSampler(SamplerConformance):
    def make_sampler(self):
        return ScriptedSampler(["hello"])


class TestScriptedSamplerCut(SamplerConformance):
    max_tokens = 3

    def make_sampler(self):
        return ScriptedSampler(["hello"])


class MessageSampler:
    async def sample(self, requests):
        return [Sample(message=Message.assistant(request.key)) for request in requests]


class TestMessageSampler(SamplerConformance):
    gives_tokens = False

    def make_sampler(self):
        return MessageSampler()


class TableSampler:
    """A bigram table with ids 0-7, 0 the stop id; draws are a function of the request's seed and the position."""

    version = 4

    def rng(self, request) -> Random:
        return Random(request.seed)

    async def sample(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request) -> Sample:
        rng, last = self.rng(request), request.prompt_ids[-1]
        ids, logprobs = array("i"), array("f")
        while len(ids) < request.max_tokens:
            weights = self.weights(last, request.params)
            last = rng.choices(range(VOCAB), weights)[0]
            ids.append(last)
            logprobs.append(math.log(weights[last] / sum(weights)))
            if last in request.stop_ids:
                return Sample(
                    token_ids=ids, logprobs=logprobs, versions=array("i", [self.version]) * len(ids), finish=Finish.STOP
                )
        return Sample(
            token_ids=ids, logprobs=logprobs, versions=array("i", [self.version]) * len(ids), finish=Finish.LENGTH
        )

    def weights(self, last, params):
        weights = [1.0 + (last * 7 + token * 3) % 11 for token in range(VOCAB)]
        if params.temperature == 0 or params.top_k == 1 or params.top_p < 0.01:
            best = max(range(VOCAB), key=weights.__getitem__)
            return [float(token == best) for token in range(VOCAB)]
        return weights


class TableConformance(SamplerConformance):
    vocab_size = VOCAB
    stop_ids = (0,)
    prompts = ((1, 2, 3), (4,), (5, 6))
    kind: type[TableSampler] = TableSampler

    def make_sampler(self):
        return self.kind()


class TestTableSampler(TableConformance):
    pass


class Drops(TableSampler):
    async def sample(self, requests):
        return (await super().sample(requests))[1:]


class BatchDependent(TableSampler):
    async def sample(self, requests):
        rng = Random(0)
        self.rng = lambda request: rng
        return await super().sample(requests)


class Unseeded(TableSampler):
    def rng(self, request):
        return Random()


class StripsStop(TableSampler):
    def one(self, request):
        sample = super().one(request)
        if sample.finish is Finish.STOP and len(sample.token_ids) > 1:
            ids, logprobs = sample.token_ids[:-1], sample.logprobs[:-1]
            return Sample(token_ids=ids, logprobs=logprobs, versions=array("i", [4]) * len(ids), finish=Finish.STOP)
        return sample


class Misaligned(TableSampler):
    def one(self, request):
        sample = super().one(request)
        return Sample(
            token_ids=sample.token_ids, logprobs=sample.logprobs[:-1], versions=sample.versions, finish=sample.finish
        )


class TooLong(TableSampler):
    def one(self, request):
        sample = super().one(request)
        extra = request.max_tokens + 1
        return Sample(
            token_ids=array("i", [1] * extra),
            logprobs=array("f", [-1] * extra),
            versions=array("i", [4] * extra),
            finish=sample.finish,
        )


class MixedVersions(TableSampler):
    def one(self, request):
        sample = super().one(request)
        return Sample(
            token_ids=sample.token_ids,
            logprobs=sample.logprobs,
            versions=array("i", [request.seed % 1000]) * len(sample.token_ids),
            finish=sample.finish,
        )


class NeverGreedy(TableSampler):
    def weights(self, last, params):
        return [1.0] * VOCAB


class SpoilsPrompt(TableSampler):
    def one(self, request):
        sample = super().one(request)
        request.prompt_ids.extend(sample.token_ids)
        return sample


class NanLogprobs(TableSampler):
    def one(self, request):
        sample = super().one(request)
        return Sample(token_ids=sample.token_ids, logprobs=array("f", [math.nan] * len(sample.token_ids)))


class WithoutTokens(MessageSampler):
    pass


def failures(kind) -> set[str]:
    """Names of the conformance tests that a sampler fails."""

    class Suite(TableConformance):
        def make_sampler(self):
            return kind()

    failed = set()
    for name in dir(Suite):
        if name.startswith("test_"):
            try:
                getattr(Suite(), name)()
            except (AssertionError, ValueError, IndexError):
                failed.add(name)
    return failed


def test_a_conforming_sampler_fails_nothing():
    assert failures(TableSampler) == set()


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Drops, "test_one_sample_for_each_request"),
        (BatchDependent, "test_draws_do_not_depend_on_the_batch"),
        (Unseeded, "test_same_request_same_draws"),
        (StripsStop, "test_stop_id_ends_the_action_and_is_part_of_it"),
        (Misaligned, "test_streams_are_aligned_and_sane"),
        (TooLong, "test_streams_are_aligned_and_sane"),
        (TooLong, "test_max_tokens_one"),
        (MixedVersions, "test_one_version_for_a_batch"),
        (NeverGreedy, "test_greedy_ignores_the_seed"),
        (NeverGreedy, "test_top_k_one_is_greedy"),
        (NeverGreedy, "test_tiny_top_p_is_greedy"),
        (SpoilsPrompt, "test_prompt_is_not_changed"),
        (NanLogprobs, "test_streams_are_aligned_and_sane"),
        (WithoutTokens, "test_stop_id_ends_the_action_and_is_part_of_it"),
    ],
)
def test_each_way_not_to_conform_is_seen(kind, test):
    assert test in failures(kind)


class TestFakeRenderer:
    @pytest.mark.parametrize("text", ["", "hello", "🍐 é", "line\nline"])
    def test_actions_come_back(self, text):
        renderer = FakeRenderer()
        assert renderer.parse(renderer.encode_action(Message.assistant(text))) == Message.assistant(text)

    def test_extension_is_what_open_would_add(self):
        renderer = FakeRenderer()
        past, new = [Message.user("a"), Message.assistant("b")], [Message.user("c")]
        opened = renderer.open(past[:1], [])
        whole = opened + renderer.encode_action(past[1]) + renderer.extend(past, new, []).token_ids
        assert whole == renderer.open([*past, *new], [])
