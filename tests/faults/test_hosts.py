"""Environments that hang, hold the interpreter, die or are killed: each ends at its limit, the others go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from wild_env import LIMIT_S, Wild

from burnish.core.errors import HostLost, WorldFault
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.environments.hosted import GRACE_S, HostPool
from burnish.environments.source import EnvironmentSource
from burnish.rollout.audit import audit_trajectory
from burnish.rollout.boundary import Deadline, in_world
from burnish.rollout.group import plan_groups
from burnish.rollout.runner import run_episodes
from burnish.testing.fakes import FakeRenderer, ScriptedSampler

SOURCE = EnvironmentSource.of(Wild)
LIMITS = Limits(max_turns=6, max_turn_tokens=2000, max_episode_tokens=20_000, max_context_tokens=100_000)
SOON_S = 8.0
"""Far beyond limit and grace, far below the 30 s that other limits are."""

pytestmark = pytest.mark.timeout(120)


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


def test_hung_regex_is_killed_at_its_limit_and_the_others_finish():
    """Two hosts: the hung one takes its neighbours with it, and they finish when they are started again."""
    with HostPool(SOURCE, hosts=2) as pool:
        started_s = time.perf_counter()
        turns = {f"good{i}": [calling("count"), calling("wait", seconds=0.05), calling("count")] for i in range(5)}
        played = roll(pool, {"bad": [calling("backtrack")], **turns})
        assert time.perf_counter() - started_s < SOON_S
        bad = played.pop("bad").outcome
        assert (bad.owner, bad.cause) == (Owner.ENVIRONMENT, "tool_timeout")
        again = {name: turns[name] for name, trajectory in played.items() if lost(trajectory)}
        assert all(played[name].outcome == COMPLETED for name in turns if name not in again)
        assert 0 < len(again) < len(turns), "its neighbours, and not those of the other host"
        assert all(trajectory.outcome == COMPLETED for trajectory in roll(pool, again).values())
        counts = pool.counts
        assert (counts.killed, counts.lost, counts.stuck, counts.retired) == (1, 0, 1, 0)
        assert counts.started == counts.live + counts.killed + counts.lost + counts.closed


def test_hung_regex_without_processes_freezes():
    """Negative control: in the process that trains, the limit of a tool that holds the interpreter is never kept."""
    code = f"""
        import asyncio, sys
        sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
        from wild_env import Wild
        from burnish.core.task import Task
        async def main():
            world = Wild()
            await world.start(Task(prompt="go"))
            tool = next(tool for tool in world.tools() if tool.spec.name == "backtrack")
            print("calling", flush=True)
            try:
                async with asyncio.timeout(tool.timeout_s):
                    await tool.call({{}})
            except TimeoutError:
                print("stopped", flush=True)
        asyncio.run(main())
    """
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, timeout=4, check=False)
    assert raised.value.stdout.strip() == b"calling"


def test_hung_setup_is_killed(monkeypatch):
    monkeypatch.setattr("burnish.rollout.episode.WORLD_TIMEOUT_S", 0.3)

    async def play(pool):
        environment = pool.make(Task(prompt="go", setup={"spin_in_setup": True}))
        try:
            async with asyncio.timeout(0.3):
                await environment.start(environment.task)
        finally:
            await environment.close()

    with HostPool(SOURCE) as pool:
        started_s = time.perf_counter()
        with pytest.raises(TimeoutError):
            asyncio.run(play(pool))
        assert time.perf_counter() - started_s < SOON_S
        assert pool.counts.killed == 1


def test_the_policy_is_told_of_its_hang_and_the_world_is_gone():
    """The call ends as the tool says; the world cannot go on, and started again it would only hang again."""
    with HostPool(SOURCE) as pool:
        trajectory = roll(pool, {"t": [calling("backtrack_for_model"), calling("count")]})["t"]
    assert "ran past 0.3 s and was stopped" in trajectory.messages[2].text
    assert (trajectory.outcome.owner, trajectory.outcome.cause) == (Owner.ENVIRONMENT, "host_killed")


def test_sleeping_tool_retires_its_host_and_the_neighbours_finish():
    with HostPool(SOURCE, hosts=1) as pool:
        turns = {f"good{i}": [calling("wait", seconds=1.5), calling("count")] for i in range(4)}
        played = roll(pool, {"bad": [calling("nap", seconds=1e6)], **turns})
        assert played.pop("bad").outcome.cause == "tool_timeout"
        assert all(trajectory.outcome == COMPLETED for trajectory in played.values())
        counts = pool.counts
        assert (counts.retired, counts.stuck, counts.killed, counts.lost, counts.live) == (1, 1, 1, 0, 0)
        assert roll(pool, {"next": [calling("count")]})["next"].outcome == COMPLETED


def test_an_episode_goes_on_in_its_retired_host():
    with HostPool(SOURCE) as pool:
        trajectory = roll(pool, {"t": [calling("nap_for_model", seconds=1e6), calling("wait", seconds=0.01)]})["t"]
        assert trajectory.outcome == COMPLETED
        assert "ran past 0.3 s" in trajectory.messages[2].text
        assert pool.counts.live == 0


def test_retirement_ends():
    async def play(pool):
        (bad, bad_tools), (good, good_tools) = await opened(pool, "bad"), await opened(pool, "good")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await bad_tools["nap"].call({"seconds": 1e6})
        with pytest.raises(HostLost, match="it was killed"):
            await good_tools["wait"].call({"seconds": 60})
        await bad.close()
        await good.close()

    with HostPool(SOURCE, retire_s=0.4) as pool:
        asyncio.run(play(pool))
        assert (pool.counts.retired, pool.counts.killed) == (1, 1)


def test_what_stops_late_gives_its_host_back():
    async def play(pool):
        (bad, bad_tools), (good, _) = await opened(pool, "bad"), await opened(pool, "good")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await bad_tools["refuse_to_stop"].call({"seconds": 1.2})
        assert pool.counts.retired == 1
        await asyncio.sleep(1.0)
        await bad.close()
        await good.close()

    with HostPool(SOURCE, grace_s=0.2) as pool:
        asyncio.run(play(pool))
        assert (pool.counts.retired, pool.counts.killed, pool.counts.live) == (1, 0, 1)


def test_cancelled_calls_that_stop_cost_nothing():
    async def play(pool):
        environment, tools = await opened(pool)
        for _ in range(20):
            started_s = time.perf_counter()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await tools["wait"].call({"seconds": 60})
            assert time.perf_counter() - started_s < GRACE_S
        assert await tools["count"].call({}) == "1"
        await environment.close()

    with HostPool(SOURCE) as pool:
        asyncio.run(play(pool))
        assert (pool.counts.retired, pool.counts.stuck, pool.counts.live) == (0, 0, 1)


def test_a_call_that_was_never_begun_is_not_at_fault():
    """While another episode's call holds the host, a call with a shorter limit runs out of time: infrastructure."""

    async def play(pool):
        (bad, bad_tools), (good, good_tools) = await opened(pool, "bad"), await opened(pool, "good")

        async def hang():
            async with asyncio.timeout(1.5):
                await bad_tools["backtrack"].call({})

        hung = asyncio.ensure_future(hang())
        await asyncio.sleep(0.2)
        with pytest.raises(HostLost, match="held by another one's call"):
            async with asyncio.timeout(0.1):
                await good_tools["count"].call({})
        assert not hung.done(), "the one at fault has its own limit"
        with pytest.raises(TimeoutError):
            await hung
        with pytest.raises(WorldFault) as raised:
            await bad_tools["count"].call({})
        assert raised.value.cause == "host_killed"
        await asyncio.gather(bad.close(), good.close())

    with HostPool(SOURCE, grace_s=0.2) as pool:
        asyncio.run(play(pool))
        assert (pool.counts.killed, pool.counts.retired, pool.counts.stuck) == (1, 1, 1)


