"""What every sampler must do; authors of samplers inherit these tests."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import Sequence

from burnish.core.sampling import Finish, Sample, Sampler, SampleRequest, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


class SamplerConformance:
    """Inherit in a test module as `class TestMySampler(SamplerConformance)` and override `make_sampler`.

    Override as well what does not fit: `vocab_size` (ids lie below it), `stop_ids`, `prompts` (ids of different
    lengths), `tolerance` (of log-probabilities between batches; 0 where batches are computed alike), `draws_by_seed`
    (False where the sampler cannot draw as a function of the request's seed, then batches are not compared) and
    `gives_tokens` (False for endpoints that answer with messages; then only counts and order are checked).
    """

    vocab_size = 264
    stop_ids: tuple[int, ...] = (262,)
    prompts: Sequence[Sequence[int]] = (
        (257, 104, 105, 262, 258),
        (257, 97, 262, 258),
        (257, 98, 99, 100, 101, 262, 258),
    )
    max_tokens = 12
    tolerance = 1e-5
    draws_by_seed = True
    gives_tokens = True

    def make_sampler(self) -> Sampler:
        """A fresh sampler; the same weights each time."""
        raise NotImplementedError(f"{type(self).__name__} must override make_sampler")

    def request(
        self,
        prompt: Sequence[int],
        *,
        key: str = "a",
        seed: int = 0,
        params: SamplingParams | None = None,
        max_tokens: int | None = None,
    ) -> SampleRequest:
        """A request as a rollout would make it; override to fill in messages."""
        return SampleRequest(
            key=key,
            prompt_ids=array("i", prompt),
            params=params or SamplingParams(),
            max_tokens=max_tokens or self.max_tokens,
            seed=seed,
            stop_ids=self.stop_ids,
        )

    def sample(self, *requests: SampleRequest) -> Sequence[Sample]:
        """The samples of one batch, from a fresh sampler."""
        return asyncio.run(self._sample(requests))

    async def _sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        return await self.make_sampler().sample(requests)

    def batch(self, params: SamplingParams | None = None) -> list[SampleRequest]:
        """Every prompt with two seeds."""
        return [
            self.request(prompt, key=f"{index}/{seed}", seed=seed, params=params)
            for index, prompt in enumerate(self.prompts)
            for seed in (11, 12)
        ]

    # -- shape ---------------------------------------------------------------------------------------------------

    def test_one_sample_for_each_request(self) -> None:
        requests = self.batch()
        assert len(self.sample(*requests)) == len(requests), "a batch gives one sample for each request"

    def test_empty_batch(self) -> None:
        assert len(self.sample()) == 0, "no requests give no samples"

    def test_message_instead_of_tokens(self) -> None:
        if self.gives_tokens:
            return
        for sample in self.sample(*self.batch()):
            assert sample.message is not None, "a sampler without tokens sets Sample.message"
            assert not len(sample.token_ids), "a sampler without tokens leaves token_ids empty"
            assert not len(sample.logprobs), "a sampler without tokens leaves logprobs empty"

    def test_streams_are_aligned_and_sane(self) -> None:
        for sample in self._token_samples():
            assert 1 <= len(sample.token_ids) <= self.max_tokens, "an action has 1 to max_tokens tokens"
            assert len(sample.token_ids) == len(sample.logprobs), "every sampled token has a log-probability"
            assert len(sample.token_ids) == len(sample.versions), "every sampled token has a policy version"
            assert all(0 <= token < self.vocab_size for token in sample.token_ids), "ids lie in the vocabulary"
            assert all(math.isfinite(logprob) for logprob in sample.logprobs), "log-probabilities are finite"
            assert all(logprob <= 1e-6 for logprob in sample.logprobs), "log-probabilities are at most 0"

    def test_stop_id_ends_the_action_and_is_part_of_it(self) -> None:
        for sample in self._token_samples():
            stopped = sample.token_ids[-1] in self.stop_ids
            assert stopped == (sample.finish is Finish.STOP), "finish is STOP exactly where the last id is a stop id"
            inner = sample.token_ids[:-1]
            assert not any(token in self.stop_ids for token in inner), "nothing is sampled after a stop id"
            if not stopped:
                assert len(sample.token_ids) == self.max_tokens, "an action without stop id fills max_tokens"

    def test_max_tokens_one(self) -> None:
        if self.gives_tokens:
            (sample,) = self.sample(self.request(self.prompts[0], max_tokens=1))
            assert len(sample.token_ids) == 1, "max_tokens=1 gives one token"

    def test_one_version_for_a_batch(self) -> None:
        versions = {version for sample in self._token_samples() for version in sample.versions}
        assert len(versions) == 1 or not self.gives_tokens, (
            f"one batch is drawn from one policy version, got {versions}"
        )

    # -- draws ---------------------------------------------------------------------------------------------------

    def test_same_request_same_draws(self) -> None:
        if self._comparable():
            self._agree(self.sample(*self.batch()), self.sample(*self.batch()), "the same batch twice")

    def test_draws_do_not_depend_on_the_batch(self) -> None:
        if not self._comparable():
            return
        requests = self.batch()
        together = self.sample(*requests)
        backwards = list(reversed(self.sample(*reversed(requests))))
        self._agree(together, backwards, "the batch reversed")
        self._agree(together, [self.sample(request)[0] for request in requests], "each request alone")

    def test_prompt_is_not_changed(self) -> None:
        requests = self.batch()
        before = [request.prompt_ids[:] for request in requests]
        self.sample(*requests)
        assert [request.prompt_ids for request in requests] == before, "a sampler leaves the prompts as they are"

    def test_concurrent_batches_keep_apart(self) -> None:
        if not self._comparable():
            return
        first, second = self.batch()[:2], self.batch(GREEDY)[2:4]

        async def both() -> list[Sequence[Sample]]:
            sampler = self.make_sampler()
            return list(await asyncio.gather(sampler.sample(first), sampler.sample(second)))

        got = asyncio.run(both())
        self._agree(got[0], self.sample(*first), "a batch beside another")
        self._agree(got[1], self.sample(*second), "a batch beside another")

    def test_greedy_ignores_the_seed(self) -> None:
        if not self.gives_tokens:
            return
        samples = self.sample(*(self.request(self.prompts[0], seed=seed, params=GREEDY) for seed in range(3)))
        assert len({tuple(sample.token_ids) for sample in samples}) == 1, "temperature 0 takes the likeliest token"

    def test_top_k_one_is_greedy(self) -> None:
        self._like_greedy(SamplingParams(top_k=1))

    def test_tiny_top_p_is_greedy(self) -> None:
        self._like_greedy(SamplingParams(top_p=1e-6))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _comparable(self) -> bool:
        return self.gives_tokens and self.draws_by_seed

    def _token_samples(self) -> Sequence[Sample]:
        return self.sample(*self.batch()) if self.gives_tokens else ()

    def _like_greedy(self, params: SamplingParams) -> None:
        if not self.gives_tokens:
            return
        for prompt in self.prompts:
            narrow = [self.request(prompt, seed=seed, params=params) for seed in range(1, 4)]
            greedy, *others = self.sample(self.request(prompt, params=GREEDY), *narrow)
            same = all(other.token_ids == greedy.token_ids for other in others)
            assert same, f"{params} leaves only the likeliest token"

    def _agree(self, left: Sequence[Sample], right: Sequence[Sample], what: str) -> None:
        for one, other in zip(left, right, strict=True):
            assert one.token_ids == other.token_ids, f"{what}: other tokens were drawn"
            close = (abs(a - b) <= self.tolerance for a, b in zip(one.logprobs, other.logprobs, strict=True))
            assert all(close), f"{what}: log-probabilities differ by more than {self.tolerance}"
