"""Programs that try to break out, on every rung that this machine offers; each is seen to work without its defence.

Every program is bounded by itself as well as by the limits around it, so that a defence which fails costs this machine
nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sandbox_attacks as attacks
from sandbox_rungs import HERE, PROBED, open_to_all, running, until

from burnish.core.sandbox import KilledFor, Rung, SandboxLimits
from burnish.sandbox.ladder import SandboxSpec, plan_for
from burnish.sandbox.local import LocalSandbox, Spawner

MIB = 2**20
ROOMY = SandboxLimits(wall_s=20.0, memory_bytes=256 * MIB, disk_bytes=16 * MIB)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def spawner():
    found = Spawner()
    yield found
    found.close()


@pytest.fixture(params=HERE, ids=str)
def caged(request, spawner):
    """Runs a program in a rung that holds here."""
    return runner(LocalSandbox(plan_for(request.param, SandboxSpec()), spawner))


@pytest.fixture
def free(spawner):
    """Runs a program with nothing but limits: the negative control."""
    return runner(LocalSandbox(plan_for(Rung.UNSAFE, SandboxSpec()), spawner))


def runner(sandbox):
    def run(program, *arguments, limits=ROOMY, **more):
        command = ["python", "-I", "-c", program, *(str(word) for word in arguments)]
        return asyncio.run(sandbox.run(command, limits=limits, **more))

    run.rung = sandbox.rung
    return run


def plain(program, *arguments, **more):
    """The attack as a child of this process: no uid of its own, no limits."""
    command = [sys.executable, "-I", "-c", program, *(str(word) for word in arguments)]
    return subprocess.run(command, capture_output=True, timeout=20, check=False, **more)


def lines(result):
    assert b"Traceback" not in result.stderr, result.stderr
    return set(result.stdout.decode().splitlines())


@pytest.fixture
def token():
    """A word to find processes by; whatever still carries it at the end is killed."""
    word = secrets.token_hex(8)
    yield word
    for pid in running(word):
        os.kill(pid, signal.SIGKILL)


def test_the_first_rung_that_holds_is_chosen_and_there_is_one():
    assert HERE, PROBED


class TestProcesses:
    def test_fork_bomb_ends_at_the_limit(self, caged):
        result = caged(attacks.FORK_BOMB, 200, limits=SandboxLimits(processes=20))
        assert 0 < int(result.stdout) < 20
        assert result.peak_processes <= 20

    def test_control_with_room_all_are_made(self, free):
        assert int(free(attacks.FORK_BOMB, 40, limits=SandboxLimits(processes=64)).stdout) == 40

    @pytest.mark.parametrize("voice", ["quiet", "loud"])
    def test_daemon_ends_with_its_command(self, caged, token, voice):
        begin = time.monotonic()
        result = caged(attacks.DAEMON, token, voice)
        assert result.stdout == b"left\n"
        assert not running(token)
        assert time.monotonic() - begin < 10.0

    def test_control_a_daemon_outlives_a_plain_command(self, token):
        assert plain(attacks.DAEMON, token, "quiet").stdout == b"left\n"
        assert running(token)

    def test_nothing_outlives_a_cancelled_run(self, spawner, caged, token, tmp_path):
        open_to_all(tmp_path)
        sandbox = LocalSandbox(plan_for(caged.rung, SandboxSpec(scratch=str(tmp_path))), spawner)

        async def cancel():
            program = "import time; time.sleep(20)"
            run = asyncio.ensure_future(sandbox.run(["python", "-I", "-c", program, token], limits=ROOMY))
            await until(lambda: running(token))
            run.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await run
            await until(lambda: not running(token))
            await until(lambda: not list(tmp_path.iterdir()))

        asyncio.run(cancel())

    def test_nothing_outlives_a_killed_harness(self, caged, token):
        process = subprocess.Popen([sys.executable, "-c", HARNESS, caged.rung, token])
        try:
            asyncio.run(until(lambda: [pid for pid in running(token) if pid != process.pid]))
        finally:
            process.kill()
            process.wait()
        asyncio.run(until(lambda: not running(token)))

    def test_others_cannot_be_signalled_or_slowed(self, caged):
        assert lines(caged(attacks.SIGNALS, os.getpid())) == set()

    def test_control_a_plain_child_can(self):
        with sleeping() as pid:
            assert lines(plain(attacks.SIGNALS, pid)) >= {"signal", "limit", "priority", "memory"}

    def test_namespaces_mounts_and_tracing_are_refused(self, caged):
        assert lines(caged(attacks.NAMESPACES)) == set()

    def test_control_a_plain_child_may(self):
        assert lines(plain(attacks.NAMESPACES)) >= {"keyctl", "ptrace"}


HARNESS = """
import asyncio, sys
from burnish.sandbox.ladder import SandboxSpec, open_sandbox
from burnish.core.sandbox import Rung
async def main():
    sandbox = await open_sandbox(SandboxSpec(rung=Rung(sys.argv[1])))
    await sandbox.run(["python", "-I", "-c", "import time; time.sleep(20)", sys.argv[2]])