@pytest.mark.parametrize(("tool", "words"), [("die", "status 3"), ("kill_me", "SIGKILL"), ("crash", "SIGSEGV")])
def test_a_tool_that_ends_the_process(tool, words):
    """Infrastructure at first; a task that does so twice alone is the environment's error."""
    with HostPool(SOURCE, hosts=2) as pool:
        outcomes = [roll(pool, {"bad": [calling(tool)], f"good{i}": [calling("count")]}) for i in range(2)]
        assert lost(outcomes[0]["bad"])
        assert words in outcomes[0]["bad"].outcome.detail
        last = outcomes[1]["bad"].outcome
        assert (last.owner, last.cause) == (Owner.ENVIRONMENT, "host_killed")
        assert words in last.detail
        assert pool.counts.lost == 2
    if tool == "crash":
        assert "wild_env.py" in last.detail or "ctypes" in last.detail, "where it crashed"


def test_who_died_in_company_is_run_alone_next_time():
    """Five episodes in one host; afterwards each of them gets a host to itself, as far as there are any."""

    async def together(pool, names):
        worlds = [await opened(pool, name) for name in names]
        calls = [tools["wait"].call({"seconds": 60}) for _, tools in worlds[1:]]
        calls.append(worlds[0][1]["die"].call({}))
        results = await asyncio.gather(*calls, return_exceptions=True)
        for environment, _ in worlds:
            await environment.close()
        return results

    async def alone(pool, names):
        worlds = [await opened(pool, name) for name in names]
        pids = [await tools["pid"].call({}) for _, tools in worlds]
        for environment, _ in worlds:
            await environment.close()
        return pids

    with HostPool(SOURCE, hosts=1) as pool:
        assert all(isinstance(result, HostLost) for result in asyncio.run(together(pool, "abcde")))
        pids = asyncio.run(alone(pool, "abx"))
        assert len(set(pids)) == 2, "one host for the first suspect, one for the others"
        assert pool.counts.live <= 2
        assert len(set(asyncio.run(alone(pool, "ax")))) == 1, "who closed well alone is no suspect any more"


