"""The trusted process beside each sandbox: starts it, watches it, ends it, reads back what it left.

One supervisor serves one connection: a single command, or the session of a warm Python.  It ends with its connection,
so whoever drops the connection has ended everything in the sandbox.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from burnish.core.errors import BurnishError
from burnish.core.sandbox import KilledFor, SandboxError, SandboxLimits
from burnish.sandbox import kernel, warm_server
from burnish.sandbox.cage import CONTROL_FD, Cage, Streams, as_user, filled, launch
from burnish.sandbox.folder import put_files, read_back, usage
from burnish.sandbox.plan import Plan
from burnish.sandbox.watch import TreeFigures, descendants, exact_memory_bytes, kill_below, measure
from burnish.sandbox.wire import pack, receive

_POLL_S = 0.02
_DISK_POLL_S = 0.005
"""Where only this process bounds the disk: a page cache takes gigabytes a second."""
_FIRST_POLL_S = 0.01
_LINGER_S = 0.3
_WARM_START_S = 60.0
_CHUNK_BYTES = 65536
FILE = "file:"


def serve(connection: socket.socket) -> None:
    """Answer everything that comes over one connection."""
    kernel.adopt_orphans()
    try:
        frame = receive(connection)
        if frame is not None:
            header, blobs = frame
            if header["kind"] == "run":
                connection.sendall(pack(*_run_once(connection, header, blobs)))
            else:
                _Session(connection, header).serve()
    except (BurnishError, OSError, KeyError, ValueError) as error:
        with contextlib.suppress(OSError):
            connection.sendall(pack({"failed": f"{type(error).__name__}: {error}"}, {}))
    finally:
        kill_below(os.getpid())
        connection.close()


@dataclass(slots=True, kw_only=True)
class _Pipe:
    """One output stream of a command: read as it comes, never more kept than allowed."""

    fd: int
    cap_bytes: int
    kept: bytearray = field(default_factory=bytearray)
    seen_bytes: int = 0
    is_open: bool = True

    def read(self) -> None:
        try:
            chunk = os.read(self.fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        self.seen_bytes += len(chunk)
        self.kept += chunk[: max(0, self.cap_bytes - len(self.kept))]
        self.is_open = bool(chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """Processes that were there before a command and are not its own, and their figures."""

    keep: frozenset[int]
    figures: TreeFigures

    @staticmethod
    def of(keep: Collection[int]) -> _Before:
        return _Before(keep=frozenset(keep), figures=measure(keep))


class _Watch:
    """Follows one command until it ends or breaks a limit, and keeps the figures."""

    def __init__(self, cage: Cage, limits: SandboxLimits, outputs: tuple[int, int], *, before: _Before) -> None:
        self._cage = cage
        self._limits = limits
        self._keep = before.keep
        self.pipes = tuple(_Pipe(fd=fd, cap_bytes=limits.output_bytes) for fd in outputs)
        for fd in outputs:
            os.set_blocking(fd, False)
        self._begin_s = time.monotonic()
        self._before = before.figures
        self.killed_for: KilledFor | None = None
        self.overshoot: dict[str, float] = {}
        self.wall_s = 0.0
        self.cpu_s = 0.0
        self.peak_memory_bytes = 0
        self.peak_processes = 0

    def until(self, end_fd: int, connection: socket.socket) -> None:
        """Return once `end_fd` is readable or a limit is broken; raises ConnectionError where nobody waits any more."""
        poller = select.poll()
        poller.register(end_fd, select.POLLIN)
        poller.register(connection, select.POLLRDHUP)
        for pipe in self.pipes:
            poller.register(pipe.fd, select.POLLIN)
        next_look_s, pause_s = self._begin_s + _FIRST_POLL_S, _FIRST_POLL_S
        while self.killed_for is None:
            now_s = time.monotonic()
            if now_s >= next_look_s:
                pause_s = min(_DISK_POLL_S if self._cage.host_folder else _POLL_S, pause_s * 2)
                self._look()
                next_look_s = time.monotonic() + pause_s
            ready = dict(poller.poll(max(0.0, next_look_s - time.monotonic()) * 1000))
            self._drain(poller, ready)
            if connection.fileno() in ready:
                raise ConnectionError("nobody waits for this command any more")
            if end_fd in ready:
                break
        self.wall_s = time.monotonic() - self._begin_s

    def finish(self) -> None:
        """Last output after everything has been killed; a pipe that stays open is left alone after a moment."""
        give_up_s = time.monotonic() + _LINGER_S
        for pipe in self.pipes:
            while pipe.is_open and time.monotonic() < give_up_s:
                before = pipe.seen_bytes
                pipe.read()
                if pipe.is_open and pipe.seen_bytes == before:
                    time.sleep(0.002)
                self._judge(KilledFor.OUTPUT, "output_bytes", pipe.seen_bytes, self._limits.output_bytes)

    def _drain(self, poller: select.poll, ready: Mapping[int, int]) -> None:
        for pipe in self.pipes:
            if pipe.fd in ready and pipe.is_open:
                pipe.read()
                if not pipe.is_open:
                    poller.unregister(pipe.fd)
                self._judge(KilledFor.OUTPUT, "output_bytes", pipe.seen_bytes, self._limits.output_bytes)

    def _look(self) -> None:
        limits = self._limits
        running = [pid for pid in descendants(os.getpid()) if pid not in self._cage.frame]
        own = [pid for pid in running if pid not in self._keep]
        figures = measure({*running, *self._cage.frame})
        disk_bytes, entries, in_memory_bytes = self._disk()
        memory_bytes = max(0, figures.memory_bytes - self._before.memory_bytes) + in_memory_bytes
        if memory_bytes > limits.memory_bytes:
            memory_bytes = exact_memory_bytes(own) + in_memory_bytes
        self.cpu_s = max(self.cpu_s, figures.cpu_s - self._before.cpu_s)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory_bytes)
        self.peak_processes = max(self.peak_processes, len(own))
        self._judge(KilledFor.MEMORY, "memory_bytes", memory_bytes, limits.memory_bytes)
        self._judge(KilledFor.PROCESSES, "processes", len(own), limits.processes)
        self._judge(KilledFor.CPU, "cpu_s", self.cpu_s, limits.cpu_s)
        self._judge(KilledFor.DISK, "files", entries, limits.files)
        self._judge(KilledFor.DISK, "disk_bytes", disk_bytes, limits.disk_bytes)
        self._judge(KilledFor.WALL, "wall_s", time.monotonic() - self._begin_s, limits.wall_s)

    def _disk(self) -> tuple[int, int, int]:
        """(bytes to be held against the limit, entries, bytes that are memory)."""
        if self._cage.host_folder:
            size, entries = usage(self._cage.host_folder, max_entries=self._limits.files + 2)
            return size, entries - 2, 0
        figures = [os.fstatvfs(fd) for fd in (self._cage.work_fd, *self._cage.tmpfs_fds)]
        size = sum((each.f_blocks - each.f_bfree) * each.f_frsize for each in figures)
        # The kernel keeps the size of each; only the number of entries has to be watched.
        return 0, sum(each.f_files - each.f_ffree - 1 for each in figures), size

    def _judge(self, what: KilledFor, name: str, value: float, limit: float) -> None:
        if value > limit:
            self.overshoot[name] = max(self.overshoot.get(name, 0.0), value - limit)
            self.killed_for = self.killed_for or what

    def header(self, exit_status: int | None) -> dict[str, Any]:
        """The result but for its byte strings."""
        return {
            "exit": None if self.killed_for is not None else exit_status,
            "killed_for": self.killed_for,
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_processes": self.peak_processes,
            "overshoot": self.overshoot,
        }


def _run_once(
    connection: socket.socket, header: Mapping[str, Any], blobs: Mapping[str, bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    plan, limits = Plan.from_json(header["plan"]), SandboxLimits(**header["limits"])
    stdin, (out, out_in), (err, err_in) = filled(blobs["stdin"]), os.pipe(), os.pipe()
    streams = Streams(stdin=stdin, stdout=out_in, stderr=err_in)
    try:
        cage = launch(plan, header["command"], files=_files(blobs), limits=limits, env=header["env"], streams=streams)
    except SandboxError as error:
        os.set_blocking(err, False)
        with contextlib.suppress(BlockingIOError):
            raise SandboxError(f"{error}: {os.read(err, 2000).decode(errors='replace').strip()}") from error
        raise
    for fd in (stdin, out_in, err_in):
        os.close(fd)
    try:
        return _watched(connection, cage, limits, (out, err), header["collect"])
    finally:
        kill_below(os.getpid(), group=cage.group)
        cage.close()


def _watched(
    connection: socket.socket, cage: Cage, limits: SandboxLimits, outputs: tuple[int, int], collect: list[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The answer of a command that has been started, once nothing of it runs any more."""
    watch = _Watch(cage, limits, outputs, before=_Before.of(cage.frame))
    watch.until(os.pidfd_open(cage.leader), connection)
    status = _collected(cage.leader) if watch.killed_for is None else None
    if not kill_below(os.getpid(), group=cage.group):
        raise SandboxError("processes of the command could not be ended; one waits for a device, or ended as a zombie")
    watch.finish()
    usage_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    watch.cpu_s = max(watch.cpu_s, usage_s.ru_utime + usage_s.ru_stime)
    return _answer(watch, status, *_read(cage, collect, limits))


