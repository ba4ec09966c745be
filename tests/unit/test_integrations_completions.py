"""The completions sampler against a server that answers like vLLM, or misbehaves."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_vllm import STOP, VOCAB, FakeVllm, drop, edit, fake_vllm, status

from burnish.core.errors import ConfigError, SamplerError
from burnish.core.sampling import Finish, Sample, SampleRequest, SamplingParams
from burnish.integrations.completions import CompletionsOptions, CompletionsSampler
from burnish.integrations.endpoint import EndpointCause, EndpointError
from burnish.testing.sampler import SamplerConformance


@pytest.fixture
def fake() -> Iterator[FakeVllm]:
    with fake_vllm() as server:
        yield server


class TestCompletionsSampler(SamplerConformance):
    vocab_size = VOCAB
    stop_ids = (STOP,)
    prompts = ((1, 2, 3), (4,), (5, 6))

    @pytest.fixture(autouse=True)
    def _serve(self, fake: FakeVllm) -> None:
        self.fake = fake

    def make_sampler(self) -> CompletionsSampler:
        return sampler(self.fake)


class Sleeps:
    """A sleep that takes no time and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)


def sampler(fake: FakeVllm, *, sleep: Sleeps | None = None, **options: Any) -> CompletionsSampler:
    return CompletionsSampler(
        f"{fake.url}/v1", "policy", "key", options=CompletionsOptions(**options), version=3, sleep=sleep or Sleeps()
    )


def request(key: str = "e/0", **changes: Any) -> SampleRequest:
    base = SampleRequest(
        key=key, prompt_ids=array("i", [1, 2]), params=SamplingParams(), max_tokens=9, seed=5, stop_ids=(STOP,)
    )
    return replace(base, **changes)


def run(one: CompletionsSampler, *requests: SampleRequest) -> list[Sample]:
    return list(asyncio.run(one.sample(requests)))


def test_tokens_and_versions_come_back_and_every_setting_goes_out(fake: FakeVllm) -> None:
    ours = sampler(fake)
    [sample] = run(ours, request(seed=2**63 - 1, params=SamplingParams(temperature=0.5)))
    assert list(sample.versions) == [3] * len(sample.token_ids)
    assert sample.kept is None
    [body] = fake.drawn
    assert body["prompt"] == [1, 2]
    assert body["stop_token_ids"] == [STOP]
    settings = {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": 2**63 - 1,
    }
    assert settings.items() <= body.items()
    assert body["ignore_eos"] is body["return_token_ids"] is True
    assert (ours.usage.prompt_tokens, ours.usage.completion_tokens) == (2, len(sample.token_ids))


GOOD = request()


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503, b""),
        status(429),
        status(200, b"<html>"),
        status(200, b"[1]"),
        status(200, {"choices": []}),
        drop,
        edit(lambda choice: choice.pop("token_ids")),
        edit(lambda choice: choice.update(token_ids=None)),
        edit(lambda choice: choice.update(token_ids=["1"])),
        edit(lambda choice: choice["token_ids"].__setitem__(0, -1)),
        edit(lambda choice: choice["token_ids"].__setitem__(0, 2**40)),
        edit(lambda choice: choice["token_ids"].pop(0)),
        edit(lambda choice: choice["token_ids"].insert(0, STOP)),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].pop()),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].append(-1.0)),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, None)),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, float("nan"))),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, 0.5)),
        edit(lambda choice: choice["logprobs"]["token_logprobs"].__setitem__(0, -9999.0)),
        edit(lambda choice: choice.update(logprobs=None)),
        edit(lambda choice: choice.update(prompt_token_ids=[7, 1, 2])),
        edit(lambda choice: choice.update(finish_reason="error")),
        # One token more, after the stop id.
        edit(lambda choice: (choice["token_ids"].append(2), choice["logprobs"]["token_logprobs"].append(-1.0))),
        # One token less, and no stop id.
        edit(lambda choice: (choice["token_ids"].pop(), choice["logprobs"]["token_logprobs"].pop())),
    ],
)
def test_whatever_does_not_add_up_is_tried_again_and_is_no_sample(fake: FakeVllm, fault: Any) -> None:
    [undisturbed] = run(sampler(fake), GOOD)
    assert undisturbed.finish is Finish.STOP
    assert len(undisturbed.token_ids) > 1
    fake.bodies.clear()
    fake.faults[:] = [fault, fault]
    ours = sampler(fake)
    [sample] = run(ours, GOOD)
    assert sample == undisturbed
    assert len(fake.drawn) == 3
    assert ours.usage.retries == 2


