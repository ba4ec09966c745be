"""One host process as its parent sees it: started, watched, killed with all that it started, reaped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from typing import Any

from burnish.environments.host import NOTE_BYTES

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from burnish.environments.host import main; main()"
_CRASH_BYTES = 4096
_alive: weakref.WeakSet[HostProcess] = weakref.WeakSet()


class HostProcess:
    """A started host.  `socket` speaks the protocol of `wire`; `pid_fd` is readable once it has ended (-1: none).

    The host is the leader of a session of its own.  It dies with this process, whichever way this one ends: the kernel
    kills it when the pipe that only this process holds is closed.  Its standard streams lead nowhere unless
    `show_output`; environment variables are passed on, since tools may need them.
    """

    def __init__(self, *, show_output: bool = False) -> None:
        self.socket, theirs = socket.socketpair()
        lifeline_fd, self._lifeline_fd = os.pipe()
        self._note_fd = _note_file()
        fds = (theirs.fileno(), lifeline_fd, self._note_fd)
        output = None if show_output else subprocess.DEVNULL
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _CHILD, path, *(str(fd) for fd in fds)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=fds,
                start_new_session=True,
            )
        except OSError:
            for fd in (self._lifeline_fd, self._note_fd):
                os.close(fd)
            self.socket.close()
            raise
        finally:
            theirs.close()
            os.close(lifeline_fd)
        self.pid = self._popen.pid
        self.pid_fd = _pid_fd(self.pid)
        self._fds = [fd for fd in (self._lifeline_fd, self._note_fd, self.pid_fd) if fd >= 0]
        self._finalizer = weakref.finalize(self, _end, self._popen, self._fds, os.getpid())
        _alive.add(self)

    def begun(self) -> int:
        """Id of the last call that the host has begun; readable while it hangs and after it died."""
        return int.from_bytes(os.pread(self._note_fd, 8, 0), "little")

    def kill(self) -> str:
        """Kill the host and what it started, and say how it had ended if it had done so by itself."""
        if not self._finalizer.alive:
            return ""
        story = self._story()
        self._finalizer()
        return story

    def gone(self) -> bool:
        """Whether it has ended and was reaped; asked after `kill`."""
        return self._popen.poll() is not None

    def alive(self) -> bool:
        """Whether it has not ended yet; asked before `kill`."""
        return self._exit_state() is None

    def _exit_state(self) -> os.waitid_result | None:
        # Not reaped: as long as the number is taken, its process group can be killed safely.
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def _story(self) -> str:
        state = self._exit_state()
        if state is None:
            return "is running"
        how = f"ended with status {state.si_status}"
        if state.si_code != os.CLD_EXITED:
            how = f"was ended by signal {state.si_status} ({_signal_name(state.si_status)})"
        place = _crash_place(os.pread(self._note_fd, _CRASH_BYTES, NOTE_BYTES).decode("utf-8", "replace"))
        return f"{how} {place}".strip()


def _end(popen: subprocess.Popen[bytes], fds: list[int], owner_pid: int) -> None:
    if os.getpid() == owner_pid:
        # The leader is not reaped yet, so the number of its group cannot have been given to another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.poll()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
    fds.clear()


def _leave_to_parent() -> None:
    """In a process that was forked off: it must neither end the hosts of its parent nor keep them alive."""
    for process in list(_alive):
        process._finalizer()
        process._popen.returncode = 0
        with contextlib.suppress(OSError):
            process.socket.close()


os.register_at_fork(after_in_child=_leave_to_parent)


def _note_file() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("burnish-host")
    else:
        fd, name = tempfile.mkstemp()
        os.unlink(name)
    os.ftruncate(fd, NOTE_BYTES)
    return fd


def _pid_fd(pid: int) -> int:
    open_pid: Any = getattr(os, "pidfd_open", None)
    if open_pid is None:
        return -1
    try:
        fd: int = open_pid(pid)
    except OSError:
        return -1
    return fd


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _crash_place(trace: str) -> str:
    """The innermost line of what `faulthandler` wrote, such as "at File "world.py", line 12 in count"."""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    return f"at {lines[0]}" if lines else ""