def _collected(leader: int) -> int:
    _, status = os.waitpid(leader, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _files(blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix(FILE): blob for name, blob in blobs.items() if name.startswith(FILE)}


def _read(cage: Cage, patterns: list[str], limits: SandboxLimits) -> tuple[dict[str, bytes], dict[str, str]]:
    if not patterns:
        return {}, {}
    return read_back(cage.work_fd, patterns, max_bytes=limits.collect_bytes, max_files=limits.files)


def _answer(
    watch: _Watch, status: int | None, found: Mapping[str, bytes], skipped: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    stdout, stderr = (bytes(pipe.kept) for pipe in watch.pipes)
    blobs = {"stdout": stdout, "stderr": stderr} | {f"{FILE}{name}": blob for name, blob in found.items()}
    return {**watch.header(status), "skipped": dict(skipped)}, blobs


class _Session:
    """A warm Python in its sandbox, forking once per run, for one owner and one world."""

    def __init__(self, connection: socket.socket, header: Mapping[str, Any]) -> None:
        self._connection = connection
        self._owner: list[str] = header["owner"]
        self._plan = Plan.from_json(header["plan"])
        self._limits = SandboxLimits(**header["limits"])
        self._env: dict[str, str] = header["env"]
        self._imports: list[str] = header["imports"]
        self._control, self._theirs = socket.socketpair()
        self._before: _Before | None = None

    def serve(self) -> None:
        """Start the Python, say so, then answer runs until the connection or the Python ends."""
        nothing, (err, err_in) = filled(b""), os.pipe()
        streams = Streams(stdin=nothing, stdout=err_in, stderr=err_in, control=self._theirs.fileno())
        command = ["python", "-I", "-c", warm_server.source(), str(CONTROL_FD), *self._imports]
        cage = launch(self._plan, command, files={}, limits=self._limits, env=self._env, streams=streams)
        for fd in (nothing, err_in):
            os.close(fd)
        self._theirs.close()
        try:
            self._await_start(err)
            self._connection.sendall(pack({"ready": True}, {}))
            while (frame := receive(self._connection)) is not None:
                self._connection.sendall(pack(*self._run(cage, *frame)))
        finally:
            kill_below(os.getpid(), group=cage.group)
            cage.close()

    def _await_start(self, err: int) -> None:
        self._control.settimeout(_WARM_START_S)
        if self._control.recv(1) != b"r":
            os.set_blocking(err, False)
            with contextlib.suppress(BlockingIOError):
                raise SandboxError(f"the warm Python did not start: {os.read(err, 4000).decode(errors='replace')}")
            raise SandboxError("the warm Python did not start")

    def _run(
        self, cage: Cage, header: Mapping[str, Any], blobs: Mapping[str, bytes]
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        if header["owner"] != self._owner:
            raise SandboxError(f"this sandbox is {self._owner}'s; a run of {header['owner']} must not enter it")
        limits = SandboxLimits(**header["limits"])
        with as_user(self._plan, self._plan.uid()):
            put_files(cage.work_fd, _files(blobs))
        stdin, (out, out_in), (err, err_in) = filled(blobs["stdin"]), os.pipe(), os.pipe()
        # Of the run before, where there was one: nothing has happened since.
        before = self._before or _Before.of({*cage.frame, cage.command})
        watch = _Watch(cage, limits, (out, err), before=before)
        words = json.dumps({"argv": header["command"], "env": header["env"]}).encode()
        fds = (stdin, out_in, err_in)
        socket.send_fds(self._control, [len(words).to_bytes(4, "little") + words], fds)
        for fd in fds:
            os.close(fd)
        watch.until(self._control.fileno(), self._connection)
        # Whoever is left belongs to this run; the next one starts among none but the server.
        if not kill_below(os.getpid(), keep=before.keep):
            raise SandboxError("processes of a run could not be ended")
        status = self._status()
        watch.finish()
        self._before = _Before.of(before.keep)
        watch.cpu_s = max(watch.cpu_s, self._before.figures.cpu_s - before.figures.cpu_s)
        found, skipped = _read(cage, header["collect"], limits)
        for fd in (out, err):
            os.close(fd)
        return _answer(watch, status, found, skipped)

    def _status(self) -> int:
        """What the server says of the child that it waited for: the run's own word, like every exit status."""
        self._control.settimeout(_LINGER_S * 10)
        line = self._control.recv(100)
        if not line:
            raise SandboxError("the warm Python ended; a run must have killed it")
        return int(line)
