"""The sandboxes that episodes and graders run in: one ladder for each process, one warm Python for each episode.

The agent's world is a warm Python, forked for each command; the graders' is a fresh sandbox for each judgement.
Nothing goes from one to the other but the files that were read back.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from burnish.core.errors import ConfigError
from burnish.core.sandbox import PYTHON, Rung, Sandbox, SandboxError, SandboxLimits, SandboxResult, World
from burnish.sandbox.ladder import SandboxSpec, open_sandbox
from burnish.sandbox.local import LocalSandbox
from burnish.sandbox.warm import WarmServers

LIMITS = SandboxLimits(
    wall_s=20.0, cpu_s=20.0, memory_bytes=256 * 2**20, processes=32, disk_bytes=16 * 2**20, files=2000,
    output_bytes=64 * 2**10, collect_bytes=2 * 2**20,
)  # fmt: skip
_IMPORTS = ("json", "unittest", "dataclasses", "re", "fractions", "unicodedata", "heapq", "enum")
_opening = threading.Lock()


@lru_cache(maxsize=8)
def _opened(spec: SandboxSpec) -> LocalSandbox:
    return asyncio.run(open_sandbox(spec))


def _shared(spec: SandboxSpec) -> LocalSandbox:
    with _opening:
        return _opened(spec)


async def shared_sandbox(spec: SandboxSpec) -> LocalSandbox:
    """The sandbox of this process for a spec, probed at the first call.  Raises SandboxRefused where no rung holds."""
    return await asyncio.to_thread(_shared, spec)


def is_isolated(spec: SandboxSpec) -> bool:
    """Whether any rung holds on this machine; may be called inside an event loop."""
    with ThreadPoolExecutor(1) as outside_of_any_loop:
        try:
            outside_of_any_loop.submit(_shared, spec).result()
        except ConfigError:
            return False
    return True


class Room:
    """The agent's world of one episode: commands one after the other in one folder, which is kept in step with `files`.

    warm: the second command and those after it are forked from a Python that waits.  Where that Python ends because a
    command killed it, the others run in fresh sandboxes: killing it must not be a way out of being judged.
    """

    def __init__(self, spec: SandboxSpec, *, warm: bool = True) -> None:
        self._spec = spec
        self._is_warm = warm
        self._sandbox: Sandbox | None = None
        self._servers: WarmServers | None = None
        self._id = secrets.token_hex(8)
        self._there: dict[str, bytes] = {}
        self._compiled: set[str] = set()
        self.rung: Rung | None = None

    async def run(self, command: Sequence[str], files: Mapping[str, bytes]) -> SandboxResult:
        """Run a command among `files`; `files_out` holds all that is there afterwards, compiled Python left out."""
        sandbox = await self._open()
        try:
            result = await sandbox.run(command, files=self._news(files), limits=LIMITS, collect=["*"])
        except SandboxError:
            if self._servers is None:
                raise
            await self._end_warm()
            self._sandbox = await shared_sandbox(self._spec)
            result = await self._sandbox.run(command, files=files, limits=LIMITS, collect=["*"])
        self.rung = result.rung
        self._compiled |= {path for path in result.files_out if path.endswith(".pyc")}
        self._there = {path: data for path, data in result.files_out.items() if not path.endswith(".pyc")}
        return result

    async def close(self) -> None:
        """End what still runs."""
        await self._end_warm()

    async def _open(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = await shared_sandbox(self._spec)
            return self._sandbox
        if self._is_warm and self._servers is None:
            # Starting one pays from the second command on; many episodes run a single one.
            self._is_warm = False
            self._servers = WarmServers(await shared_sandbox(self._spec), imports=_IMPORTS, limits=LIMITS)
            self._sandbox = await self._servers.get(self._id, World.AGENT)
            self._there, self._compiled = {}, set()
        return self._sandbox

    def _news(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """What has to be put into the folder; all of it where the folder is a fresh one.

        Compiled Python is emptied when sources change: Python trusts a file's size and its time in whole seconds, and
        two edits of an agent lie within one.
        """
        if self._servers is None:
            return dict(files)
        news = {path: data for path, data in files.items() if self._there.get(path) != data}
        if any(path.endswith(".py") for path in news) or not self._there:
            news |= dict.fromkeys(self._compiled, b"")
        return news

    async def _end_warm(self) -> None:
        if self._servers is not None:
            await self._servers.close()
            self._servers = None


def command_words(command: str) -> list[str]:
    """How a command line is run: a plain Python command by the sandbox's own Python, everything else by a shell.

    >>> command_words("python -m unittest"), command_words("ls | wc")
    (['python', '-m', 'unittest'], ['sh', '-c', 'ls | wc'])
    """
    words = command.split()
    if words and words[0] in ("python", "python3") and not set(command) & set("|&;<>()$`\\\"'*?[]#~=%{}\n!"):
        return [PYTHON, *words[1:]]
    return ["sh", "-c", command]
