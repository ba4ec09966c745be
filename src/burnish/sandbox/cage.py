"""One started command inside its rung, as the supervisor holds it: the fork, the confinement, the work folder.

Runs in a supervisor, a small process with one thread that no untrusted code has ever run in; so forking is cheap and
safe here, and would be neither in a trainer with gigabytes resident.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from burnish.core.sandbox import Rung, SandboxError, SandboxLimits, SandboxRefused
from burnish.sandbox import bpf, kernel
from burnish.sandbox.folder import put_files
from burnish.sandbox.plan import DEVICES, WORK, Plan, bwrap_argv, entry_argv, system_paths
from burnish.sandbox.watch import descendants

_START_S = 20.0
_MAX_FILE_DESCRIPTORS = 256
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_F_ADD_SEALS, _SEAL_EVERYTHING = 1033, 0xF
_READY_FD, _GO_FD, CONTROL_FD = 3, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Descriptors of this process that become 0, 1, 2 and, if given, CONTROL_FD of the command."""

    stdin: int
    stdout: int
    stderr: int
    control: int = -1


@dataclass(slots=True, kw_only=True)
class Cage:
    """What runs and where.

    leader: child of this process that everything else lives under.  command: process of the command itself (the
    leader, or two levels below it under bwrap).  frame: processes of the rung's own, which are not the
    command's.  work_fd: the work folder; stays readable when all processes are gone.  tmpfs_fds: memory file systems
    with a size, to be measured.  host_folder: path of the run's folder on this machine, "" where all lies in
    memory.  group: process group that nothing can leave, 0 where a pid namespace does that.
    """

    leader: int
    command: int
    frame: tuple[int, ...]
    work_fd: int
    tmpfs_fds: tuple[int, ...] = ()
    host_folder: str = ""
    group: int = 0

    def close(self) -> None:
        """Give up the folder; all processes must have ended."""
        for fd in (self.work_fd, *self.tmpfs_fds):
            os.close(fd)
        if self.host_folder:
            _remove(self.host_folder)


def launch(
    plan: Plan,
    command: Sequence[str],
    *,
    files: Mapping[str, bytes],
    limits: SandboxLimits,
    env: Mapping[str, str],
    streams: Streams,
) -> Cage:
    """Fill the work folder, then start `command` in it.  Raises SandboxError where the rung does not come up."""
    start = _launch_bwrap if plan.has_namespaces else _launch_here
    return start(plan, command, files=files, limits=limits, env=env, streams=streams)


def _launch_bwrap(
    plan: Plan,
    command: Sequence[str],
    *,
    files: Mapping[str, bytes],
    limits: SandboxLimits,
    env: Mapping[str, str],
    streams: Streams,
) -> Cage:
    ready, ready_in = os.pipe()
    go_out, go = os.pipe()
    info, info_in = os.pipe()
    filter_fd = filled(bpf.filter_program(bpf.Confinement(has_namespaces=True)))
    fds = {_READY_FD: ready_in, _GO_FD: go_out, CONTROL_FD: streams.control}
    argv = bwrap_argv(plan, limits, plan.environment(WORK, env), {"info": 6, "filter": 7})
    argv += ["--", *entry_argv(plan, plan.uid()), *plan.argv(command)]
    leader = _fork(argv, _stdio(streams) | fds | {6: info_in, 7: filter_fd}, prepare=_expendable)
    for fd in (ready_in, go_out, info_in, filter_fd):
        os.close(fd)
    try:
        if not _arrived(ready):
            raise SandboxError("bwrap did not start")
        init = int(json.loads(os.read(info, 4096))["child-pid"])
        (entry,) = (pid for pid in descendants(leader) if pid not in (leader, init))
        opened = [os.open(f"/proc/{init}/root{path}", _OPEN_FOLDER) for path in (WORK, "/tmp", "/dev/shm")]
        uid = plan.uid()
        os.fchown(opened[0], uid, uid if plan.as_root else -1)
        with as_user(plan, uid):
            put_files(opened[0], files)
        for which, value in _rlimits(limits, 0):
            resource.prlimit(entry, which, (value, value))
        os.write(go, b"\n")
    except OSError as error:
        raise SandboxError(f"bwrap started but its folders cannot be reached: {error}") from error
    finally:
        for fd in (ready, go, info):
            os.close(fd)
    return Cage(leader=leader, command=entry, frame=(leader, init), work_fd=opened[0], tmpfs_fds=tuple(opened[1:]))


