"""Where worker processes come from: a server that has imported what they need forks them, or each starts anew.

Imports are most of a worker's start: about 6 s of processor time, forked some hundredths.  The server is Python's own
(`multiprocessing.forkserver`), starts with the first worker, and serves all runs of this process.  It passes on what it
was started with; where this process has changed since, and where there is no fork server, workers are spawned: fresh
interpreters, which import everything themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.loop.config import Recipe

PRELOADED = "burnish.loop.preload"
UNREAD = frozenset({"PYTEST_CURRENT_TEST", "TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "COLUMNS", "LINES"})
"""Environment variables that no library reads when it is imported: workers are told their values when they start.
TORCHINDUCTOR_CACHE_DIR is set by torch itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a process passes on to a child that no argument can carry, since libraries read it when they are imported.

    pid: a fork of the process that started the server is not its parent.  streams: device and inode of standard output
    and error, None where closed.  `Surroundings(pid=812, environment={"OMP_NUM_THREADS": "1"}, cores=frozenset({0, 1}),
    priority=0, limits=((-1, -1), (1024, 4096)), streams=((25, 3), (25, 3)))`
    """

    pid: int
    environment: dict[str, str]
    cores: frozenset[int]
    priority: int
    limits: tuple[tuple[int, int], ...]
    streams: tuple[tuple[int, int] | None, ...]


_lock = threading.Lock()
_passed_on: Surroundings | None = None


def context() -> BaseContext:
    """How a worker is to be started now; starts the server where it is to come from there and none runs."""
    return multiprocessing.get_context("forkserver" if start() else "spawn")


def start() -> bool:
    """Start the server unless it runs, without waiting for its imports; False where workers have to be spawned."""
    global _passed_on
    if sys.platform != "linux":  # A fork after imports is unsafe on macOS and unknown on Windows.
        return False
    from multiprocessing import forkserver

    with _lock:
        now = surroundings()
        if _passed_on is None:
            forkserver.set_forkserver_preload([PRELOADED])
            _passed_on = now
        if now != _passed_on:
            return False
        with _interrupts_held(), _path_for_imports():
            forkserver.ensure_running()
        return True


def start_early(recipe: Recipe) -> None:
    """Start the server beside what comes before the workers, the imports of this process to begin with, where it is
    known without them that the recipe will have workers: not of a model that may go to a GPU."""
    run, model = recipe.run, recipe.model
    alone = run.in_process or run.workers == 1 or bool(recipe.sampler.url)
    on_cpu = model.device == "cpu" or (model.device == "auto" and not model.path)
    if on_cpu and not alone:
        # Whoever needs a worker later says what is wrong.
        with contextlib.suppress(OSError):
            start()


def start_process(target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    """A started process that runs `target(*args)` and ends with this one.  It begins with Ctrl-C held back.

    Raises OSError or EOFError where the server has ended, mostly since memory ran out.
    """
    way = context()
    process = way.Process(target=target, args=args, name=name, daemon=True)  # type: ignore[attr-defined]
    # The server holds Ctrl-C back already, and it may still import: whoever waits for it must hear of Ctrl-C.
    with contextlib.nullcontext() if way.get_start_method() == "forkserver" else _interrupts_held():
        process.start()
    return process  # type: ignore[no-any-return]


def surroundings() -> Surroundings:
    """Those of this process, on Linux."""
    import resource

    kinds = sorted(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
    return Surroundings(
        pid=os.getpid(),
        environment={name: value for name, value in os.environ.items() if name not in UNREAD},
        cores=frozenset(os.sched_getaffinity(0)),
        priority=os.getpriority(os.PRIO_PROCESS, 0),
        limits=tuple(resource.getrlimit(kind) for kind in kinds),
        streams=tuple(_identity(fd) for fd in (1, 2)),
    )


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in here begin with Ctrl-C held back: it must not end them while they still import."""
    # Started by the first process otherwise, and it would let go of the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _path_for_imports() -> Iterator[None]:
    """A server started in here looks for modules where this process does, and not first in the working directory.

    The environment is the only way to tell it: before Python 3.12.9 and 3.13.2 it leaves aside the path it is given.
    Workers get the environment of this process back when they start.
    """
    names = ("PYTHONPATH", "PYTHONSAFEPATH")
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(PYTHONPATH=os.pathsep.join(os.path.abspath(entry) for entry in sys.path), PYTHONSAFEPATH="1")
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name)
        os.environ.update(before)
