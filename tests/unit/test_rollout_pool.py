"""The asynchronous pool gives the groups of the synchronous runner, whatever order things happen in."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest

from burnish.core.errors import InvariantViolation, RunStopped, SamplerError
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Owner
from burnish.core.sampling import Sample, SampleRequest, SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import plan_groups
from burnish.rollout.pool import EpisodePool, FinishedGroup, episode_roll
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler, fake_tool


def groups(n_tasks: int = 4, group_size: int = 3) -> list[list[EpisodePlan]]:
    tasks = [Task(prompt=f"task {index}", id=f"t{index}") for index in range(n_tasks)]
    plans = plan_groups(tasks, phase="rl", step=12, group_size=group_size, run_seed=0)
    return [plans[start : start + group_size] for start in range(0, len(plans), group_size)]


def timeless(trajectory: Trajectory) -> str:
    nodes = tuple(dataclasses.replace(node, started_s=0.0, duration_s=0.0) for node in trajectory.nodes)
    return repr(dataclasses.replace(trajectory, nodes=nodes, tool_s=0.0, total_s=0.0))


def say(request: SampleRequest) -> Message | str:
    """1 to 4 turns of calls, then an answer; a function of the request alone."""
    rng = Random(request.seed)
    if rng.random() < 0.3 or len(request.messages) > 6:
        return f"answer {rng.random()}"
    return Message.assistant("", (ToolCall(id="x", name="nap", arguments={"n": rng.randint(0, 99)}),))


def napping(longest_s: float) -> FakeEnvironment:
    rng = Random()

    async def nap(arguments: dict[str, int]) -> str:
        await asyncio.sleep(rng.random() * longest_s)
        return f"slept {arguments['n']}"

    return FakeEnvironment(tools=[fake_tool("nap", nap)])


def make_pool(
    sampler: object = None, *, make: Callable[[Task], FakeEnvironment] | None = None, **settings: int
) -> EpisodePool:
    roll = episode_roll(
        make_environment=make or (lambda task: napping(0.01)),
        renderer=FakeRenderer(),
        sampler=sampler or ScriptedSampler(say),
        params=SamplingParams(),
    )
    return EpisodePool(roll, **settings)


def collect(
    chosen: Sequence[Sequence[EpisodePlan]], pool_of: Callable[[], EpisodePool], need: int | None = None
) -> list[FinishedGroup]:
    async def run() -> list[FinishedGroup]:
        pool = pool_of()
        for plans in chosen:
            pool.start(plans, need=need)
        try:
            return [await asyncio.wait_for(pool.next(), 20) for _ in chosen]
        finally:
            await pool.close()

    return asyncio.run(run())


@pytest.mark.parametrize("max_running", [0, 1, 5])
def test_groups_are_those_of_the_synchronous_runner(max_running: int) -> None:
    chosen = groups(6)
    finished = collect(chosen, lambda: make_pool(max_running=max_running))
    expected = asyncio.run(
        run_episodes(
            [plan for plans in chosen for plan in plans],
            make_environment=lambda task: napping(0.0),
            renderer=FakeRenderer(),
            sampler=ScriptedSampler(say),
            params=SamplingParams(),
        )
    )
    got = sorted((t for group in finished for t in group.trajectories), key=lambda t: t.id)
    assert [timeless(t) for t in got] == [timeless(t) for t in sorted(expected, key=lambda t: t.id)]
    for group in finished:
        assert [t.sample_index for t in group.trajectories] == [0, 1, 2], "members come in sample order"


def test_groups_come_out_as_they_finish() -> None:
    def world(task: Task) -> FakeEnvironment:
        return napping(0.0) if task.id == "t1" else napping(0.3)

    calls = [Message.assistant("", (ToolCall(id="x", name="nap", arguments={"n": 1}),)), "done"]
    first, *_ = collect(groups(2, 8), lambda: make_pool(ScriptedSampler(calls), make=world))
    assert first.group_id.endswith("/0001")


def test_at_most_max_running_at_a_time() -> None:
    now, most = 0, 0

    async def nap(arguments: object) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.005)
        now -= 1
        return "slept"

    calls = [Message.assistant("", (ToolCall(id="x", name="nap", arguments={}),)), "done"]
    make = lambda task: FakeEnvironment(tools=[fake_tool("nap", nap)])  # noqa: E731
    collect(groups(4), lambda: make_pool(ScriptedSampler(calls), make=make, max_running=5))
    assert 1 < most <= 5


def test_surplus_members_are_cancelled_and_counted() -> None:
    worlds: list[FakeEnvironment] = []

    def world(task: Task) -> FakeEnvironment:
        worlds.append(napping(0.0 if len(worlds) % 3 else 5.0))
        return worlds[-1]

    calls = [Message.assistant("", (ToolCall(id="x", name="nap", arguments={"n": 1}),)), "done"]
    for group in collect(groups(2), lambda: make_pool(ScriptedSampler(calls), make=world), need=2):
        assert [t.sample_index for t in group.trajectories] == [1, 2]
        assert group.cancelled == 1
    assert all(world.calls[-1] == "close" for world in worlds), "cancelled worlds are closed too"


class Flaky:
    """Fails each key's first `failures` requests."""

    def __init__(self, failures: int) -> None:
        self.failures, self.seen, self.inner = failures, {}, ScriptedSampler(["42"])

    async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
        key = requests[0].key
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] <= self.failures:
            raise SamplerError("the server answered 503")
        return await self.inner.sample(requests)


