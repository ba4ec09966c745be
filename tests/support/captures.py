"""Conversations with a capture, without HTTP, recorded and audited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.audit import audit_samples, audit_trajectory
from burnish.rollout.capture import Capture
from burnish.rollout.chat_api import ChatRequest, Completion, Refusal
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.samples import training_samples
from burnish.testing.fakes import FakeRenderer, ScriptedSampler, fake_tool

TASK = Task(prompt="What is 2 + 3?", system="Be brief.", id="t")
PLAN = EpisodePlan(id="rl/000001/0000/00", group_id="rl/000001/0000", task=TASK, sample_index=0, seed=7)
OPENING = (Message.system("Be brief."), Message.user("What is 2 + 3?"))
CALL = Message.assistant("", (ToolCall(id="x", name="add", arguments={"a": 2, "b": 3}),))
ADD = fake_tool("add", lambda arguments: str(arguments["a"] + arguments["b"]))
Program = Callable[[Capture], Awaitable[Any]]


def capture_of(program: Program, script: Any, **options: Any) -> tuple[Any, Trajectory, ScriptedSampler]:
    """What the program returned, and the trajectory that was captured of it; audited."""
    renderer = options.pop("renderer", None) or FakeRenderer()
    sampler = script if hasattr(script, "sample") else ScriptedSampler(script, renderer=renderer)

    async def run() -> tuple[Any, Trajectory]:
        capture = Capture(PLAN, renderer, sampler, SamplingParams(), options.pop("limits", None))
        found = await program(capture)
        await capture.close()
        return found, capture.record(capture.limit or COMPLETED)

    found, trajectory = asyncio.run(run())
    assert audit_trajectory(trajectory, renderer) == []
    if trajectory.outcome.may_carry_reward:
        assert audit_samples(trajectory, training_samples(trajectory, 1.0)) == []
    return found, trajectory, sampler


def ask(*messages: Message, **options: Any) -> ChatRequest:
    return ChatRequest(messages=messages, **options)


async def refusal(awaitable: Awaitable[Any]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await awaitable
    return caught.value


def result(completion: Completion, text: str) -> Message:
    return Message.tool(text, call=completion.message.tool_calls[0])


async def two_turns(capture: Capture) -> str:
    first = await capture.complete(ask(*OPENING, tools=(ADD.spec,)))
    history = (*OPENING, first.message, result(first, "5"))
    second = await capture.complete(ask(*history, tools=(ADD.spec,)))
    return second.message.text
