"""Hosts that die, are killed or lose their parent: their episodes are started again, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from wild_hosts import SOURCE, calling, lost, opened, roll, running, until, zombies

from burnish.core.errors import HostLost, WorldFault
from burnish.core.outcome import COMPLETED, Owner
from burnish.environments.hosted import HostPool

pytestmark = pytest.mark.timeout(120)


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


def open_fds():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_a_hundred_kills_leave_nothing_behind():
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
        asyncio.run(many(pool, 25))
        assert pool.counts.lost >= 75, "four die at a time, of one host or of several"
        assert open_fds() <= before
    assert zombies() == []
