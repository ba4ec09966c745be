"""Episodes in host processes, with an environment that does what none should."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from wild_env import Wild

from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.environments.source import EnvironmentSource
from burnish.rollout.audit import audit_trajectory
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeRenderer, ScriptedSampler

SOURCE = EnvironmentSource.of(Wild)
LIMITS = Limits(max_turns=6, max_turn_tokens=2000, max_episode_tokens=20_000, max_context_tokens=100_000)
SOON_S = 8.0
"""Far beyond limit and grace, far below the 30 s that other limits are."""


def calling(name, **arguments):
    return Message.assistant("", (ToolCall(id="x", name=name, arguments=arguments),))


def roll(pool, turns_by_task, *, limits=LIMITS):
    """One episode for each entry, with these turns and then "done"; gives outcomes by task id."""
    tasks = [Task(prompt="go", id=name, reference={"answer": "done"}) for name in turns_by_task]
    names = [task.id for task in tasks]

    def say(request):
        _, _, group, _, turn = request.key.split("/")
        turns = [*turns_by_task[names[int(group)]], "done"]
        return turns[int(turn)]

    trajectories = asyncio.run(
        run_episodes(
            plan_groups(tasks, phase="rl", step=0, group_size=1, run_seed=0),
            make_environment=pool.make,
            renderer=FakeRenderer(),
            sampler=ScriptedSampler(say),
            params=SamplingParams(),
            limits=limits,
        )
    )
    for trajectory in trajectories:
        assert audit_trajectory(trajectory) == []
        assert trajectory.counters["close_errors"] == 0
    return {trajectory.task_id: trajectory for trajectory in trajectories}


def lost(trajectory):
    """Infrastructure, without a reward: to be started again."""
    outcome = trajectory.outcome
    return (outcome.owner, outcome.cause, outcome.may_carry_reward) == (Owner.INFRASTRUCTURE, "host_lost", False)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def until(condition, timeout_s=5.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        time.sleep(0.01)


async def opened(pool, task_id="t"):
    """A started environment and its tools by name."""
    environment = pool.make(Task(prompt="go", id=task_id))
    await environment.start(environment.task)
    return environment, {tool.spec.name: tool for tool in environment.tools()}


def zombies():
    """Children of this process that have ended and were never asked after."""
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,stat="], capture_output=True, text=True)
    return [line for line in children.stdout.splitlines() if line.split()[1].startswith("Z")]
