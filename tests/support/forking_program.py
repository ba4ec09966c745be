"""A program that starts workers as a run does, and says what they see: one JSON command a line, one JSON answer each.

Its first worker is started by a thread, which ends.  Ctrl-C is counted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from burnish.core.errors import ConfigError
from burnish.loop import fork_server


def look(names: list[str]) -> Any:
    """Stands where a worker builds its shard, and ends it with what it found."""
    preloaded = "burnish.loop.preload" in sys.modules
    import numpy as np
    import psutil

    server = psutil.Process(os.getppid())
    found = {
        "parent": os.getppid(),
        "preloaded": preloaded,
        "threads_of_parent": server.num_threads(),
        "draw": np.random.random(),
        "environment": {name: os.environ.get(name) for name in names},
        "sigterm_is_default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "pipes": [fd for fd in os.listdir("/proc/self/fd") if _target(fd).startswith(("pipe:", "socket:"))],
        "folder": os.getcwd(),
        "path": sys.path[0],
        "path_of_parent": server.environ().get("PYTHONPATH", "").split(os.pathsep)[0],
    }
    raise ConfigError(json.dumps(found))


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def hang(told: Connection) -> Any:
    """Never lets go of the interpreter lock again."""
    told.send(os.getpid())
    re.match(r"(a+)+b", "a" * 64)


def stay(told: Connection) -> Any:
    """Waits for what never comes."""
    told.send(os.getpid())
    signal.pause()


def started(make_shard: Any, setup: Any) -> tuple[Any, Connection]:
    """A worker whose place in a run is not filled: it does not get as far as to need it."""
    from burnish.loop.worker_process import WorkerPlace, worker_main

    ours, theirs = Pipe()
    nothing: Any = None
    place = WorkerPlace(
        index=0, weights=nothing, gradients=nothing, beats=nothing, stacks=None, environment=dict(os.environ)
    )
    process = fork_server.start_process(worker_main, (theirs, make_shard, setup, place), "worker")
    theirs.close()
    return process, ours


class Program:
    """The commands."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.alive: dict[int, Any] = {}
        signal.signal(signal.SIGINT, self._count)

    def _count(self, *_: Any) -> None:
        self.interrupts += 1

    def first(self) -> dict[str, Any]:
        """What a worker sees that a thread has started, which ends before."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(started(look, [])))
        thread.start()
        thread.join()
        return self._report(*found[0]) | {"interrupts": self.interrupts}

    def look(self, count: int, names: list[str]) -> list[dict[str, Any]]:
        """What `count` workers see."""
        return [self._report(*one) for one in [started(look, names) for _ in range(count)]]

    def _report(self, process: Any, pipe: Connection) -> dict[str, Any]:
        wait([pipe, process.sentinel])
        failure = pipe.recv()
        process.join()
        assert isinstance(failure.error, ConfigError), failure.text
        return json.loads(str(failure.error)) | {"exit": process.exitcode}

    def keep(self, kind: str) -> int:
        """Start a worker that hangs or stays; its process id."""
        ours, theirs = Pipe()
        process, pipe = started({"hang": hang, "stay": stay}[kind], theirs)
        pid = int(ours.recv())
        self.alive[pid] = (process, pipe)
        return pid

    def exit_code(self, pid: int) -> int:
        """How a worker that was kept has ended; lets go of it."""
        process, _ = self.alive.pop(pid)
        process.join()
        code = process.exitcode
        process.close()
        return int(code)

    def way(self, change: str) -> list[str]:
        """How a worker would be started after a change since the server began, and once it is undone."""
        self._way()
        if change == "fork":
            return [self._way_in_a_fork(), self._way()]
        undo = getattr(self, f"_change_{change}")()
        changed = self._way()
        undo()
        return [changed, self._way()]

    def set_variable(self, name: str, value: str | None) -> None:
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value

    @staticmethod
    def _way() -> str:
        return str(fork_server.context().get_start_method())

    def _way_in_a_fork(self) -> str:
        seen, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(told, self._way().encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(told)
        with os.fdopen(seen) as file:
            return file.read()

    @staticmethod
    def _change_cores() -> Any:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(before)})
        return lambda: os.sched_setaffinity(0, before)

    @staticmethod
    def _change_variable() -> Any:
        os.environ["OMP_NUM_THREADS"] = "7"
        return lambda: os.environ.update(OMP_NUM_THREADS="1")

    @staticmethod
    def _change_limits() -> Any:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(1, hard) if hard >= 0 else 1, hard))
        return lambda: resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))

    @staticmethod
    def _change_error_stream() -> Any:
        kept, elsewhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(elsewhere, 2)
        os.close(elsewhere)

        def undo() -> None:
            os.dup2(kept, 2)
            os.close(kept)

        return undo


def _main() -> None:
    program = Program()
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        sys.stdout.write(json.dumps(getattr(program, name)(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
