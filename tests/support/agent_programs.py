"""Programs written against the real OpenAI client, run with a scripted policy and audited."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
from captures import ADD, CALL

from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.audit import audit_samples, audit_trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import plan_groups
from burnish.rollout.programs import TaskView, run_programs
from burnish.rollout.samples import training_samples
from burnish.testing.fakes import FakeRenderer, ScriptedSampler

TOOLS = [ADD.spec.to_openai()]
CALL_TOKENS = len(FakeRenderer().encode_action(CALL))


def plans(count: int = 1) -> list[EpisodePlan]:
    tasks = [
        Task(prompt=f"What is 2 + 3? ({index})", system="Be brief.", id=f"t{index}", reference={"answer": "5"})
        for index in range(count)
    ]
    return plan_groups(tasks, phase="rl", step=0, group_size=1, run_seed=0)


async def agent(task: TaskView) -> str | None:
    """A two-turn tool agent."""
    async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
        messages: list[Any] = list(task.messages)
        while True:
            reply = await client.chat.completions.create(model="gpt-9", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
            message = reply.choices[0].message
            if not message.tool_calls:
                return message.content
            messages.append(message)
            messages += [tool_result(call) for call in message.tool_calls]


def tool_result(call: Any) -> dict[str, str]:
    arguments = json.loads(call.function.arguments)
    return {"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])}


def roll(program: Any, script: Any = (CALL, "5"), *, count: int = 1, **options: Any) -> list[Trajectory]:
    """Run a program with a scripted policy; everything audited."""
    sampler = script if hasattr(script, "sample") else ScriptedSampler(list(script))
    trajectories = asyncio.run(
        run_programs(
            plans(count),
            program=program,
            renderer=FakeRenderer(),
            sampler=sampler,
            params=SamplingParams(),
            **options,
        )
    )
    assert [trajectory.id for trajectory in trajectories] == [plan.id for plan in plans(count)]
    for trajectory in trajectories:
        assert audit_trajectory(trajectory, FakeRenderer()) == []
        if trajectory.outcome.may_carry_reward:
            assert audit_samples(trajectory, training_samples(trajectory, 1.0)) == []
    return trajectories
