"""The capture without HTTP: limits, and samplers that break."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import Any

import pytest
from captures import OPENING, ask, capture_of, refusal

from burnish.core.errors import InvariantViolation, SamplerError
from burnish.core.message import Message
from burnish.core.outcome import COMPLETED, Limit, Owner
from burnish.core.sampling import Sample, SampleRequest
from burnish.core.task import Limits
from burnish.rollout.audit import path_ids
from burnish.rollout.capture import MAX_REFUSALS, Capture
from burnish.rollout.chat_api import Completion, Refusal
from burnish.testing.fakes import ScriptedSampler

# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_full_context_refuses_and_a_shorter_conversation_goes_on() -> None:
    limits = Limits(max_context_tokens=80)

    async def program(capture: Capture) -> None:
        first = await capture.complete(ask(*OPENING))
        refused = await refusal(capture.complete(ask(*OPENING, first.message, Message.user("x" * 80))))
        assert (refused.status, refused.code) == (400, "context_length_exceeded")
        assert capture.limit is not None
        assert capture.limit.limit is Limit.CONTEXT_TOKENS
        await capture.complete(ask(Message.user("summary")))

    _, trajectory, _ = capture_of(program, ["5"], limits=limits)
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["fork:new_conversation"] == 1
    assert max(len(path_ids(trajectory, leaf)) for leaf in trajectory.leaves()) <= 80


def test_a_first_prompt_that_is_too_long_is_no_fault_of_the_policy() -> None:
    async def program(capture: Capture) -> None:
        await refusal(capture.complete(ask(*OPENING)))

    _, trajectory, _ = capture_of(program, ["5"], limits=Limits(max_context_tokens=10))
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, "prompt_too_long")
    assert trajectory.nodes == ()


def test_requests_at_the_same_time_never_pass_the_token_limit() -> None:
    """Each may draw 10 of 25 tokens; the third has 5 and the fourth finds nothing left."""

    async def program(capture: Capture) -> list[Any]:
        asked = [capture.complete(ask(Message.user(f"agent {index}"))) for index in range(4)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found, trajectory, _ = capture_of(
        program, ["x" * 40], limits=Limits(max_turn_tokens=10, max_episode_tokens=25, max_turns=9)
    )
    assert trajectory.action_tokens <= 25
    assert any(isinstance(one, Refusal) for one in found)
    # Short answers leave room for all four.
    found, trajectory, _ = capture_of(
        program, ["x"], limits=Limits(max_turn_tokens=10, max_episode_tokens=25, max_turns=9)
    )
    assert all(isinstance(one, Completion) for one in found)
    assert trajectory.action_tokens == 8


def test_turns_under_way_count() -> None:
    async def program(capture: Capture) -> list[Any]:
        asked = [capture.complete(ask(Message.user(f"agent {index}"))) for index in range(5)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found, trajectory, _ = capture_of(program, ["x"], limits=Limits(max_turns=3))
    assert [isinstance(one, Refusal) for one in found].count(True) == 2
    assert {one.code for one in found if isinstance(one, Refusal)} == {"episode_limit_reached"}
    assert trajectory.outcome.limit is Limit.TURNS
    assert trajectory.counters["turns"] == 3


def test_a_program_that_goes_on_asking_is_to_be_stopped() -> None:
    async def program(capture: Capture) -> None:
        await capture.complete(ask(*OPENING))
        for _ in range(MAX_REFUSALS):
            assert not capture.stopped.is_set()
            await refusal(capture.complete(ask(Message.user("more"))))
        assert capture.stopped.is_set()

    _, trajectory, _ = capture_of(program, ["x"], limits=Limits(max_turns=1))
    assert trajectory.outcome.limit is Limit.TURNS
    assert len(trajectory.nodes) == 3, "what is refused again and again is not recorded again and again"


# -- samplers that break ---------------------------------------------------------------------------------------------


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        raise self.error


def test_a_sampler_that_fails_for_one_request_is_the_infrastructure() -> None:
    async def program(capture: Capture) -> None:
        assert (await refusal(capture.complete(ask(*OPENING)))).status == 500
        assert capture.stopped.is_set()
        assert capture.broken is None

    _, trajectory, _ = capture_of(program, Raising(SamplerError("502 for ever")))
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.INFRASTRUCTURE, "sampler_failed")


@pytest.mark.parametrize(
    "sample",
    [
        Sample(token_ids=array("i", list(b"ab")), logprobs=array("f", [-1]), versions=array("i", [0, 0])),
        Sample(token_ids=array("i", list(b"ab")), logprobs=array("f", [-1, -1]), versions=array("i", [0, 0])),
        Sample(
            token_ids=array("i", list(b"abc" * 50)), logprobs=array("f", [-1] * 150), versions=array("i", [0] * 150)
        ),
    ],
)
def test_a_sampler_that_breaks_its_contract_ends_the_run(sample: Sample) -> None:
    async def program(capture: Capture) -> None:
        assert (await refusal(capture.complete(ask(*OPENING)))).status == 500
        assert isinstance(capture.broken, InvariantViolation)

    capture_of(program, lambda request: sample)


def test_a_request_that_is_given_up_leaves_no_action() -> None:
    async def program(capture: Capture) -> None:
        slow.go.clear()
        asked = capture.begin(ask(*OPENING))
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait([asked])
        slow.go.set()
        await capture.complete(ask(*OPENING))

    class Slow(ScriptedSampler):
        go = asyncio.Event()

        async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
            await self.go.wait()
            return await super().sample(requests)

    slow = Slow(["5"])
    _, trajectory, _ = capture_of(program, slow)
    assert trajectory.counters["abandoned_requests"] == 1
    assert [node.is_action for node in trajectory.nodes] == [False, True]