def _launch_here(
    plan: Plan,
    command: Sequence[str],
    *,
    files: Mapping[str, bytes],
    limits: SandboxLimits,
    env: Mapping[str, str],
    streams: Streams,
) -> Cage:
    uid = plan.uid()
    folder = tempfile.mkdtemp(prefix="burnish-sandbox-", dir=plan.scratch)
    work, tmp = f"{folder}/work", f"{folder}/tmp"
    try:
        work_fd = _made_folders(plan, uid, folder, (work, tmp))
        with as_user(plan, uid):
            put_files(work_fd, files)
    except (OSError, SandboxError):
        _remove(folder)
        raise
    crowd = 0 if plan.as_root else _threads_of(uid)

    def prepare() -> None:
        _expendable()
        os.setsid()
        os.chdir(work)
        for which, value in _rlimits(limits, crowd):
            resource.setrlimit(which, (value, value))
        _confine(plan, uid, (work, tmp))

    fds = _stdio(streams) | {CONTROL_FD: streams.control}
    leader = _fork(plan.argv(command), fds, prepare=prepare, env=plan.environment(work, env))
    return Cage(leader=leader, command=leader, frame=(), work_fd=work_fd, host_folder=folder, group=leader)


def _made_folders(plan: Plan, uid: int, folder: str, inner: Sequence[str]) -> int:
    """Make the run's folders for `uid`; a descriptor of the first."""
    for made in inner:
        os.mkdir(made, 0o700)
    if plan.as_root:
        for made in (folder, *inner):
            os.chown(made, uid, uid)
    return os.open(inner[0], _OPEN_FOLDER)


def _confine(plan: Plan, uid: int, writable: Sequence[str]) -> None:
    """Give up this process's powers, in the order in which each step still may be taken."""
    is_landlock = plan.rung is Rung.LANDLOCK
    if plan.as_root:
        kernel.become(uid, read_everything=plan.reads_beyond_uid())
    kernel.die_with_parent()
    kernel.no_new_privileges()
    if is_landlock:
        kernel.restrict_paths(plan.readable, writable, DEVICES, plan.abi)
        scoped = plan.abi >= kernel.SCOPES_SIGNALS_ABI
        confinement = bpf.Confinement(has_namespaces=False, shares_uid=not plan.as_root, scopes_signals=scoped)
        kernel.load_filter(bpf.filter_program(confinement))


def _fork(
    argv: Sequence[str], fds: Mapping[int, int], *, prepare: Callable[[], None], env: Mapping[str, str] | None = None
) -> int:
    """Start a program with exactly these descriptors (its number -> ours, -1 for none)."""
    pid = os.fork()
    if pid:
        return pid
    try:
        _lay_out(fds)
        for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        prepare()
        os.execvpe(argv[0], list(argv), dict(env or {"PATH": "/usr/bin:/bin"}))
    except BaseException as error:  # noqa: BLE001 - between fork and exec there is nobody else to tell
        os.write(2, f"burnish: {argv[0]}: {error}\n".encode())
    os._exit(127)


def _lay_out(fds: Mapping[int, int]) -> None:
    # First out of the way of each other's targets, then into place.
    moved = {target: os.dup(fd) if fd > 63 else _dup_above(fd) for target, fd in fds.items() if fd >= 0}
    os.closerange(0, 64)
    for target, fd in moved.items():
        os.dup2(fd, target, inheritable=True)
    os.closerange(max(moved) + 1, 4096)


def _dup_above(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD, 64)


def _stdio(streams: Streams) -> dict[int, int]:
    return {0: streams.stdin, 1: streams.stdout, 2: streams.stderr}


def _rlimits(limits: SandboxLimits, crowd: int) -> list[tuple[int, int]]:
    """crowd: threads that the uid has running elsewhere, which the kernel counts too."""
    cpu_s = max(1, int(limits.cpu_s + 0.999)) + 1
    return [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _MAX_FILE_DESCRIPTORS),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, limits.address_space_bytes or limits.memory_bytes),
        (resource.RLIMIT_NPROC, limits.processes + crowd),
    ]


def _threads_of(uid: int) -> int:
    count = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    count += len(os.listdir(f"/proc/{name}/task"))
    return count


def _expendable() -> None:
    """Where this machine runs out of memory, the kernel should take the sandbox first."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


@contextlib.contextmanager
def as_user(plan: Plan, uid: int) -> Iterator[None]:
    """Create files as the owner that the sandbox knows."""
    if not plan.as_root:
        yield
        return
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def filled(content: bytes) -> int:
    """A read-only descriptor of a file in memory, sealed: through /proc it could be opened anew for writing."""
    fd = os.memfd_create("burnish-sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_EVERYTHING)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _arrived(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN | select.POLLHUP)
    give_up_s = time.monotonic() + _START_S
    while (left_s := give_up_s - time.monotonic()) > 0:
        if poller.poll(left_s * 1000):
            return os.read(fd, 1) == b"r"
    return False


def _remove(folder: str) -> None:
    """Remove a tree that may be too deep for recursion and shut against its owner."""
    remove = [shutil.which("rm") or "/bin/rm", "-rf", "--one-file-system", folder]
    if subprocess.run(remove, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(remove, stderr=subprocess.DEVNULL, check=False)


def readable_for(rung: Rung, folders: Sequence[str]) -> tuple[str, ...]:
    """Everything that commands may read outside of their work folder."""
    if rung is Rung.UNSAFE:
        return ()
    for folder in folders:
        if not folder.startswith("/"):
            raise SandboxRefused(f"readable folder {folder!r} is not an absolute path")
    return (*system_paths(), *folders)
