"""Environments that hang or hold the interpreter, pools that are cancelled or closed: each call ends at its limit."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from wild_env import LIMIT_S
from wild_hosts import SOON_S, SOURCE, calling, lost, opened, roll, running, zombies

from burnish.core.errors import HostLost, WorldFault
from burnish.core.outcome import COMPLETED, Owner
from burnish.core.task import Task
from burnish.environments.hosted import GRACE_S, HostPool
from burnish.rollout.boundary import Deadline, in_world

pytestmark = pytest.mark.timeout(120)


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


def test_hung_setup_is_killed():
    async def play(pool):
        environment = pool.make(Task(prompt="go", setup={"spin_in_setup": True}))
        try:
            async with asyncio.timeout(0.3):
                await environment.start(environment.task)
        finally:
            await environment.close()

    with HostPool(SOURCE) as pool:
        # on a busy machine a host takes longer to start than the setup may
        roll(pool, {"warm": [calling("count")]})
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