asyncio.run(main())
"""


@contextlib.contextmanager
def sleeping():
    process = subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(20)"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


class TestMemory:
    def test_one_process_cannot_pass_the_limit(self, caged):
        result = caged(attacks.MEMORY_BOMB, 1, 300, limits=SandboxLimits(memory_bytes=128 * MIB))
        assert result.stdout == b"refused\n"

    def test_control_with_room_it_is_filled(self, free):
        result = free(attacks.MEMORY_BOMB, 1, 100, limits=SandboxLimits(memory_bytes=512 * MIB))
        assert result.stdout == b"filled\n"

    def test_many_processes_are_ended_and_the_overshoot_told(self, caged):
        result = caged(attacks.MEMORY_BOMB, 5, 60, limits=SandboxLimits(memory_bytes=128 * MIB))
        assert result.killed_for is KilledFor.MEMORY
        assert result.exit is None
        assert 0 < result.overshoot["memory_bytes"] <= 5 * 80 * MIB - 128 * MIB
        assert result.peak_memory_bytes == 128 * MIB + result.overshoot["memory_bytes"]

    def test_control_limits_of_single_processes_let_them_through(self, free):
        limits = SandboxLimits(memory_bytes=512 * MIB, address_space_bytes=128 * MIB)
        assert free(attacks.MEMORY_BOMB, 3, 60, limits=limits).stdout.count(b"filled") == 3

    def test_shared_memory_counts(self, caged):
        limits = SandboxLimits(memory_bytes=64 * MIB, address_space_bytes=256 * MIB)
        assert caged(attacks.SHARED_MEMORY, 100, limits=limits).killed_for is KilledFor.MEMORY

    def test_a_process_cannot_name_itself_out_of_the_count(self, caged):
        limits = SandboxLimits(memory_bytes=64 * MIB, address_space_bytes=256 * MIB)
        assert caged(attacks.MEMORY_UNDER_A_NAME, 2, 60, limits=limits).killed_for is KilledFor.MEMORY

    def test_forks_that_share_pages_do_not_count_twice(self, caged):
        program = "block = bytearray(40 * 2**20)\n" + attacks.FORK_BOMB
        result = caged(program, 6, limits=SandboxLimits(memory_bytes=128 * MIB))
        assert (result.killed_for, result.stdout) == (None, b"6\n")

    def test_memory_that_belongs_to_no_process_is_refused(self, caged):
        assert lines(caged(attacks.HIDDEN_MEMORY, stdin=b"x")) == set()

    def test_control_without_a_filter_it_is_there(self, free):
        assert lines(free(attacks.HIDDEN_MEMORY)) >= {"memfd", "shm"}


class TestTime:
    def test_endless_loop_ends_by_the_wall(self, caged):
        result = caged(attacks.LOOP, limits=SandboxLimits(wall_s=0.4))
        assert result.killed_for is KilledFor.WALL
        assert result.timed_out
        assert result.wall_s < 3.0
        assert 0 < result.overshoot["wall_s"] < 2.0

    def test_control_it_is_endless(self, token):
        process = subprocess.Popen([sys.executable, "-I", "-c", attacks.LOOP, token])
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.8)
        finally:
            process.kill()
            process.wait()

    def test_processor_time_of_all_processes_counts(self, caged):
        program = f"import os\nos.fork()\nos.fork()\n{attacks.LOOP}"
        result = caged(program, limits=SandboxLimits(wall_s=20.0, cpu_s=0.5))
        assert result.killed_for is KilledFor.CPU
        assert result.cpu_s >= 0.5
        assert result.wall_s < 10.0

    def test_sleep_ends_by_the_wall(self, caged):
        assert caged("import time; time.sleep(20)", limits=SandboxLimits(wall_s=0.3)).killed_for is KilledFor.WALL


class TestOutput:
    def test_output_is_cut_and_its_writer_ended(self, caged):
        result = caged(attacks.OUTPUT, 200, limits=SandboxLimits(output_bytes=100_000))
        assert result.killed_for is KilledFor.OUTPUT
        assert result.stdout == b"x" * 100_000
        assert 0 < result.overshoot["output_bytes"] <= 2**17

    def test_control_with_room_it_comes_whole(self, free):
        result = free(attacks.OUTPUT, 3, limits=SandboxLimits(output_bytes=4 * MIB))
        assert len(result.stdout) == 3 * MIB


class TestSecrets:
    @pytest.fixture
    def paths(self, tmp_path):
        secret = tmp_path / "key.txt"
        secret.write_text("a secret")
        open_to_all(tmp_path)
        return (str(secret), str(Path(__file__)), str(Path.home() / ".bashrc"))

    def test_files_environment_and_folders_are_out_of_reach(self, caged, paths, monkeypatch):
        monkeypatch.setenv("BURNISH_TEST_KEY", "secret")
        seen = lines(caged(attacks.SECRETS, os.getpid(), *paths))
        assert seen == set()

    def test_control_a_plain_child_reads_them(self, paths, monkeypatch):
        monkeypatch.setenv("BURNISH_TEST_KEY", "secret")
        seen = lines(plain(attacks.SECRETS, os.getpid(), *paths))
        assert seen >= {paths[0], paths[1], "environment", f"/proc/{os.getpid()}/environ"}

    def test_control_limits_alone_leave_the_files_open(self, free, paths):
        assert paths[0] in lines(free(attacks.SECRETS, os.getpid(), *paths))

    def test_other_processes_are_not_even_listed(self, caged):
        seen = caged(attacks.OTHERS)
        assert int(seen.stdout) <= 3

    def test_control_a_plain_child_lists_them(self):
        assert int(plain(attacks.OTHERS).stdout) > 10


class TestNetwork:
    @pytest.fixture
    def listeners(self, tmp_path):
        abstract = secrets.token_hex(8)
        path = str(tmp_path / "socket")
        with contextlib.ExitStack() as stack:
            tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", 0))
            udp.setblocking(False)
            for name in (f"\0{abstract}", path):
                unix = stack.enter_context(socket.socket(socket.AF_UNIX))
                unix.bind(name)
                unix.listen()
            os.chmod(path, 0o777)
            open_to_all(tmp_path)
            yield udp, (tcp.getsockname()[1], udp.getsockname()[1], abstract, path)

    def test_nothing_is_reached(self, caged, listeners):
        udp, addresses = listeners
        seen = lines(caged(attacks.NETWORK, *addresses))
        # A datagram into an empty network may be "sent"; it must not arrive.
        assert seen - {"udp"} == set()
        with pytest.raises(BlockingIOError):
            udp.recv(100)

    def test_control_limits_alone_reach_everything(self, free, listeners):
        udp, addresses = listeners
        assert lines(free(attacks.NETWORK, *addresses)) >= {"tcp", "udp", "abstract", "path", "netlink", "io_uring"}
        assert udp.recv(100) == b"escaped"


class TestDisk:
    def test_files_together_stay_below_the_limit(self, caged):
        limits = SandboxLimits(disk_bytes=4 * MIB, wall_s=20.0)
        result = caged(attacks.DISK, 300, limits=limits)
        if result.killed_for is None:
            assert 3 * MIB <= int(result.stdout) <= 4 * MIB
        else:
            assert result.killed_for is KilledFor.DISK
            assert 0 < result.overshoot["disk_bytes"] < 296 * MIB

    def test_control_with_room_they_are_written(self, free):
        assert int(free(attacks.DISK, 8, limits=SandboxLimits(disk_bytes=64 * MIB)).stdout) == 8 * MIB

    def test_many_empty_files_are_counted(self, caged):
        assert caged(attacks.MANY_FILES, 3000, limits=SandboxLimits(files=500)).killed_for is KilledFor.DISK

    def test_control_with_room_they_are_made(self, free):
        assert free(attacks.MANY_FILES, 3000, limits=SandboxLimits(files=5000)).stdout == b"made\n"

    def test_only_bounded_folders_can_be_written(self, caged):
        wrote = set(caged(attacks.EVERYWHERE).stdout.decode().split())
        assert wrote <= {"/sandbox", "/tmp", "/dev/shm"}

    def test_control_limits_alone_leave_folders_of_this_machine_open(self, free):
        assert "/tmp" in free(attacks.EVERYWHERE).stdout.decode().split()

    def test_the_folder_is_gone_afterwards(self, caged, tmp_path):
        program = "import os\nfor _ in range(600):\n os.mkdir('d'); os.chdir('d')"
        spec = SandboxSpec(scratch=str(tmp_path))
        open_to_all(tmp_path)
        run = runner(LocalSandbox(plan_for(caged.rung, spec)))
        assert run(program).exit == 0
        assert list(tmp_path.iterdir()) == []


class TestReadingBack:
    @pytest.fixture
    def secret(self, tmp_path):
        path = tmp_path / "secret.txt"
        path.write_text("secret")
        open_to_all(tmp_path)
        return path

    def test_only_regular_files_of_one_name_come_back(self, caged, secret):
        limits = SandboxLimits(collect_bytes=100_000)
        result = caged(attacks.PLANT, secret, limits=limits, collect=["*.txt", "*.bin"])
        assert result.exit == 0, result.stderr
        assert dict(result.files_out) | {"one.txt": b"1"} == {
            "real.txt": b"real", "sub/real.txt": b"below", "one.txt": b"1"
        }  # fmt: skip
        assert result.skipped["link.txt"] == result.skipped["sub/link.txt"] == "symlink"
        assert result.skipped["fifo.txt"] == "fifo"
        assert result.skipped["big.bin"] == "size"
        assert result.skipped.get("hard.txt", "hard link") == "hard link"
        assert not any("linked/" in name for name in result.skipped)

    def test_control_plain_open_follows_and_blocks(self, secret, tmp_path):
        folder = tmp_path / "left"
        folder.mkdir()
        plain(attacks.PLANT, secret, cwd=folder)
        assert (folder / "link.txt").read_text() == "secret"
        assert (folder / "hard.txt").read_text() == "secret"
        reader = threading.Thread(target=(folder / "fifo.txt").read_bytes, daemon=True)
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        os.close(os.open(folder / "fifo.txt", os.O_WRONLY | os.O_NONBLOCK))

    def test_files_cannot_be_put_outside_or_through_a_link(self, caged):
        for name in ("../x", "/etc/x", "a/../../x", ""):
            with pytest.raises(Exception, match="relative path"):
                caged("pass", files={name: b"x"})


ORDINARY = """
import asyncio, json, os, sys
import sandbox_attacks as attacks
from burnish.core.sandbox import Rung, SandboxLimits
from burnish.sandbox.ladder import LADDER, SandboxSpec, plan_for, probe_all
from burnish.sandbox.local import LocalSandbox, Spawner

