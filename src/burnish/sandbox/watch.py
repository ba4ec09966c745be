"""What runs under a process, measured from outside: processes, memory, processor time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_KILL_S = 5.0
_HAS_CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFigures:
    """One look at a tree of processes.

    memory_bytes: anonymous and shared memory, summed; pages shared by fork count once for each process (so this is an
    upper bound), file pages not at all.  cpu_s: of the living and of the children that they have reaped.
    """

    processes: int
    memory_bytes: int
    cpu_s: float


def descendants(root: int) -> list[int]:
    """Every process below `root`, parents before children."""
    children = _children if _HAS_CHILDREN_FILES else _children_by_parent()
    found: list[int] = []
    pending = [root]
    while pending:
        below = children(pending.pop())
        found += below
        pending += below
    return found


def _children_by_parent() -> Callable[[int], list[int]]:
    """For kernels built without the files that list children: one pass over all processes."""
    by_parent: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                parent = int(_content(f"/proc/{name}/stat").rpartition(b")")[2].split()[1])
                by_parent.setdefault(parent, []).append(int(name))
    return lambda pid: by_parent.get(pid, [])


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError):
            found += [int(word) for word in _content(f"/proc/{pid}/task/{thread}/children").split()]
    return found


def measure(pids: Collection[int]) -> TreeFigures:
    """Figures of these processes; one that ends meanwhile counts nothing."""
    memory_bytes, cpu_s = 0, 0.0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError, ValueError):
            memory_bytes += _memory_bytes(pid)
            cpu_s += _cpu_s(pid)
    return TreeFigures(processes=len(pids), memory_bytes=memory_bytes, cpu_s=cpu_s)


def _memory_bytes(pid: int) -> int:
    return _sum_kb(_content(f"/proc/{pid}/status"), (b"\nRssAnon:", b"\nRssShmem:"))


def _content(path: str) -> bytes:
    """A file of the kernel's, at most 64 KiB: by three system calls where `open` takes eight, as this runs often."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def _sum_kb(text: bytes, names: Sequence[bytes]) -> int:
    """names: each with the line feed before it, for a process may call itself "RssAnon: 0 kB"."""
    total = 0
    for name in names:
        at = text.find(name)
        if at >= 0:
            total += int(text[at + len(name) : text.index(b"kB", at)]) * 1024
    return total


def exact_memory_bytes(pids: Collection[int]) -> int:
    """As in TreeFigures, but a page that n processes share counts 1/n for each; slower, for when it matters.

    A process whose map cannot be read counts as in `measure`.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            try:
                total += _sum_kb(_content(f"/proc/{pid}/smaps_rollup"), (b"\nPss_Anon:", b"\nPss_Shmem:"))
            except PermissionError:
                total += _memory_bytes(pid)
    return total


def _cpu_s(pid: int) -> float:
    """Fields 14 to 17 of /proc/PID/stat, counted behind the name, which may hold anything."""
    fields = _content(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return sum(int(word) for word in fields[11:15]) * _TICK_S


def kill_below(root: int, *, keep: Collection[int] = (), group: int = 0) -> bool:
    """Kill every process below `root` but `keep`, and reap those that are its own; whether none is left.

    group: a process group that holds them all, killed first and in one go, so that nobody can fork ahead of it.
    `root` has to be this process, and the parent of orphans (`kernel.adopt_orphans`).
    """
    give_up_s = time.monotonic() + _KILL_S
    while time.monotonic() < give_up_s:
        if group:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        left = [pid for pid in descendants(root) if pid not in keep]
        if not left:
            return True
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        reap(keep)
        time.sleep(0.0005)
    return False


def reap(keep: Collection[int] = ()) -> None:
    """Collect own children that have ended, but those in `keep`, whose status somebody waits for."""
    direct = _children if _HAS_CHILDREN_FILES else _children_by_parent()
    for pid in direct(os.getpid()):
        if pid not in keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
