"""Ending with another process: it holds one end of a pipe, and the kernel kills whoever tied its life to the other."""

from __future__ import annotations

import fcntl
import os
import select
import signal


def tie_life(lifeline_fd: int, whose: int) -> None:
    """Let the kernel kill `whose` (a process id, or a negative group id) when the other end of a pipe is closed.

    A Python thread could not: a call that holds the interpreter lock would keep it waiting.  `PR_SET_PDEATHSIG` would
    kill as soon as the *thread* ends that started this process.  Where the kernel cannot (macOS), only an end that is
    closed already counts.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, whose)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        flags = fcntl.fcntl(lifeline_fd, fcntl.F_GETFL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, flags | os.O_ASYNC)
    poller = select.poll()
    poller.register(lifeline_fd, select.POLLIN)
    if poller.poll(0):
        os.kill(whose, signal.SIGKILL)
