"""Running what a model wrote: the protocol of a sandbox, its limits and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from burnish.core.errors import ConfigError, WorldFault
from burnish.core.outcome import Owner

PYTHON = "python"
"""As the first word of a command: the interpreter of the sandbox, wherever it lies there."""


class Rung(StrEnum):
    """How a command was isolated; stored with every trajectory.

    bwrap: namespaces and a system call filter.  bwrap_noproc: the same without /proc.  landlock: path rules and a
    stricter filter, no namespaces.  docker, remote: an explicitly configured provider.  unsafe: limits only, which
    isolate nothing; never chosen by a probe.
    """

    BWRAP = "bwrap"
    BWRAP_NOPROC = "bwrap-noproc"
    LANDLOCK = "landlock"
    DOCKER = "docker"
    REMOTE = "remote"
    UNSAFE = "unsafe"


class World(StrEnum):
    """Whose commands run: the agent's during an episode, or the graders' afterwards.  Nothing live crosses over."""

    AGENT = "agent"
    GRADING = "grading"


class KilledFor(StrEnum):
    """What a command was ended for."""

    WALL = "wall"
    CPU = "cpu"
    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Bounds of one command with everything that it starts.

    memory_bytes: over all processes, scratch files in memory included.  address_space_bytes: of a single process, 0
    for the same as memory_bytes.  disk_bytes, files: what may lie in the work folder at once.  output_bytes: of
    stdout and of stderr each.  collect_bytes: of the files that are read back, together.

    `SandboxLimits(wall_s=5.0, memory_bytes=256 * 2**20)`
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 512 * 2**20
    address_space_bytes: int = 0
    processes: int = 64
    disk_bytes: int = 64 * 2**20
    files: int = 10_000
    output_bytes: int = 2**20
    collect_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        for name in ("wall_s", "cpu_s", "memory_bytes", "processes", "disk_bytes", "files", "output_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"sandbox limit {name} is {getattr(self, name)!r}; it must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """What came of one command.

    exit: exit status, 128 + n where signal n ended it, None where the sandbox ended it (then `killed_for` says
    why).  A status and printed text are the command's own words, and no proof of anything.  overshoot: by limit, how
    far beyond it the watched figure was seen (bytes, seconds or processes) when the command was ended; a limit that
    the kernel keeps has none.  skipped: files that matched `collect` and were not read, with the reason (symlink,
    fifo, size, ...). provider: name of a configured provider, "" for this machine.

    `SandboxResult(exit=0, stdout=b"42\\n", stderr=b"", rung=Rung.BWRAP, wall_s=0.02)`
    """

    exit: int | None
    stdout: bytes
    stderr: bytes
    rung: Rung
    killed_for: KilledFor | None = None
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    peak_processes: int = 0
    overshoot: Mapping[str, float] = field(default_factory=dict)
    files_out: Mapping[str, bytes] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    provider: str = ""

    @property
    def timed_out(self) -> bool:
        """Whether time was what it ran out of, by either clock."""
        return self.killed_for in (KilledFor.WALL, KilledFor.CPU)


class Sandbox(Protocol):
    """A place to run commands that are not trusted."""

    @property
    def rung(self) -> Rung:
        """How commands are isolated here."""
        ...

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
        """Put `files` (relative path -> content) into the work folder, run `command` there, read back `collect`.

        env: added to the sandbox's own few variables; nothing of this process's environment passes.  collect:
        patterns as in `fnmatch` over relative paths, "*" for all.  Whatever the command does is in the result; raises
        SandboxError where the sandbox itself failed, which is never the command's fault.
        """
        ...

    async def close(self) -> None:
        """End what is still running and release everything."""
        ...


class SandboxError(WorldFault):
    """The sandbox could not run a command: an infrastructure error, which carries no reward."""

    def __init__(self, message: str) -> None:
        super().__init__(Owner.INFRASTRUCTURE, "sandbox", message)


class SandboxRefused(ConfigError):
    """No rung of the ladder fits this machine, or a sandbox was asked for something that it must not do."""