async def main():
    victim = os.path.join(sys.argv[1], "own.txt")
    open(victim, "w").write("x")
    spawner = Spawner()
    found = {"problems": {one.rung: one.problem for one in await probe_all()}}
    for rung in (*LADDER, Rung.UNSAFE):
        sandbox = LocalSandbox(plan_for(rung, SandboxSpec(readable=(sys.argv[1],))), spawner)
        async def said(program, *arguments, limits=None):
            run = await sandbox.run(["python", "-I", "-c", program, *map(str, arguments)], limits=limits)
            return sorted(run.stdout.decode().split())
        found[rung] = {
            "uid": await said("import os; print(os.getuid())"),
            "forks": await said(attacks.FORK_BOMB, 100, limits=SandboxLimits(processes=20)),
            "written": await said(attacks.EVERYWHERE),
            "signals": await said(attacks.SIGNALS, os.getpid()),
            "changed": await said(attacks.CHANGE_MODE, victim),
            "namespaces": await said(attacks.NAMESPACES),
        }
    spawner.close()
    print(json.dumps(found))
asyncio.run(main())
"""


class TestOrdinaryUser:
    """The same ladder for a harness that is not root, whose own uid the commands then share."""

    @pytest.fixture(scope="class")
    def found(self, tmp_path_factory):
        if os.getuid() != 0:
            pytest.skip("this harness is an ordinary user's; all other tests cover that")
        python = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
        setpriv = shutil.which("setpriv")
        if setpriv is None or not os.path.exists(python):
            pytest.skip(f"needs setpriv and {python}, which every user may run")
        folder = tmp_path_factory.mktemp("ordinary")
        open_to_all(folder)
        os.chown(folder, 4242, 4242)
        path = os.pathsep.join(entry for entry in sys.path if entry)
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [setpriv, "--reuid=4242", "--regid=4242", "--clear-groups", python, "-c", ORDINARY, str(folder)]
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50, check=False, cwd="/")
        assert run.returncode == 0, run.stderr[-2000:]
        return json.loads(run.stdout)

    def test_the_same_rungs_hold(self, found):
        assert [rung for rung, problem in found["problems"].items() if not problem] == HERE

    @pytest.mark.parametrize("rung", HERE, ids=str)
    def test_each_keeps_its_promises(self, found, rung):
        seen = found[rung]
        # a user's own processes cannot be held to a number by the kernel without a namespace: there they are watched
        assert int(seen["forks"][0]) < (60 if rung is Rung.LANDLOCK else 20)
        assert {folder for folder in seen["written"] if not folder.startswith("/tmp/")} <= {
            "/sandbox",
            "/tmp",
            "/dev/shm",
        }
        assert seen["signals"] == seen["changed"] == seen["namespaces"] == []

    def test_control_limits_alone_leave_the_owner_open(self, found):
        seen = found["unsafe"]
        assert seen["uid"] == ["4242"]
        assert {"signal", "limit", "priority"} <= set(seen["signals"])
        assert {"mode", "times"} <= set(seen["changed"])
        assert "unshare" in seen["namespaces"]