def test_killed_from_outside():
    async def play(pool):
        environment, tools = await opened(pool)
        call = asyncio.ensure_future(tools["wait"].call({"seconds": 60}))
        await asyncio.sleep(0.1)
        os.kill(pool.pids[0], signal.SIGKILL)
        with pytest.raises(HostLost, match=r"signal 9 \(SIGKILL\)"):
            await call
        with pytest.raises(HostLost):
            await tools["count"].call({})
        with pytest.raises(HostLost):
            await environment.finish("x")
        await environment.close()

    with HostPool(SOURCE) as pool:
        asyncio.run(play(pool))
        assert (pool.counts.lost, pool.counts.live) == (1, 0)


def test_killed_between_two_event_loops():
    with HostPool(SOURCE) as pool:
        assert roll(pool, {"a": [calling("count")]})["a"].outcome == COMPLETED
        os.kill(pool.pids[0], signal.SIGKILL)
        until(lambda: not running(pool.pids[0]))
        roll(pool, {"b": [calling("count")]})
        assert roll(pool, {"c": [calling("count")]})["c"].outcome == COMPLETED
        assert pool.counts.lost == 1


def test_rubbish_on_the_stream_is_a_lost_host():
    with HostPool(SOURCE) as pool:
        assert lost(roll(pool, {"t": [calling("scribble")]})["t"])
        assert pool.counts.lost == 1


def test_programs_that_a_tool_started_end_with_its_host():
    async def play(pool):
        environment, tools = await opened(pool)
        child = int(await tools["child"].call({}))
        assert running(child)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await tools["backtrack"].call({})
        await environment.close()
        return child

    with HostPool(SOURCE) as pool:
        child = asyncio.run(play(pool))
        until(lambda: not running(child))


PARENT = """
    import asyncio, sys
    sys.path.insert(0, {support!r})
    from wild_env import Wild
    from burnish.core.task import Task
    from burnish.environments.hosted import HostPool
    from burnish.environments.source import EnvironmentSource
    async def main():
        pool = HostPool(EnvironmentSource.of(Wild), hosts=2)
        calls = []
        for name in ("nap", "backtrack"):
            world = pool.make(Task(prompt="go"))
            await world.start(world.task)
            tool = next(tool for tool in world.tools() if tool.spec.name == name)
            calls.append(tool.call({{"seconds": 600}} if name == "nap" else {{}}))
        calls = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.3)
        print(*pool.pids, flush=True)
        {end}
    asyncio.run(main())
"""


FORK_AND_WAIT = "import os, time; os.fork() or (time.sleep(20), os._exit(0)); await asyncio.sleep(600)"


@pytest.mark.parametrize("end", ["await asyncio.sleep(600)", FORK_AND_WAIT, "sys.exit(0)", "import os; os._exit(1)"])
def test_hosts_die_with_their_parent(end):
    """Killed (also with a forked process of its own left), at its regular end, or without any clean-up: every host,
    the one too whose interpreter is held by a regex."""
    code = textwrap.dedent(PARENT.format(support=str(Path(__file__).parents[1] / "support"), end=end))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(text) for text in parent.stdout.readline().split()]
    assert len(pids) == 2
    if "sleep" in end:
        assert all(running(pid) for pid in pids)
        parent.kill()
    parent.wait(20)
    until(lambda: not any(running(pid) for pid in pids))


def test_a_forked_process_neither_ends_nor_keeps_the_hosts():
    with HostPool(SOURCE) as pool:
        assert roll(pool, {"a": [calling("count")]})["a"].outcome == COMPLETED
        child = os.fork()
        if child == 0:
            try:
                pool.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert running(pool.pids[0])
        assert roll(pool, {"b": [calling("count")]})["b"].outcome == COMPLETED


def zombies():
    """Children of this process that have ended and were never asked after."""
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "pid=,stat="], capture_output=True, text=True)
    return [line for line in children.stdout.splitlines() if line.split()[1].startswith("Z")]


