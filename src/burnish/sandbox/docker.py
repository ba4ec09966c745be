"""Docker (or Podman, or anything with Docker's command line) as a configured provider.

A container is made, filled, started, emptied and removed for each run, by the command-line client alone.  The daemon
keeps the limits on memory, processes and network; time and output are watched here; disk is bounded by the storage
driver where it can (`disk_option`), and otherwise only by the size of a single file.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import secrets
import tarfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from burnish.core.sandbox import PYTHON, KilledFor, Rung, SandboxError, SandboxLimits, SandboxResult
from burnish.sandbox.folder import checked_path
from burnish.sandbox.local import DEFAULT_LIMITS
from burnish.sandbox.plan import WORK

_CLIENT_S = 60.0
_END_S = 10.0
_UID = 65534
_OUT_OF_MEMORY_EXIT = 137


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSpec:
    """image: with a `python3` and `/bin/sh`; never pulled at run time.  runtime: such as "runsc" for gVisor, "" for
    the daemon's own.  disk_option: pass `--storage-opt size=`, which only some storage drivers take.

    `DockerSpec(image="python:3.12-slim")`
    """

    image: str
    client: str = "docker"
    interpreter: str = "python3"
    runtime: str = ""
    disk_option: bool = False


class DockerSandbox:
    """Runs each command in a fresh container."""

    rung = Rung.DOCKER

    def __init__(self, spec: DockerSpec) -> None:
        self._spec = spec

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
        """See `core.sandbox.Sandbox.run`."""
        limits = limits or DEFAULT_LIMITS
        name = f"burnish-{secrets.token_hex(8)}"
        try:
            await self._client(self.create_words(name, command, limits, env or {}))
            await self._client(["cp", "-", f"{name}:/"], packed(files or {}))
            ended = await self._start(name, stdin, limits)
            found: dict[str, bytes] = {}
            skipped: dict[str, str] = {}
            if collect:
                archive = await self._client(
                    ["cp", f"{name}:{WORK}", "-"], max_bytes=limits.disk_bytes + limits.files * 1536
                )
                found, skipped = unpacked(archive, collect, limits)
        finally:
            with contextlib.suppress(SandboxError):
                await asyncio.shield(self._client(["rm", "--force", "--volumes", name]))
        return self._result(ended, limits, found, skipped)

    async def close(self) -> None:
        """Nothing is held between runs."""

    def create_words(
        self, name: str, command: Sequence[str], limits: SandboxLimits, env: Mapping[str, str]
    ) -> list[str]:
        """Arguments that make the container."""
        cpu_s = max(1, round(limits.cpu_s))
        words = ["create", "--name", name, "--interactive", "--pull", "never", "--init", "--network", "none"]
        words += ["--user", f"{_UID}:{_UID}", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        words += ["--ipc", "private", "--workdir", WORK, "--env", f"HOME={WORK}", "--env", "LANG=C.UTF-8"]
        words += ["--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)]
        words += ["--pids-limit", str(limits.processes), "--ulimit", f"cpu={cpu_s}", "--ulimit", "core=0"]
        words += ["--ulimit", f"fsize={limits.disk_bytes}", "--shm-size", str(max(2**20, limits.disk_bytes // 4))]
        words += ["--storage-opt", f"size={limits.disk_bytes}"] if self._spec.disk_option else []
        words += ["--runtime", self._spec.runtime] if self._spec.runtime else []
        words += [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        first = self._spec.interpreter if command[0] == PYTHON else command[0]
        return [*words, "--entrypoint", first, self._spec.image, *command[1:]]

    async def _start(self, name: str, stdin: bytes, limits: SandboxLimits) -> _Ended:
        """Run the container to its end or to a limit."""

        async def kill() -> None:
            with contextlib.suppress(SandboxError):
                await self._client(["kill", name])

        process = await self._started(["start", "--attach", "--interactive", name])
        ended = await _follow(process, stdin, (limits.output_bytes, limits.output_bytes), limits.wall_s, kill)
        if ended.killed_for is None and ended.exit == _OUT_OF_MEMORY_EXIT and await self._was_out_of_memory(name):
            return replace(ended, exit=None, killed_for=KilledFor.MEMORY)
        return ended

    async def _was_out_of_memory(self, name: str) -> bool:
        said = await self._client(["inspect", "--format", "{{.State.OOMKilled}}", name])
        return said.strip() == b"true"

    def _result(
        self, ended: _Ended, limits: SandboxLimits, found: dict[str, bytes], skipped: dict[str, str]
    ) -> SandboxResult:
        return SandboxResult(
            exit=ended.exit,
            stdout=ended.stdout,
            stderr=ended.stderr,
            rung=Rung.DOCKER,
            killed_for=ended.killed_for,
            wall_s=ended.wall_s,
            overshoot={"wall_s": ended.wall_s - limits.wall_s} if ended.killed_for is KilledFor.WALL else {},
            files_out=found,
            skipped=skipped,
            provider=f"{self._spec.client}:{self._spec.image}",
        )

    async def _started(self, words: Sequence[str]) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        try:
            return await asyncio.create_subprocess_exec(self._spec.client, *words, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise SandboxError(f"the client {self._spec.client!r} cannot be run: {error.strerror}") from error

    async def _client(self, words: Sequence[str], stdin: bytes = b"", *, max_bytes: int = 2**20) -> bytes:
        """One call of the client; what it printed.  Raises SandboxError with its own words where it failed."""
        process = await self._started(words)

        async def kill() -> None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

        ended = await _follow(process, stdin, (max_bytes, 4096), _CLIENT_S, kill)
        if ended.exit != 0:
            said = ended.stderr.decode(errors="replace").strip()
            reason = said if ended.killed_for is None else f"it went over its limit of {ended.killed_for}"
            raise SandboxError(f"{self._spec.client} {words[0]} failed: {reason}")
        return ended.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """A finished call of the client."""

    exit: int | None
    killed_for: KilledFor | None
    wall_s: float
    stdout: bytes
    stderr: bytes


class _Output:
    """One stream: the first bytes kept, the rest read and dropped, so that its writer can end."""

    def __init__(self, cap_bytes: int) -> None:
        self._cap_bytes = cap_bytes
        self.kept = bytearray()
        self.is_full = asyncio.Event()

    async def read(self, stream: asyncio.StreamReader | None) -> None:
        while stream is not None and (chunk := await stream.read(65536)):
            self.kept += chunk[: self._cap_bytes + 1 - len(self.kept)]
            if len(self.kept) > self._cap_bytes:
                del self.kept[self._cap_bytes :]
                self.is_full.set()


async def _follow(
    process: asyncio.subprocess.Process,
    stdin: bytes,
    caps_bytes: tuple[int, int],
    timeout_s: float,
    kill: Callable[[], Awaitable[None]],
) -> _Ended:
    """Feed and read a client until it ends; call `kill` where it takes too long or says too much."""
    begin_s = time.monotonic()
    outputs = [_Output(cap) for cap in caps_bytes]
    streams = (process.stdout, process.stderr)
    work = [output.read(stream) for output, stream in zip(outputs, streams, strict=True)]
    end: asyncio.Future[Any] = asyncio.ensure_future(asyncio.gather(process.wait(), _feed(process, stdin), *work))
    full: list[asyncio.Future[Any]] = [asyncio.ensure_future(output.is_full.wait()) for output in outputs]
    killed_for: KilledFor | None = None
    try:
        await asyncio.wait({end, *full}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if any(output.is_full.is_set() for output in outputs):
            killed_for = KilledFor.OUTPUT
        elif not end.done():
            killed_for = KilledFor.WALL
        if not end.done():
            await kill()
            await asyncio.wait({end}, timeout=_END_S)
        wall_s = time.monotonic() - begin_s
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        for task in (end, *full):
            task.cancel()
        await asyncio.gather(end, *full, return_exceptions=True)
        await process.wait()
    status = None if killed_for else process.returncode
    stdout, stderr = (bytes(output.kept) for output in outputs)
    return _Ended(exit=status, killed_for=killed_for, wall_s=wall_s, stdout=stdout, stderr=stderr)


async def _feed(process: asyncio.subprocess.Process, content: bytes) -> None:
    if process.stdin is not None:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(content)
            await process.stdin.drain()
            process.stdin.close()


def packed(files: Mapping[str, bytes]) -> bytes:
    """The work folder with these files, as a tar archive of "/" owned by the container's user."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        folders = {""}
        for name in files:
            parts = checked_path(name)
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        for folder in sorted(folders):
            archive.addfile(_entry(f"{WORK[1:]}/{folder}".rstrip("/"), 0o755, kind=tarfile.DIRTYPE))
        for name, content in files.items():
            mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(_entry(f"{WORK[1:]}/{name}", mode, size=len(content)), io.BytesIO(content))
    return buffer.getvalue()


def _entry(name: str, mode: int, *, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size, entry.type, entry.uid, entry.gid = mode, size, kind, _UID, _UID
    return entry


def unpacked(archive: bytes, patterns: Sequence[str], limits: SandboxLimits) -> tuple[dict[str, bytes], dict[str, str]]:
    """Regular files of an archive of the work folder that match, and what was left alone with the reason."""
    found: dict[str, bytes] = {}
    skipped: dict[str, str] = {}
    left = limits.collect_bytes
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
        for count, entry in enumerate(opened):
            name = entry.name.partition("/")[2]
            if count >= limits.files:
                skipped[name] = f"more than {limits.files} files"
                break
            if entry.isdir() or not name or not any(fnmatchcase(name, pattern) for pattern in patterns):
                continue
            stream = opened.extractfile(entry) if entry.isreg() else None
            if stream is None:
                skipped[name] = "symlink" if entry.issym() else "hard link" if entry.islnk() else "not a regular file"
            elif entry.size > left:
                skipped[name] = "size"
            else:
                found[name] = stream.read(entry.size)
                left -= entry.size
    return found, skipped