@pytest.mark.parametrize(
    ("fault", "cause", "tries"),
    [
        (status(500), EndpointCause.SERVER_ERROR, 3),
        (status(429), EndpointCause.RATE_LIMITED, 3),
        (drop, EndpointCause.MALFORMED_RESPONSE, 3),
        (status(401), EndpointCause.UNAUTHORIZED, 1),
        (status(400, b"Token id 9999 is out of vocabulary"), EndpointCause.REFUSED, 1),
    ],
)
def test_a_lasting_failure_is_a_typed_sampler_error(
    fake: FakeVllm, fault: Any, cause: EndpointCause, tries: int
) -> None:
    fake.faults[:] = [fault] * 3
    with pytest.raises(EndpointError) as caught:
        run(sampler(fake, max_attempts=3), request())
    assert isinstance(caught.value, SamplerError)
    assert (caught.value.cause, caught.value.attempts) == (cause, tries)
    assert len(fake.drawn) == tries


def test_one_request_fails_alone_where_each_is_sampled_for_itself(fake: FakeVllm) -> None:
    fake.faults[:] = [status(401)]
    ours = sampler(fake, max_in_flight=1)

    async def apart() -> list[Any]:
        return await asyncio.gather(*(ours.sample([request(str(i))]) for i in range(4)), return_exceptions=True)

    outcomes = asyncio.run(apart())
    assert [isinstance(outcome, EndpointError) for outcome in outcomes] == [True, False, False, False]
    # Together, as the lockstep runner asks, all of them fail.
    fake.faults[:] = [status(401)]
    with pytest.raises(EndpointError, match="unauthorized"):
        run(ours, *(request(str(i)) for i in range(4)))


def test_retry_after_holds_all_requests_back(fake: FakeVllm) -> None:
    sleep = Sleeps()
    fake.faults[:] = [status(429, b"", Retry_After="9")]
    run(sampler(fake, sleep=sleep, backoff_s=0.0, max_in_flight=1), request("a"), request("b"))
    assert sleep.asked_s[0] == pytest.approx(9.0, abs=0.2)
    assert len(sleep.asked_s) >= 2


def test_a_server_that_is_away() -> None:
    away = CompletionsSampler(
        "http://127.0.0.1:9/v1", "policy", options=CompletionsOptions(max_attempts=2), sleep=Sleeps()
    )
    with pytest.raises(SamplerError, match="unreachable after 2 attempts"):
        run(away, request())


def test_requests_in_flight_are_bounded_over_calls(fake: FakeVllm) -> None:
    fake.delay_s = 0.005
    ours = sampler(fake, max_in_flight=3)

    async def apart() -> None:
        await asyncio.gather(*(ours.sample([request(str(i))]) for i in range(12)))

    asyncio.run(apart())
    assert 2 <= fake.most_running <= 3


def test_kept_sets_are_those_that_were_drawn_from(fake: FakeVllm) -> None:
    [sample] = run(sampler(fake), request(params=SamplingParams(temperature=0.7, top_k=3, top_p=0.6)))
    assert sample.kept is not None
    assert len(sample.kept.counts) == len(sample.token_ids)
    body, last, start = fake.drawn[0], 2, 0
    for token, count in zip(sample.token_ids, sample.kept.counts, strict=True):
        chances = fake.distribution(last, body)
        assert list(sample.kept.ids[start : start + count]) == [i for i, chance in enumerate(chances) if chance]
        last, start = token, start + count


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.99), SamplingParams(top_k=4)])
def test_a_set_that_was_not_seen_whole_is_refused(fake: FakeVllm, params: SamplingParams) -> None:
    with pytest.raises(ConfigError, match="max_kept"):
        run(sampler(fake, max_kept=3), request(params=params))
    [sample] = run(sampler(fake, max_kept=8), request(params=params))
    assert sample.kept is not None