def open_fds():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_two_hundred_kills_leave_nothing_behind():
    async def one(pool):
        environment, tools = await opened(pool, "t")
        pid = int(await tools["pid"].call({}))
        call = asyncio.ensure_future(tools["wait"].call({"seconds": 60}))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorldFault):
            await call
        await environment.close()

    async def many(pool, times):
        for _ in range(times):
            await asyncio.gather(*(one(pool) for _ in range(4)), return_exceptions=True)

    with HostPool(SOURCE, hosts=4) as pool:
        asyncio.run(many(pool, 2))
        before = open_fds()
        asyncio.run(many(pool, 50))
        assert pool.counts.lost >= 150, "four die at a time, of one host or of several"
        assert open_fds() <= before
    assert zombies() == []


def test_cancellation_storm():
    """256 episodes in two hosts, all cancelled at once, again and again; what is left works."""

    async def storm(pool):
        worlds = await asyncio.gather(*(opened(pool, f"t{index}") for index in range(256)))
        for _ in range(5):
            names = ("wait", "nap", "count")
            arguments = {"wait": {"seconds": 60}, "nap": {"seconds": 0.05}, "count": {}}
            calls = [
                asyncio.ensure_future(tools[names[index % 3]].call(arguments[names[index % 3]]))
                for index, (_, tools) in enumerate(worlds)
            ]
            await asyncio.sleep(0.01)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        totals = [int(await tools["count"].call({})) for _, tools in worlds[2::3]]
        await asyncio.gather(*(environment.close() for environment, _ in worlds))
        return totals

    with HostPool(SOURCE, hosts=2, grace_s=10.0) as pool:
        totals = asyncio.run(storm(pool))
        assert all(1 <= total <= 6 for total in totals)
        assert (pool.counts.stuck, pool.counts.lost, pool.counts.live) == (0, 0, 2)


def test_cancelled_twice_is_judged_later():
    """Whoever cancels a call and does not wait for it leaves the verdict to the pool."""

    async def play(pool):
        (_, bad), (_, good) = await opened(pool, "bad"), await opened(pool, "good")
        call = asyncio.ensure_future(bad["backtrack"].call({}))
        innocent = asyncio.ensure_future(good["wait"].call({"seconds": 60}))
        await asyncio.sleep(0.1)
        call.cancel()
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(HostLost):
            await innocent

    with HostPool(SOURCE, grace_s=0.2) as pool:
        asyncio.run(play(pool))
        assert pool.counts.killed == 1


def test_pool_closed_during_calls():
    async def play(pool):
        worlds = [await opened(pool, f"t{index}") for index in range(8)]
        calls = [asyncio.ensure_future(tools["wait"].call({"seconds": 60})) for _, tools in worlds[:4]]
        calls += [asyncio.ensure_future(tools["nap"].call({"seconds": 60})) for _, tools in worlds[4:]]
        await asyncio.sleep(0.05)
        pids = pool.pids
        pool.close()
        results = await asyncio.gather(*calls, return_exceptions=True)
        for environment, _ in worlds:
            await environment.close()
        return pids, results

    pool = HostPool(SOURCE, hosts=2)
    started_s = time.perf_counter()
    pids, results = asyncio.run(play(pool))
    assert all(isinstance(result, HostLost) for result in results)
    assert not any(running(pid) for pid in pids)
    assert zombies() == []
    assert time.perf_counter() - started_s < SOON_S
    assert (pool.counts.closed, pool.counts.live) == (2, 0)


def test_a_run_that_is_cancelled_stays_cancelled():
    """A lost host must not turn the cancellation of an episode into an outcome."""

    async def play(pool):
        (_, bad), (_, good) = await opened(pool, "bad"), await opened(pool, "good")
        hung = asyncio.ensure_future(bad["backtrack"].call({}))
        await asyncio.sleep(0.1)

        async def episode():
            await in_world("tool", lambda: good["count"].call({}), timeout_s=30.0, deadline=Deadline(0.0))

        task = asyncio.ensure_future(episode())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        hung.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung

    with HostPool(SOURCE, grace_s=0.1) as pool:
        asyncio.run(play(pool))


def test_memory_is_bounded():
    with HostPool(SOURCE, memory_bytes=2**29) as pool:
        outcome = roll(pool, {"t": [calling("long_text", length=2**30)], "u": [calling("count")]})
        assert outcome["t"].outcome.cause == "tool_raised"
        assert "MemoryError" in outcome["t"].outcome.detail
        assert outcome["u"].outcome == COMPLETED
        assert pool.counts.lost == 0


def test_limit_of_the_tool_is_kept_about():
    with HostPool(SOURCE) as pool:
        roll(pool, {"warm": [calling("count")]})
        started_s = time.perf_counter()
        assert roll(pool, {"t": [calling("backtrack")]})["t"].outcome.cause == "tool_timeout"
        took_s = time.perf_counter() - started_s
    assert LIMIT_S + GRACE_S <= took_s < LIMIT_S + GRACE_S + 3.0
