"""Calls into a process that can be killed: for graders that run what a model wrote through somebody else's code."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from burnish.core.errors import BurnishError

START_TIMEOUT_S = 120.0
_GRACE_S = 2.0
_MAX_ANSWER_BYTES = 2**20
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from burnish.graders.worker import main; main()"
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")


class WorkerFailure(BurnishError):
    """A call did not come back with a value.  `cause` is "timeout", "died", or the name of the exception it raised."""

    def __init__(self, cause: str, detail: str) -> None:
        self.cause = cause
        super().__init__(detail)


class Worker:
    """A Python process that runs named functions on JSON, one at a time; started when first needed.

    A call that runs past its time ends the process; the next call starts a new one.  The process ends by itself when
    this one does, whichever way.  It sees no variables of the environment but the usual few (no API keys).  It is no
    sandbox: it bounds time and memory, not what the code may touch.

    `Worker().call("math:sqrt", {...}, timeout_s=1.0)` - arguments go by name.
    """

    def __init__(self, preload: str = "") -> None:
        """preload: a function without arguments to run at each start, outside of any call's deadline."""
        self._preload = preload
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0
        self._lock = threading.Lock()
        self._finalizer: weakref.finalize[..., Any] | None = None

    def call(self, function: str, arguments: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The JSON value of `module:function(**arguments)`.  Raises WorkerFailure; waits for its turn first."""
        with self._lock:
            if self._process is None or self._owner_pid != os.getpid() or self._process.poll() is not None:
                self._start()
            return self._exchange(function, arguments, timeout_s)

    def close(self) -> None:
        """End the process; a later call starts a new one."""
        with self._lock:
            self._end()

    def _start(self) -> None:
        if self._owner_pid == os.getpid():
            self._end()
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps([os.path.abspath(path) for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._owner_pid = os.getpid()
        self._finalizer = weakref.finalize(self, _reap, self._process, self._owner_pid)
        preload = self._preload or "burnish.graders.isolation:ready"
        self._exchange(preload, {}, START_TIMEOUT_S)

    def _exchange(self, function: str, arguments: Mapping[str, Any], timeout_s: float) -> Any:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerFailure("died", "the worker is not running")
        request = {"function": function, "arguments": dict(arguments), "timeout_s": timeout_s}
        try:
            process.stdin.write(json.dumps(request, allow_nan=False).encode() + b"\n")
            process.stdin.flush()
            line = _read_line(process.stdout.fileno(), time.monotonic() + timeout_s + _GRACE_S)
        except OSError as error:
            self._end()
            raise WorkerFailure("died", f"the worker cannot be reached: {error}") from error
        if line is None:
            code = self._end()
            cause = "timeout" if code is None or code == -14 else "died"
            raise WorkerFailure(cause, f"{function} gave no answer within {timeout_s:g} s (exit status {code})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailure(answer["error"], answer["detail"])
        return answer["value"]

    def _end(self) -> int | None:
        """Kill the process; its exit status if it had ended by itself."""
        process, self._process = self._process, None
        if process is None:
            return None
        if self._finalizer is not None:
            self._finalizer.detach()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        code = process.poll()
        _reap(process, self._owner_pid)
        return code


class Workers:
    """A few `Worker`s that share the calls; each starts when the others are busy.

    `Workers(preload="burnish.graders.mathematics:warm_up", size=2)`; `threads` runs as many callers at a time.
    """

    def __init__(self, preload: str = "", size: int = 1) -> None:
        self._idle = [Worker(preload) for _ in range(size)]
        self._all = tuple(self._idle)
        self._free = threading.Semaphore(size)
        self.threads = ThreadPoolExecutor(size, thread_name_prefix="grader")

    def call(self, function: str, arguments: Mapping[str, Any], *, timeout_s: float) -> Any:
        """As `Worker.call`, on the next that is free, the last one used first."""
        with self._free:
            worker = self._idle.pop()
            try:
                return worker.call(function, arguments, timeout_s=timeout_s)
            finally:
                self._idle.append(worker)

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        for worker in self._all:
            worker.close()


def ready() -> bool:
    """The first call of a new worker; its answer shows that the process is up."""
    return True


def _reap(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    """A process that was forked off holds the pipes too, but must not end the worker of its parent."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    if owner_pid == os.getpid():
        process.kill()
        process.wait()


def _read_line(fd: int, deadline_s: float) -> bytes | None:
    """One line, or None at the end of the stream, past the deadline, or past 1 MiB."""
    chunks = b""
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLHUP)
    while not chunks.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or len(chunks) > _MAX_ANSWER_BYTES or not poller.poll(left_s * 1000):
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return None
        chunks += chunk
    return chunks