def test_raw_log_probabilities_are_refused_where_they_would_be_wrong(fake: FakeVllm) -> None:
    fake.processed = False
    ours = sampler(fake)
    for params in (SamplingParams(temperature=0.8), SamplingParams(top_k=2), SamplingParams(top_p=0.9)):
        with pytest.raises(ConfigError, match="processed_logprobs"):
            run(ours, request(params=params))
    assert run(ours, request())[0].token_ids
    assert set(run(ours, request(params=SamplingParams(temperature=0.0)))[0].logprobs) == {0.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"params": SamplingParams(temperature=0.001)}, "at least 0.01"),
        ({"prompt_ids": array("i", [1] * 64)}, "max_context_tokens"),
    ],
)
def test_what_the_server_cannot_do_is_said(fake: FakeVllm, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(sampler(fake), request(**change))
    assert not fake.drawn


def test_the_budget_ends_where_the_servers_context_does(fake: FakeVllm) -> None:
    [sample] = run(sampler(fake), request(prompt_ids=array("i", [1] * 62), stop_ids=()))
    assert (len(sample.token_ids), sample.finish) == (2, Finish.LENGTH)
    fake.max_model_len = None
    fake.faults[:] = [status(400, b"max_tokens must be at least 1, got 0.")]
    with pytest.raises(ConfigError, match="max_context_tokens"):
        run(sampler(fake), request())


def test_a_server_without_token_ids_or_without_the_model_is_refused_at_once(fake: FakeVllm) -> None:
    with pytest.raises(ConfigError, match="it serves policy"):
        run(CompletionsSampler(f"{fake.url}/v1", "other"), request())
    plain = fake.complete

    def without(body: dict[str, Any]) -> dict[str, Any]:
        data = plain(body)
        del data["choices"][0]["token_ids"]
        return data

    fake.complete = without  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="return_token_ids"):
        run(sampler(fake), request())


def test_the_server_is_asked_what_it_is_once(fake: FakeVllm) -> None:
    ours = sampler(fake)

    async def apart() -> None:
        await asyncio.gather(*(ours.sample([request(str(i))]) for i in range(8)))

    asyncio.run(apart())
    run(ours, request())
    assert len(fake.bodies) - len(fake.drawn) == 2
    assert len(fake.drawn) == 9


def test_an_action_that_was_aborted_goes_on_where_it_was(fake: FakeVllm) -> None:
    fake.delay_s = 0.01
    ours = sampler(fake)

    async def interrupted() -> Sample:
        await ours.facts()
        asking = asyncio.create_task(ours.sample([request(max_tokens=30, stop_ids=())]))
        await asyncio.sleep(0.08)
        async with ours.gate.shut():
            fake.open.clear()
            assert await ours.gate.empty(5.0)
            ours.version = 4
            fake.open.set()
        return (await asking)[0]

    sample = asyncio.run(interrupted())
    assert len(sample.token_ids) == 30
    first, second = fake.drawn
    cut = sum(version == 3 for version in sample.versions)
    assert 0 < cut < 30
    assert list(sample.versions) == [3] * cut + [4] * (30 - cut)
    assert second["prompt"] == [1, 2, *sample.token_ids[:cut]]
    assert second["max_tokens"] == 30 - cut
    assert first["seed"] != second["seed"]


def test_a_server_that_aborts_for_ever_is_an_error(fake: FakeVllm) -> None:
    def nothing(choice: dict[str, Any]) -> None:
        choice.update(token_ids=[], finish_reason="abort", logprobs={"token_logprobs": [], "top_logprobs": []})

    fake.faults[:] = [edit(nothing)] * 9
    with pytest.raises(EndpointError, match="keeps aborting"):
        run(sampler(fake, max_attempts=3), request())


def test_what_hangs_in_a_paused_server_is_recalled(fake: FakeVllm) -> None:
    ours = sampler(fake)

    async def paused() -> Sample:
        await ours.facts()
        fake.open.clear()
        asking = asyncio.create_task(ours.sample([request()]))
        await asyncio.sleep(0.1)
        async with ours.gate.shut():
            assert not await ours.gate.empty(0.05)
            ours.gate.recall()
            assert await ours.gate.empty(1.0)
            ours.version = 9
            fake.open.set()
        return (await asking)[0]

    assert set(asyncio.run(paused()).versions) == {9}


def test_after_an_update_that_failed_nothing_is_sampled(fake: FakeVllm) -> None:
    ours = sampler(fake)

    async def broken() -> None:
        async with ours.gate.shut():
            raise OSError("half written")

    with pytest.raises(OSError, match="half written"):
        asyncio.run(broken())
    with pytest.raises(Exception, match="half written"):
        run(ours, request())


def test_cancelled_episodes_leave_nothing_behind(fake: FakeVllm) -> None:
    fake.delay_s = 0.05
    ours = sampler(fake)

    async def cancelled() -> bool:
        await ours.facts()
        asking = asyncio.create_task(ours.sample([request(max_tokens=50, stop_ids=())]))
        await asyncio.sleep(0.1)
        asking.cancel()
        started = time.perf_counter()
        assert await ours.gate.empty(1.0)
        return time.perf_counter() - started < 0.5

    assert asyncio.run(cancelled())
