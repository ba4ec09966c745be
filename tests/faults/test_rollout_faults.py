"""Bad worlds, bad tools, bad models: each a typed outcome, and the episodes beside them are untouched."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time

import pytest

from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.rollout import episode as episode_module
from burnish.rollout.audit import audit_trajectory
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler, fake_tool

CALL = Message.assistant("", (ToolCall(id="x", name="work", arguments={}),))
GOOD = [CALL, "42"]


def work(arguments) -> str:
    return "done"


def roll(make, *, script=GOOD, renderer=None, limits=None, n=4):
    """Episodes 0, 2, 3 ... are as they should be; `make()` is the world of episode 1."""
    tasks = [Task(prompt="go", id=f"t{index}") for index in range(n)]

    def world(task: Task):
        return make() if task.id == "t1" else FakeEnvironment(tools=[fake_tool("work", work)])

    trajectories = asyncio.run(
        run_episodes(
            plan_groups(tasks, phase="rl", step=0, group_size=1, run_seed=0),
            make_environment=world,
            renderer=renderer or FakeRenderer(),
            sampler=ScriptedSampler(script),
            params=SamplingParams(),
            limits=limits,
        )
    )
    for trajectory in trajectories:
        assert audit_trajectory(trajectory) == []
    assert len(trajectories) == n, "every plan gives one trajectory"
    others = [trajectory for trajectory in trajectories if trajectory.task_id != "t1"]
    assert all(trajectory.outcome == COMPLETED and trajectory.answer == "42" for trajectory in others)
    return trajectories[1]


@pytest.mark.parametrize(
    ("phase", "entered"),
    [
        ("start", ["start", "close"]),
        ("tools", ["start", "tools", "close"]),
        ("reply", ["start", "tools", "reply", "close"]),
        ("finish", ["start", "tools", "reply", "finish", "close"]),
    ],
)
def test_crash_of_the_world(phase, entered):
    world = FakeEnvironment(tools=[fake_tool("work", work)], fail_in={phase: RuntimeError("boom")})
    trajectory = roll(lambda: world)
    assert trajectory.outcome.owner is Owner.ENVIRONMENT
    assert trajectory.outcome.cause == f"{phase}_raised"
    assert "RuntimeError: boom (fakes.py:" in trajectory.outcome.detail
    assert not trajectory.outcome.may_carry_reward
    assert world.calls == entered, "the world is closed, once, whatever happened"


def test_crash_in_close_is_counted_and_changes_nothing():
    world = FakeEnvironment(tools=[fake_tool("work", work)], fail_in={"close": RuntimeError("boom")})
    trajectory = roll(lambda: world)
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["close_errors"] == 1


def test_crash_in_the_constructor():
    def make():
        raise OSError("no such database")

    trajectory = roll(make)
    assert trajectory.outcome.owner is Owner.ENVIRONMENT
    assert trajectory.outcome.cause == "make_environment_raised"
    assert "no such database" in trajectory.outcome.detail


@pytest.mark.parametrize("error", [SystemExit(1), KeyError("a"), asyncio.CancelledError()])
def test_odd_exceptions_in_reply(error):
    trajectory = roll(lambda: FakeEnvironment(tools=[fake_tool("work", work)], fail_in={"reply": error}))
    assert trajectory.outcome.cause == "reply_raised"


class Hanging(FakeEnvironment):
    phase = ""

    def _enter(self, phase):
        self.calls.append(phase)

    async def start(self, task):
        await self._hang("start")
        return await super().start(task)

    async def reply(self, message):
        await self._hang("reply")
        return

    async def finish(self, answer):
        await self._hang("finish")
        return {}

    async def close(self):
        await self._hang("close")

    async def _hang(self, phase):
        self.calls.append(phase)
        if phase == self.phase:
            await asyncio.sleep(3600)


@pytest.mark.parametrize("phase", ["start", "reply", "finish", "close"])
def test_hanging_world(phase, monkeypatch):
    monkeypatch.setattr(episode_module, "WORLD_TIMEOUT_S", 0.05)
    world = Hanging(tools=[fake_tool("work", work)])
    world.phase = phase
    trajectory = roll(lambda: world)
    if phase == "close":
        assert trajectory.counters["close_errors"] == 1
    else:
        assert trajectory.outcome.owner is Owner.ENVIRONMENT
        assert trajectory.outcome.cause == f"{phase}_timeout"


@pytest.mark.parametrize("shown", ["text", [], [1], 7, Message.user("x")])
def test_replies_that_are_no_messages(shown):
    class Wrong(FakeEnvironment):
        async def reply(self, message):
            return shown

    trajectory = roll(lambda: Wrong(tools=[fake_tool("work", work)]))
    assert trajectory.outcome.cause == "reply_not_messages"
    assert trajectory.outcome.owner is Owner.ENVIRONMENT


@pytest.mark.parametrize("state", [None, [1], {"x": object()}, {"x": float("nan")}])
def test_final_states_that_cannot_be_stored(state):
    class Wrong(FakeEnvironment):
        async def finish(self, answer):
            return state

    trajectory = roll(lambda: Wrong(tools=[fake_tool("work", work)]))
    assert trajectory.outcome.cause == "final_state_raised"


def broken_tool(arguments) -> str:
    raise RuntimeError("the database is gone")


def test_tool_that_raises():
    trajectory = roll(lambda: FakeEnvironment(tools=[fake_tool("work", broken_tool)]))
    assert trajectory.outcome.label == "error:environment"
    assert trajectory.outcome.cause == "tool_raised"
    assert "tool work raised RuntimeError: the database is gone" in trajectory.outcome.detail


def test_tool_that_hangs():
    async def hang(arguments) -> str:
        await asyncio.sleep(3600)
        return ""

    started_s = time.perf_counter()
    trajectory = roll(lambda: FakeEnvironment(tools=[fake_tool("work", hang, timeout_s=0.1)]))
    assert trajectory.outcome.cause == "tool_timeout"
    assert time.perf_counter() - started_s < 5


def test_tool_that_returns_ten_megabytes():
    tool = fake_tool("work", lambda arguments: "é" * 10_000_000)
    trajectory = roll(lambda: FakeEnvironment(tools=[tool]), limits=Limits(max_tool_result_chars=500))
    assert trajectory.outcome == COMPLETED
    assert trajectory.counters["cut_results"] == 1
    assert sum(len(node.token_ids) for node in trajectory.nodes) < 1200


NOT_JSON = [
    b'{"name": "work", "arguments": ',
    b"{}",
    b"[]",
    b'"work"',
    b"null",
    b'{"name": "work", "arguments": [1]}',
    b'{"name": "work", "arguments": {"a": NaN}}',
    b"[" * 5000,
    b"\xff\xfe",
    b"",
]


@pytest.mark.parametrize("body", NOT_JSON)
def test_invalid_json_from_the_model(body):
    bad = [260, *body, 261, FakeRenderer.end_id]
    trajectory = roll(
        lambda: FakeEnvironment(tools=[fake_tool("work", work)]),
        script=lambda request: bad if request.key == "rl/000000/0001/00/0" else "42",
        limits=Limits(max_turn_tokens=6000, max_episode_tokens=20_000, max_context_tokens=20_000),
    )
    assert trajectory.outcome == COMPLETED, "the model is told and goes on"
    assert trajectory.counters["malformed_calls"] == 1
    assert trajectory.messages[2].text.startswith("Error: unreadable tool call")


@pytest.mark.parametrize("phase", ["open", "extend", "parse"])
def test_renderer_that_breaks_is_infrastructure(phase):
    class Broken(FakeRenderer):
        def fail_for(self, name, messages):
            if name == phase and messages and "t1" in str(messages):
                raise KeyError("template")

        def open(self, messages, tools):
            self.fail_for("open", messages)
            return super().open(messages, tools)

        def extend(self, past, new, tools):
            self.fail_for("extend", past)
            return super().extend(past, new, tools)

        def parse(self, token_ids):
            self.fail_for("parse", bytes(t for t in token_ids if t < 256))
            return super().parse(token_ids)

    class Marked(FakeEnvironment):
        async def start(self, task):
            return [Message.user("I am t1")]

    trajectory = roll(
        lambda: Marked(tools=[fake_tool("work", work)]),
        script=lambda r: (
            Message.assistant("t1" if "/0001/" in r.key else "", CALL.tool_calls) if len(r.messages) == 1 else "42"
        ),
        renderer=Broken(),
    )
    assert trajectory.outcome.owner is Owner.INFRASTRUCTURE
    assert trajectory.outcome.cause == ("parse_raised" if phase == "parse" else "render_raised")


HUNG_TOOL = """
    import asyncio, time
    from burnish import Environment, Task, tool
    from burnish.core.message import Message, ToolCall
    from burnish.core.sampling import SamplingParams
    from burnish.rollout.group import plan_groups
    from burnish.rollout.runner import run_episodes
    from burnish.testing.fakes import FakeRenderer, ScriptedSampler

    class Sleepy(Environment):
        @tool(timeout_s=0.2)
        def nap(self, seconds: int) -> str:
            "Sleep."
            time.sleep(seconds)
            return "rested"

    def say(request):
        seconds = 3600 if "/0001/" in request.key else 0
        return Message.assistant("", (ToolCall(id="x", name="nap", arguments={"seconds": seconds}),)) \\
            if len(request.messages) < 2 else "done"

    tasks = [Task(prompt="go", id=f"t{i}", reference={"answer": "done"}) for i in range(3)]
    trajectories = asyncio.run(run_episodes(
        plan_groups(tasks, phase="rl", step=0, group_size=1, run_seed=0),
        make_environment=lambda task: Sleepy(),
        renderer=FakeRenderer(), sampler=ScriptedSampler(say), params=SamplingParams(),
    ))
    print([f"{t.outcome.label} {t.outcome.cause}".strip() for t in trajectories])
"""


def test_hung_sync_tool_does_not_keep_the_process_alive():
    started_s = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUNG_TOOL)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['completed', 'error:environment tool_timeout', 'completed']"
    assert time.perf_counter() - started_s < 30


def test_the_exit_check_sees_a_thread_that_holds_the_process():
    """Negative control: a thread that is no daemon does keep it alive."""
    code = "import threading, time; threading.Thread(target=time.sleep, args=(3600,)).start(); print('end', flush=True)"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=1, check=False)
