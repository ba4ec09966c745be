"""The process that supervisors are forked from: small, with one thread, imported once, never near untrusted code.

Forking from here takes about a millisecond whatever the trainer weighs; forking the trainer itself copies the page
tables of everything it holds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

from burnish.sandbox import kernel
from burnish.sandbox.supervisor import serve


def main() -> None:
    """Take connections (one byte with a descriptor each) over the socket in argv until the other side is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    kernel.adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    supervisors: set[int] = set()
    wake_out, wake_in = os.pipe()
    os.set_blocking(wake_in, False)
    os.set_blocking(wake_out, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(wake_out, select.POLLIN)
    while True:
        ready = dict(poller.poll())
        if wake_out in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_out, 4096)
            _reap(supervisors)
        if control.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                _become_supervisor(control, fds[0])
            supervisors.add(pid)
            os.close(fds[0])


def _become_supervisor(control: socket.socket, fd: int) -> None:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        serve(socket.socket(fileno=fd))
    finally:
        os._exit(0)


def _reap(supervisors: set[int]) -> None:
    """Collect what has ended; a child that is no supervisor was left behind by a killed one, and is killed too."""
    while True:
        try:
            state = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return
        if state is None:
            break
        supervisors.discard(state.si_pid)
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        strays = {int(word) for word in file.read().split()} - supervisors
    for pid in strays:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
