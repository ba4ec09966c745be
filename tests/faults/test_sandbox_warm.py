"""Warm Pythons: one rollout in one world each, nothing but the work folder passes from run to run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal

import pytest
from sandbox_rungs import HERE, running, until

from burnish.core.sandbox import KilledFor, SandboxError, SandboxLimits, SandboxRefused, World
from burnish.sandbox.ladder import SandboxSpec, plan_for
from burnish.sandbox.local import LocalSandbox, Spawner
from burnish.sandbox.warm import WarmServers

MIB = 2**20

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def spawner():
    found = Spawner()
    yield found
    found.close()


@pytest.fixture(params=HERE, ids=str)
def base(request, spawner):
    return LocalSandbox(plan_for(request.param, SandboxSpec()), spawner)


def served(base, play, *, imports=("json",), limits=None):
    """Run `play(servers)` with the servers closed afterwards."""

    async def main():
        limited = limits or SandboxLimits(memory_bytes=256 * MIB, disk_bytes=8 * MIB, processes=16)
        servers = WarmServers(base, imports=imports, limits=limited)
        try:
            return await play(servers)
        finally:
            await servers.close()

    return asyncio.run(main())


def alone(base, play, **options):
    """Run `play(sandbox)` with one warm sandbox."""

    async def with_one(servers):
        return await play(await servers.get("rollout-1", World.AGENT))

    return served(base, with_one, **options)


def test_runs_like_an_interpreter(base):
    async def play(warm):
        code = "import sys; print(sys.argv, sys.stdin.read(), __name__); sys.exit(3)"
        first = await warm.run(["python", "-c", code, "a"], stdin=b"in")
        assert (first.exit, first.stdout) == (3, b"['-c', 'a'] in __main__\n")
        files = {"main.py": b"import sys, near; print(sys.argv, near.x)", "near.py": b"x = 1"}
        second = await warm.run(["python", "main.py", "b"], files=files)
        assert second.stdout == b"['main.py', 'b'] 1\n"
        third = await warm.run(["python", "-m", "near"])
        assert third.exit == 0
        fourth = await warm.run(["python", "-c", "import atexit; atexit.register(print, 'end'); 1 / 0"])
        assert (fourth.exit, fourth.stdout) == (1, b"end\n")
        assert b"ZeroDivisionError" in fourth.stderr
        fifth = await warm.run(["sh", "-c", "echo $WORD; cat near.py; exit 4"], env={"WORD": "w"}, collect=["*.py"])
        assert (fifth.exit, fifth.stdout) == (4, b"w\nx = 1")
        assert set(fifth.files_out) == {"main.py", "near.py"}
        assert (await warm.run(["no-such-program"])).exit == 127

    alone(base, play)


def test_modules_are_imported_once_and_a_run_cannot_change_them_for_the_next(base):
    async def play(warm):
        first = await warm.run(["python", "-c", "import sys, json; print('json' in sys.modules); json.word = 1"])
        second = await warm.run(["python", "-c", "import sys, json; print(hasattr(json, 'word'))"])
        assert (first.stdout, second.stdout) == (b"True\n", b"False\n")

    alone(base, play)


def test_a_run_cannot_reach_into_the_python_that_it_was_forked_from(base):
    async def play(warm):
        code = """if True:
            import os
            for name in ("mem", "environ", "fd/5"):
                try:
                    open(f"/proc/{os.getppid()}/{name}", "rb")
                    print(name)
                except OSError:
                    pass
        """
        assert (await warm.run(["python", "-c", code])).stdout == b""

    alone(base, play)


def test_limits_end_a_run_and_not_the_sandbox(base):
    async def play(warm):
        loop = await warm.run(["python", "-c", "while True: pass"], limits=SandboxLimits(
            wall_s=0.3, memory_bytes=256 * MIB, disk_bytes=8 * MIB, processes=16))  # fmt: skip
        assert loop.killed_for is KilledFor.WALL
        bomb = "import os, time\nos.fork(); os.fork()\nx = b'x' * (90 * 2**20)\ntime.sleep(1)"
        assert (await warm.run(["python", "-c", bomb])).killed_for is KilledFor.MEMORY
        forks = """if True:
            import os, time
            made = 0
            try:
                while made < 99:
                    if not os.fork():
                        time.sleep(5)
                    made += 1
            except OSError:
                print(made)
        """
        result = await warm.run(["python", "-c", forks])
        assert 0 < int(result.stdout) <= 16
        assert (await warm.run(["python", "-c", "print(1)"])).stdout == b"1\n"

    alone(base, play)


def test_no_process_stays_for_the_next_run(base):
    token = secrets.token_hex(8)

    async def play(warm):
        await warm.run(["sh", "-c", f"(python3 -c 'import time; time.sleep(20)' {token} &) >/dev/null 2>&1"])
        assert not running(token)
        assert (await warm.run(["python", "-c", "print(1)"])).stdout == b"1\n"

    alone(base, play)


def test_a_run_that_ends_its_python_ends_the_sandbox_with_an_infrastructure_error(base):
    async def play(warm):
        with pytest.raises(SandboxError):
            await warm.run(["python", "-c", "import os; os.kill(os.getppid(), 9)"])
        with pytest.raises(SandboxError, match="has ended"):
            await warm.run(["python", "-c", "print(1)"])

    alone(base, play)


def test_rollouts_and_worlds_share_nothing(base):
    async def play(servers):
        agent = await servers.get("rollout-1", World.AGENT)
        same = await servers.get("rollout-1", World.AGENT)
        grading = await servers.get("rollout-1", World.GRADING)
        other = await servers.get("rollout-2", World.AGENT)
        assert same is agent
        assert len({id(each) for each in (agent, grading, other)}) == 3
        await agent.run(["python", "-c", "open('planted', 'w').write('x'); open('/tmp/planted', 'w').write('x')"])
        look = "import os, tempfile; print(os.path.exists('planted'), os.listdir(tempfile.gettempdir()))"
        for each in (grading, other):
            assert (await each.run(["python", "-c", look])).stdout == b"False []\n"

    served(base, play)


def test_the_process_outside_refuses_another_owner(base):
    async def play(servers):
        for stranger in (("rollout-2", World.AGENT), ("rollout-1", World.GRADING)):
            warm = await servers.get("rollout-1", World.AGENT)
            mine, warm.owner = warm.owner, stranger
            with pytest.raises(SandboxError, match="must not enter"):
                await warm.run(["python", "-c", "print(1)"])
            servers._open.pop(mine)

    served(base, play)


def test_a_rollout_that_is_over_gets_no_second_sandbox(base):
    async def play(servers):
        warm = await servers.get("rollout-1", World.AGENT)
        await servers.release("rollout-1", World.AGENT)
        with pytest.raises(SandboxRefused, match="has left"):
            await servers.get("rollout-1", World.AGENT)
        with pytest.raises(SandboxError):
            await warm.run(["python", "-c", "print(1)"])
        assert await servers.get("rollout-1", World.GRADING)

    served(base, play)


def test_limits_beyond_those_of_the_sandbox_are_refused(base):
    async def play(warm):
        with pytest.raises(SandboxRefused, match="memory_bytes"):
            await warm.run(["python", "-c", "1"], limits=SandboxLimits(memory_bytes=2**40))

    alone(base, play)


def test_closing_ends_what_runs(base):
    token = secrets.token_hex(8)

    async def play(servers):
        warm = await servers.get("rollout-1", World.AGENT)
        run = asyncio.ensure_future(warm.run(["sh", "-c", "sleep 20 # " + token]))
        await until(lambda: running(token))
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
        await until(lambda: not running(token))

    try:
        served(base, play)
    finally:
        for pid in running(token):
            os.kill(pid, signal.SIGKILL)
