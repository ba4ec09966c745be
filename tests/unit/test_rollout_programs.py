"""Programs written against the real OpenAI client, run and recorded through the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from agent_programs import CALL_TOKENS, TOOLS, agent, plans, roll, tool_result
from captures import ADD, CALL

from burnish.core.errors import InvariantViolation, SamplerError
from burnish.core.message import ImagePart
from burnish.core.outcome import COMPLETED, Limit, Owner
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import plan_groups
from burnish.rollout.pool import EpisodePool
from burnish.rollout.programs import TaskView, program_roll, run_programs
from burnish.rollout.proxy import CaptureServer
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler


def timeless(trajectory: Trajectory) -> str:
    nodes = tuple(dataclasses.replace(node, started_s=0.0, duration_s=0.0) for node in trajectory.nodes)
    return repr(dataclasses.replace(trajectory, nodes=nodes, tool_s=0, total_s=0, counters={}, final_state={}))


# -- what comes out --------------------------------------------------------------------------------------------------


def test_an_agent_program_gives_the_trajectories_of_an_episode() -> None:
    """Golden: 64 programs at a time, token for token what the runner gives for the same tools and script."""
    captured = roll(agent, count=64)
    sampler = ScriptedSampler([CALL, "5"])
    expected = asyncio.run(
        run_episodes(
            plans(64),
            make_environment=lambda task: FakeEnvironment(tools=[ADD]),
            renderer=FakeRenderer(),
            sampler=sampler,
            params=SamplingParams(),
        )
    )
    assert [timeless(one) for one in captured] == [timeless(one) for one in expected]
    assert {trajectory.outcome for trajectory in captured} == {COMPLETED}
    assert {trajectory.answer for trajectory in captured} == {"5"}


def test_max_live() -> None:
    live, most = 0, 0

    async def counted(task: TaskView) -> str | None:
        nonlocal live, most
        live += 1
        most = max(most, live)
        try:
            return await agent(task)
        finally:
            live -= 1

    roll(counted, count=9, max_live=3)
    assert most == 3


def test_the_view_holds_no_reference() -> None:
    seen: list[TaskView] = []

    async def look(task: TaskView) -> str | None:
        seen.append(task)
        return await agent(task)

    roll(look)
    assert [message["role"] for message in seen[0].messages] == ["system", "user"]
    names = {field.name for field in dataclasses.fields(TaskView)}
    assert not names & {"reference", "setup", "task"}
    assert "reference" not in seen[0].to_json()


def test_a_blocking_program_runs_on_a_thread() -> None:
    """All of them are under way at one time: none holds up another."""
    barrier = threading.Barrier(12, timeout=20)

    def blocking(task: TaskView) -> str:
        barrier.wait()
        with openai.OpenAI(base_url=task.base_url, api_key=task.api_key) as client:
            reply = client.chat.completions.create(model="m", messages=list(task.messages))  # type: ignore[arg-type]
            return reply.choices[0].message.content or ""

    trajectories = roll(blocking, ["5"], count=12)
    assert {(trajectory.outcome, trajectory.answer) for trajectory in trajectories} == {(COMPLETED, "5")}


def test_no_answer_means_the_latest_words() -> None:
    async def silent(task: TaskView) -> None:
        await agent(task)

    assert roll(silent)[0].answer == "5"


def test_streaming() -> None:
    async def stream(task: TaskView) -> str:
        async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
            messages: list[Any] = list(task.messages)
            options = {"model": "m", "tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}}
            text, calls, usage, reasons = "", {}, None, []
            async for chunk in await client.chat.completions.create(messages=messages, **options):  # type: ignore[call-overload]
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reasons += [choice.finish_reason] if choice.finish_reason else []
                    for call in choice.delta.tool_calls or []:
                        calls[call.index] = call
            assert reasons == ["tool_calls"]
            assert usage is not None
            assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0
            message = {"role": "assistant", "content": text or None, "tool_calls": [calls[0].model_dump()]}
            messages += [message, tool_result(calls[0])]
            async with client.chat.completions.stream(model="m", messages=messages) as events:
                return (await events.get_final_completion()).choices[0].message.content or ""

    [trajectory] = roll(stream)
    assert (trajectory.outcome, trajectory.answer) == (COMPLETED, "5")
    assert trajectory.counters["forks"] == 0


def test_the_api_key_alone_finds_the_episode() -> None:
    async def plain(task: TaskView) -> str | None:
        bare = task.base_url.partition("/e/")[0] + "/v1"
        return await agent(dataclasses.replace(task, base_url=bare))

    assert roll(plain)[0].outcome == COMPLETED


def test_models_are_listed() -> None:
    async def look(task: TaskView) -> str | None:
        async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
            assert [model.id async for model in client.models.list()] == [task.model]
        return await agent(task)

    assert roll(look)[0].outcome == COMPLETED


def test_parallel_sub_agents() -> None:
    async def parent(task: TaskView) -> str:
        async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:

            async def sub(index: int) -> str:
                messages: list[Any] = [{"role": "user", "content": f"sub-agent {index}"}]
                for _ in range(2):
                    reply = await client.chat.completions.create(model="m", messages=messages)
                    messages += [reply.choices[0].message, {"role": "user", "content": "go on"}]
                return reply.choices[0].message.content or ""

            return " ".join(await asyncio.gather(*(sub(index) for index in range(4))))

    [trajectory] = roll(parent, ["5"], limits=Limits(max_turns=8))
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["fork:new_conversation"] == 3
    assert len(list(trajectory.leaves())) == 4
    assert trajectory.counters["turns"] == 8


def test_time_in_the_program_is_told_apart() -> None:
    async def slow(task: TaskView) -> str | None:
        await asyncio.sleep(0.2)
        return await agent(task)

    [trajectory] = roll(slow)
    assert 190 <= trajectory.counters["program_ms"] <= 1000 * trajectory.total_s


def test_the_pool_runs_programs() -> None:
    async def run() -> list[Trajectory]:
        async with CaptureServer() as server:
            roll = program_roll(
                server,
                program=agent,
                renderer=FakeRenderer(),
                sampler=ScriptedSampler([CALL, "5"]),
                params=SamplingParams(),
            )
            pool = EpisodePool(roll)
            made = plan_groups([Task(prompt="x")], phase="rl", step=0, group_size=4, run_seed=0)
            pool.start(made)
            group = await pool.next()
            await pool.close()
            return list(group.trajectories)

    assert [trajectory.outcome for trajectory in asyncio.run(run())] == [COMPLETED] * 4


# -- parameters ------------------------------------------------------------------------------------------------------


def with_options(**options: Any) -> Any:
    async def program(task: TaskView) -> str | None:
        async with openai.AsyncOpenAI(base_url=task.base_url, api_key=task.api_key) as client:
            reply = await client.chat.completions.create(model="m", messages=list(task.messages), **options)  # type: ignore[call-overload]
            return str(reply.choices[0].message.content)

    return program


def test_how_tokens_are_drawn_is_the_runs_business() -> None:
    sampler = ScriptedSampler(["5"])
    [trajectory] = roll(with_options(temperature=0.0, top_p=0.5, seed=3, presence_penalty=0.0), sampler)
    assert sampler.requests[0].params == SamplingParams()
    assert trajectory.counters["ignored_params"] == 3
    assert trajectory.counters["ignored:temperature"] == 1
    assert roll(with_options(temperature=1.0, top_p=1))[0].counters["ignored_params"] == 0


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 4}, "n"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, "response_format"),
        ({"tool_choice": "required", "tools": TOOLS}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"guided_json": {}}}, "guided_json"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0]"),
        (
            {"extra_body": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}},
            "messages[0].content[0]",
        ),
        ({"extra_body": {"messages": [{"role": "wizard", "content": "x"}]}}, "messages[0]"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(options: dict[str, Any], param: str) -> None:
    errors = []

    async def program(task: TaskView) -> str | None:
        try:
            return await with_options(**options)(task)  # type: ignore[no-any-return]
        except openai.BadRequestError as error:
            errors.append(error)
            raise

    [trajectory] = roll(program)
    assert errors[0].param == param
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, "program_request_refused")
    assert param in trajectory.outcome.detail
    assert trajectory.counters["refused_requests"] == 1


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "limit", "code"),
    [
        (Limits(max_turns=2), Limit.TURNS, "episode_limit_reached"),
        (Limits(max_turn_tokens=7), Limit.TURN_TOKENS, "no error: finish_reason is length"),
        (Limits(max_episode_tokens=70), Limit.EPISODE_TOKENS, "no error: finish_reason is length"),
        (Limits(max_episode_tokens=CALL_TOKENS), Limit.EPISODE_TOKENS, "episode_limit_reached"),
        (Limits(max_context_tokens=150), Limit.CONTEXT_TOKENS, "no error: finish_reason is length"),
        (Limits(max_context_tokens=33 + CALL_TOKENS), Limit.CONTEXT_TOKENS, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("swallows", [False, True])
def test_a_limit_is_the_outcome_whatever_the_program_makes_of_it(
    limits: Limits, limit: Limit, code: str, swallows: bool
) -> None:
    async def endless(task: TaskView) -> str | None:
        try:
            return await agent(task)
        except openai.BadRequestError as error:
            codes.append(error.code)
            if swallows:
                return "I give up"
            raise ValueError("my agent broke") from error

    codes: list[str | None] = []
    [trajectory] = roll(endless, [CALL], limits=limits)
    assert trajectory.outcome.limit is limit
    assert codes == ([] if code.startswith("no error") else [code])


def test_time() -> None:
    async def slow(task: TaskView) -> str | None:
        await agent(task)
        await asyncio.sleep(60)
        return "late"

    started_s = time.perf_counter()
    [trajectory] = roll(slow, limits=Limits(timeout_s=0.4))
    assert trajectory.outcome.limit is Limit.TIME
    assert trajectory.counters["turns"] == 2
    assert time.perf_counter() - started_s < 5


# -- programs that break ---------------------------------------------------------------------------------------------


async def breaks(task: TaskView) -> str:
    await agent(task)
    raise KeyError("oops")


async def never_asks(task: TaskView) -> str:
    return "5"


async def wrong_type(task: TaskView) -> Any:
    await agent(task)
    return 5


async def exits(task: TaskView) -> str:
    sys.exit(3)


async def swallows_a_refusal(task: TaskView) -> str:
    with contextlib.suppress(openai.OpenAIError):
        await with_options(n=2)(task)
    return "5"


@pytest.mark.parametrize(
    ("program", "cause", "words"),
    [
        (breaks, "program_raised", "KeyError: 'oops'"),
        (lambda task: 1 / 0, "program_raised", "ZeroDivisionError"),
        (exits, "program_raised", "SystemExit"),
        (never_asks, "program_never_asked", "base_url"),
        (swallows_a_refusal, "program_never_asked", "n is 2"),
        (wrong_type, "program_answer_not_text", "int 5"),
    ],
)
def test_a_program_that_breaks_is_an_environment_error(program: Any, cause: str, words: str) -> None:
    [trajectory] = roll(program)
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, cause)
    assert words in trajectory.outcome.detail


def test_a_program_that_breaks_leaves_the_others_alone() -> None:
    async def some(task: TaskView) -> str | None:
        return await (breaks if task.id == "t1" else agent)(task)

    outcomes = [trajectory.outcome.label for trajectory in roll(some, count=4)]
    assert outcomes == ["completed", "error:environment", "completed", "completed"]


def test_tasks_with_images_are_not_for_programs() -> None:
    image = ImagePart(sha256="0" * 64, media_type="image/png", width_px=1, height_px=1)
    plan = EpisodePlan(id="a", group_id="a", task=Task(prompt=(image,)), sample_index=0, seed=0)
    sampler = ScriptedSampler(["5"])
    [trajectory] = asyncio.run(
        run_programs([plan], program=agent, renderer=FakeRenderer(), sampler=sampler, params=SamplingParams())
    )
    assert trajectory.outcome.cause == "task_has_images"


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def sample(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        raise self.error


def test_a_sampler_that_breaks_ends_the_call_and_one_that_fails_does_not() -> None:
    with pytest.raises(InvariantViolation, match="stale"):
        roll(agent, Broken(InvariantViolation("freshness", "stale")), count=3)
    outcomes = {trajectory.outcome.label for trajectory in roll(agent, Broken(SamplerError("502")), count=3)}
    assert outcomes == {"error:infrastructure"}


# -- command lines ---------------------------------------------------------------------------------------------------

COMMAND = """
import json, sys, openai
task = json.load(sys.stdin)
reply = openai.OpenAI().chat.completions.create(model=task["model"], messages=task["messages"])
print("logging", file=sys.stderr)
print(reply.choices[0].message.content)
"""


def command(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_a_command_line() -> None:
    [trajectory] = roll(command(COMMAND), ["5"])
    assert (trajectory.outcome, trajectory.answer) == (COMPLETED, "5")
    assert trajectory.counters["turns"] == 1


@pytest.mark.parametrize(
    ("words", "cause", "detail"),
    [
        (command("import sys; sys.exit('no luck')"), "program_exit", "exit code 1: no luck"),
        (command("import os; os.kill(os.getpid(), 9)"), "program_exit", "exit code -9"),
        (command("while True: print('x' * 1000)"), "program_output", "standard error"),
        (["/no/such/program"], "program_raised", "FileNotFoundError"),
    ],
)
def test_a_command_line_that_breaks(words: list[str], cause: str, detail: str) -> None:
    [trajectory] = roll(words)
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, cause)
    assert detail in trajectory.outcome.detail


def test_a_command_line_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    path = str(beat)
    code = f"""
        import subprocess, sys, time
        child = "import time, pathlib as p\\nwhile 1: p.Path({path!r}).write_text(str(time.time())); time.sleep(.02)"
        subprocess.Popen([sys.executable, "-c", child])
        time.sleep(60)
    """
    [trajectory] = roll(command(code), limits=Limits(timeout_s=1.0))
    assert trajectory.outcome.limit is Limit.TIME
    assert beat.exists(), "the child ran"
    time.sleep(0.1)
    last = beat.read_text()
    time.sleep(0.2)
    assert beat.read_text() == last, "the child is dead"
