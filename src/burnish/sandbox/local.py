"""Sandboxes of this machine, as the rest of Burnish holds them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from burnish.core.sandbox import KilledFor, Rung, SandboxError, SandboxLimits, SandboxResult
from burnish.sandbox.plan import Plan
from burnish.sandbox.supervisor import FILE
from burnish.sandbox.wire import LENGTHS_BYTES, Frame, lengths, pack, unpack

_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from burnish.sandbox.spawner import main; main()"
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
DEFAULT_LIMITS = SandboxLimits()


class Spawner:
    """A started `spawner`; starts when first needed, again after a fork, and ends with this object or process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._owner_pid = 0
        self._finalizer: weakref.finalize[..., Any] | None = None

    def connection(self) -> socket.socket:
        """A new connection, served by a supervisor of its own."""
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._control is None or self._owner_pid != os.getpid():
                self._start()
            try:
                self._send(theirs)
            except OSError:
                # It was killed; nothing that it knew is needed again.
                self._start()
                self._send(theirs)
        return ours

    def _send(self, theirs: socket.socket) -> None:
        if self._control is None:
            raise SandboxError("the spawner of sandboxes is not running")
        socket.send_fds(self._control, [b"c"], [theirs.fileno()])

    def close(self) -> None:
        """End it, and with it every supervisor and sandbox."""
        with self._lock:
            if self._finalizer is not None:
                self._finalizer()
            self._control = None

    def _start(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._control, theirs = socket.socketpair()
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD, str(theirs.fileno()), path],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
                start_new_session=True,
            )
        self._owner_pid = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._control, process, self._owner_pid)


def _end(control: socket.socket, process: subprocess.Popen[bytes], owner_pid: int) -> None:
    control.close()
    if owner_pid == os.getpid():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.kill()
        process.wait()


class LocalSandbox:
    """Runs each command in a fresh sandbox of one rung; any number at once.

    `await sandbox.run(["python", "-c", "print(6*7)"])` gives `SandboxResult(exit=0, stdout=b"42\\n", ...)`.
    """

    def __init__(self, plan: Plan, spawner: Spawner | None = None) -> None:
        self._plan = plan
        self._spawner = spawner or Spawner()

    @property
    def rung(self) -> Rung:
        """How commands are isolated here."""
        return self._plan.rung

    @property
    def plan(self) -> Plan:
        """What this machine shows inside, and as whom commands run."""
        return self._plan

    @property
    def spawner(self) -> Spawner:
        """Where the supervisors come from."""
        return self._spawner

    async def run(
        self,
        command: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        limits: SandboxLimits | None = None,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """See `core.sandbox.Sandbox.run`.  Being cancelled ends the command."""
        header = request(command, limits or DEFAULT_LIMITS, env, collect)
        header |= {"kind": "run", "plan": self._plan.to_json()}
        channel = await Channel.over(self._spawner.connection())
        try:
            answer = await channel.ask(header, blobs(stdin, files))
        finally:
            channel.close()
        return result(answer, self.rung)

    async def close(self) -> None:
        """End the spawner and everything below it."""
        await asyncio.to_thread(self._spawner.close)


class Channel:
    """Frames to and from one supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def over(connection: socket.socket) -> Channel:
        """The channel of a connected socket."""
        return Channel(*await asyncio.open_connection(sock=connection))

    async def ask(self, header: Mapping[str, Any], sent: Mapping[str, bytes]) -> Frame:
        """Send a frame and wait for the answer.  Raises SandboxError where there is none or it tells of a failure."""
        self._writer.write(pack(header, sent))
        return await self.answer()

    async def answer(self) -> Frame:
        """The next frame."""
        try:
            await self._writer.drain()
            size, words = lengths(await self._reader.readexactly(LENGTHS_BYTES))
            header, found = unpack(await self._reader.readexactly(size), words)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise SandboxError("the supervisor of a sandbox ended without an answer") from error
        if "failed" in header:
            raise SandboxError(header["failed"])
        return header, found

    def close(self) -> None:
        """Hang up: the supervisor ends whatever still runs."""
        self._writer.close()


def request(
    command: Sequence[str], limits: SandboxLimits, env: Mapping[str, str] | None, collect: Sequence[str]
) -> dict[str, Any]:
    """The part of a run that is JSON."""
    return {"command": list(command), "limits": asdict(limits), "env": dict(env or {}), "collect": list(collect)}


def blobs(stdin: bytes, files: Mapping[str, bytes] | None) -> dict[str, bytes]:
    """The part of a run that is bytes."""
    return {"stdin": stdin} | {f"{FILE}{name}": bytes(content) for name, content in (files or {}).items()}


def result(answer: Frame, rung: Rung) -> SandboxResult:
    """What a supervisor answered, as a value."""
    header, found = answer
    killed_for = header["killed_for"]
    return SandboxResult(
        exit=header["exit"],
        stdout=found["stdout"],
        stderr=found["stderr"],
        rung=rung,
        killed_for=None if killed_for is None else KilledFor(killed_for),
        wall_s=header["wall_s"],
        cpu_s=header["cpu_s"],
        peak_memory_bytes=header["peak_memory_bytes"],
        peak_processes=header["peak_processes"],
        overshoot=header["overshoot"],
        files_out={name.removeprefix(FILE): blob for name, blob in found.items() if name.startswith(FILE)},
        skipped=header["skipped"],
    )