def test_an_episode_that_the_infrastructure_broke_runs_again() -> None:
    (group,) = collect(groups(1), lambda: make_pool(Flaky(1)))
    assert group.requeued == 3
    assert [t.answer for t in group.trajectories] == ["42"] * 3


def test_what_stays_broken_is_an_infrastructure_error_and_no_zero() -> None:
    (group,) = collect(groups(1), lambda: make_pool(Flaky(9), retries=1))
    assert {t.outcome.owner for t in group.trajectories} == {Owner.INFRASTRUCTURE}
    assert {t.outcome.cause for t in group.trajectories} == {"sampler_failed"}
    assert not any(t.outcome.may_carry_reward for t in group.trajectories)


@pytest.mark.parametrize("error", [RunStopped("non_finite_logits", "NaN"), InvariantViolation("x", "y")])
def test_errors_that_no_episode_may_swallow_come_out(error: Exception) -> None:
    class Broken:
        async def sample(self, requests: Sequence[SampleRequest]) -> Sequence[Sample]:
            raise error

    with pytest.raises(type(error)):
        collect(groups(1), lambda: make_pool(Broken()))


def awaited(work: Callable[[], Awaitable[object]]) -> object:
    return asyncio.run(asyncio.wait_for(work(), 20))  # type: ignore[arg-type]


def test_drain_waits_for_what_is_under_way_and_starts_nothing_more() -> None:
    async def work() -> None:
        calls = [Message.assistant("", (ToolCall(id="x", name="nap", arguments={"n": 1}),)), "done"]
        pool = make_pool(ScriptedSampler(calls), make=lambda task: napping(0.1), max_running=2)
        pool.start(groups(1, 6)[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pool.running == 2
        await pool.drain()
        assert pool.running == 0
        await asyncio.sleep(0.02)
        assert (pool.running, pool.open_groups) == (0, ("rl/000012/0000",))
        pool.resume()
        assert len((await pool.next()).trajectories) == 6

    awaited(work)


def test_cancel_gives_up_a_group_once() -> None:
    async def work() -> None:
        worlds = []
        pool = make_pool(make=lambda task: worlds.append(napping(9.0)) or worlds[-1])
        pool.start(groups(1)[0])
        await asyncio.sleep(0.01)
        assert await pool.cancel("rl/000012/0000")
        assert not await pool.cancel("rl/000012/0000")
        assert pool.running == 0
        assert all(world.calls[-1] == "close" for world in worlds)

    awaited(work)


def test_bad_orders_are_refused() -> None:
    async def work() -> None:
        pool, (first, second) = make_pool(), groups(2)
        pool.start(first)
        with pytest.raises(ValueError, match="started already"):
            pool.start(first)
        with pytest.raises(ValueError, match="one group is started at a time"):
            pool.start([*first, *second])
        with pytest.raises(ValueError, match="need lies between 1 and the 3 members"):
            pool.start(second, need=4)
        await pool.close()

    awaited(work)
    with pytest.raises(ValueError, match="at least 0"):
        EpisodePool(None, max_running=-1)  # type: ignore[arg-type]
    assert json.dumps(FinishedGroup(group_id="g", trajectories=()).requeued) == "0"
