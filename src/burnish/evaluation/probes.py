"""Scripted episodes for the doctor, and what is measured while they run."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from burnish.core.environment import Environment, ScriptedPolicy
from burnish.core.grade import Aggregator, Grade, Grader
from burnish.core.hashing import canonical_json, derive_seed
from burnish.core.message import message_to_json
from burnish.core.sampling import Renderer
from burnish.core.task import Limits, Task
from burnish.core.tool import Tool, ToolSpec
from burnish.core.trajectory import Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import for_evaluation
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import MakeEnvironment, run_scripted

_HEARTBEAT_S = 0.005
_EXCERPT_CHARS = 120


class Scorable(Protocol):
    """An environment and what turns its episodes into rewards."""

    @property
    def make(self) -> MakeEnvironment: ...
    @property
    def graders(self) -> Sequence[Grader]: ...
    @property
    def aggregator(self) -> Aggregator: ...
    @property
    def limits(self) -> Limits: ...


class Recorder:
    """Notes every tool that environments offer and how long each call takes.

    `call_s` holds wall seconds in order of completion, `specs` the tools by name.
    """

    def __init__(self) -> None:
        self.call_s: list[float] = []
        self.specs: dict[str, ToolSpec] = {}

    def watch(self, environment: Environment) -> Environment:
        """The same environment, its `tools` replaced on the instance: experts find methods on the class as before."""
        offered = environment.tools

        def tools() -> list[Tool]:
            return [self._timed(tool) for tool in offered()]

        setattr(environment, "tools", tools)  # noqa: B010 - a plain assignment to a method does not type-check
        return environment

    def _timed(self, tool: Tool) -> Tool:
        self.specs.setdefault(tool.spec.name, tool.spec)

        async def call(arguments: Mapping[str, Any]) -> str:
            started_s = time.perf_counter()
            try:
                return await tool.call(arguments)
            finally:
                self.call_s.append(time.perf_counter() - started_s)

        return Tool(spec=tool.spec, call=call, timeout_s=tool.timeout_s, timeout_owner=tool.timeout_owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The episodes of one scripted policy.  tasks, trajectories, grades and rewards are parallel.

    `Probe(tasks=(t,), trajectories=(trajectory,), grades=((grade,),), rewards=(1.0,))`; a reward of None: excluded.
    """

    tasks: tuple[Task, ...]
    trajectories: tuple[Trajectory, ...]
    grades: tuple[tuple[Grade, ...], ...]
    rewards: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """Mean reward of the scored episodes, NaN for none."""
        scored = [reward for reward in self.rewards if reward is not None]
        return math.fsum(scored) / len(scored) if scored else math.nan

    @property
    def excluded(self) -> int:
        """Episodes without a reward."""
        return sum(reward is None for reward in self.rewards)

    def exclusions(self, limit: int = 3) -> str:
        """The most frequent reasons of exclusion, such as "12 x error:environment tool_raised: KeyError: 'A'"."""
        reasons = Counter(self._reason(i) for i, reward in enumerate(self.rewards) if reward is None)
        return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(limit))

    def _reason(self, index: int) -> str:
        outcome = self.trajectories[index].outcome
        if not outcome.may_carry_reward:
            return f"{outcome.label} {outcome.cause}: {outcome.detail}"
        failed = [grade for grade in self.grades[index] if grade.score is None and not grade.is_skipped]
        return f"grader {failed[0].grader}: {failed[0].cause}" if failed else "left out by the aggregator"


async def run_probe(
    subject: Scorable,
    tasks: Sequence[Task],
    policy: ScriptedPolicy,
    *,
    name: str,
    seed: int,
    renderer: Renderer | None,
    recorder: Recorder,
    grader_timeout_s: float = 30.0,
) -> Probe:
    """One episode of `policy` for each entry of `tasks` (a task may come several times), graded."""
    seen: Counter[str] = Counter()
    plans = []
    for index, task in enumerate(tasks):
        plans.append(
            EpisodePlan(
                id=f"doctor/{name}/{index:05d}",
                group_id=f"doctor/{name}/{task.id}",
                task=task,
                sample_index=seen[task.id],
                seed=derive_seed(seed, task.id, seen[task.id], 0),
            )
        )
        seen[task.id] += 1
    trajectories = await run_scripted(
        plans,
        make_environment=lambda task: recorder.watch(subject.make(task)),
        renderer=renderer,
        policy=policy,
        limits=subject.limits,
    )
    grades = await grade_trajectories(tasks, trajectories, subject.graders, timeout_s=grader_timeout_s)
    rewards = for_evaluation(subject.aggregator).rewards(grades)
    return Probe(
        tasks=tuple(tasks),
        trajectories=tuple(trajectories),
        grades=tuple(tuple(g) for g in grades),
        rewards=tuple(
            reward if trajectory.outcome.may_carry_reward else None
            for reward, trajectory in zip(rewards, trajectories, strict=True)
        ),
    )


def first_difference(a: Probe, b: Probe) -> str:
    """Where two runs of the same script part, "" if nowhere: messages, outcomes, final states, rewards; never times."""
    for index, (one, other) in enumerate(zip(a.trajectories, b.trajectories, strict=True)):
        part = _difference(one, other)
        if not part and a.rewards[index] != b.rewards[index]:
            part = f"the reward is {a.rewards[index]} and then {b.rewards[index]}"
        if part:
            return f"task {one.task_id}: {part}"
    return ""


def _difference(one: Trajectory, other: Trajectory) -> str:
    for index, (first, second) in enumerate(zip(one.messages, other.messages, strict=False)):
        texts = [canonical_json(message_to_json(message)) for message in (first, second)]
        if texts[0] != texts[1]:
            return f"message {index} ({first.role}) is {_excerpt(texts[0])} and then {_excerpt(texts[1])}"
    if len(one.messages) != len(other.messages):
        return f"{len(one.messages)} messages and then {len(other.messages)}"
    if one.outcome != other.outcome:
        return f"the outcome is {one.outcome.label} and then {other.outcome.label}"
    states = [canonical_json(trajectory.final_state) for trajectory in (one, other)]
    if states[0] != states[1]:
        return f"the final state is {_excerpt(states[0])} and then {_excerpt(states[1])}"
    return ""


async def loop_lag_s(run: Callable[[], Awaitable[Any]]) -> float:
    """The longest time in seconds for which the event loop served nobody else while `run` went on."""
    longest_s = 0.0
    done = asyncio.Event()

    async def heartbeat() -> None:
        nonlocal longest_s
        while not done.is_set():
            before_s = time.perf_counter()
            await asyncio.sleep(_HEARTBEAT_S)
            longest_s = max(longest_s, time.perf_counter() - before_s - _HEARTBEAT_S)

    beat = asyncio.create_task(heartbeat())
    await asyncio.sleep(0)
    try:
        await run()
    finally:
        done.set()
        await beat
    return longest_s


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "..."
