"""How a rung isolates: what of this machine can be seen inside, as whom commands run, the command line of bwrap."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from burnish.core.sandbox import PYTHON, Rung, SandboxLimits, SandboxRefused

WORK = "/sandbox"
"""The work folder inside; a name that hides nothing which a project could want to make readable."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_FIRST_UID = 1_610_612_736
"""Uids of runs under root: this plus the number of the process that watches, so that no two runs share one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything about a sandbox that does not change from run to run; JSON-able.

    interpreter: what "python" means inside.  readable: folders and files of this machine that can be read and run
    inside, at the same paths.  scratch: where work folders are made that are folders of this machine.  as_root: the
    harness is root, so commands run under a uid of their own.  abi: of Landlock.
    """

    rung: Rung
    interpreter: str
    readable: tuple[str, ...]
    scratch: str
    as_root: bool
    abi: int = 0

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` gave."""
        return Plan(**{**row, "rung": Rung(row["rung"]), "readable": tuple(row["readable"])})

    @property
    def has_namespaces(self) -> bool:
        """Whether commands live in namespaces of their own."""
        return self.rung in (Rung.BWRAP, Rung.BWRAP_NOPROC)

    def uid(self) -> int:
        """Whom the commands of the supervisor that calls this run as."""
        return _FIRST_UID + os.getpid() if self.as_root else os.getuid()

    def environment(self, work: str, more: Mapping[str, str]) -> dict[str, str]:
        """All that commands see of an environment."""
        path = f"{os.path.dirname(self.interpreter)}:/usr/local/bin:/usr/bin:/bin"
        tmp = "/tmp" if self.has_namespaces else f"{os.path.dirname(work)}/tmp"
        own = {"PATH": path, "HOME": work, "TMPDIR": tmp, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**own, **more}

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command with "python" as its first word made the interpreter."""
        if not command:
            raise SandboxRefused("an empty command cannot be run")
        return [self.interpreter if command[0] == PYTHON else command[0], *command[1:]]

    def reads_beyond_uid(self) -> bool:
        """Whether the interpreter lies in a folder that only root may enter."""
        folder = os.path.dirname(os.path.realpath(self.interpreter))
        while folder != "/":
            if not os.stat(folder).st_mode & 0o001:
                return self.as_root
            folder = os.path.dirname(folder)
        return False


def system_paths() -> tuple[str, ...]:
    """Read-only parts of this machine that programs need; nothing of users, services or sockets."""
    return (*_SYSTEM, *(f"/etc/{name}" for name in _ETC))


def default_interpreter() -> str:
    """The Python that this process runs on, without its virtual environment."""
    here = os.path.join(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    return os.path.realpath(here if os.path.exists(here) else sys.executable)


def interpreter_folders(interpreter: str) -> tuple[str, ...]:
    """What an interpreter needs beyond the system's folders: its prefix, and its base where it is a virtual one."""
    virtual = os.path.dirname(os.path.dirname(os.path.abspath(interpreter)))
    real = os.path.dirname(os.path.dirname(os.path.realpath(interpreter)))
    folders = [real]
    if virtual != real and os.path.exists(os.path.join(virtual, "pyvenv.cfg")):
        folders.append(virtual)
    return tuple(folder for folder in folders if not _is_system(folder))


def _is_system(folder: str) -> bool:
    return any(folder == name or folder.startswith(f"{name}/") for name in _SYSTEM)


def bwrap_argv(plan: Plan, limits: SandboxLimits, env: Mapping[str, str], fds: Mapping[str, int]) -> list[str]:
    """bwrap up to the command it starts.  fds: "info" (where it tells the process number), "filter" (seccomp).

    As root no user namespace is made: a uid of the sandbox's own does what the mapped one would, and the kernel keeps
    RLIMIT_NPROC for it (for real uid 0 it does not, whatever uid a namespace shows).  bwrap's own root and /dev are
    memory without a size, so both are made read-only once everything is in place.
    """
    argv = [_program("bwrap"), "--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"]
    argv += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--cap-drop", "ALL"]
    if plan.as_root:
        argv += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        argv += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    argv += ["--proc", "/proc"] if plan.rung is Rung.BWRAP else []
    argv += ["--dev", "/dev"]
    small = max(2**20, limits.disk_bytes // 4)
    for folder, size in (("/dev/shm", small), ("/tmp", small), (WORK, limits.disk_bytes)):
        argv += ["--perms", "1777" if folder != WORK else "0700", "--size", str(size), "--tmpfs", folder]
    argv += _binds(plan.readable)
    argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", WORK]
    for name, value in env.items():
        argv += ["--setenv", name, value]
    return [*argv, "--info-fd", str(fds["info"]), "--seccomp", str(fds["filter"])]


def _binds(paths: Sequence[str]) -> list[str]:
    argv: list[str] = []
    made = {"/tmp", "/dev", WORK}
    for path in paths:
        if not os.path.lexists(path):
            continue
        for parent in _parents(path):
            if parent not in made:
                made.add(parent)
                # Else bwrap copies the permissions of the source's parents, which may shut out everybody but root.
                argv += ["--perms", "0755", "--dir", parent]
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        else:
            argv += ["--ro-bind", path, path]
    return argv


def _parents(path: str) -> list[str]:
    found: list[str] = []
    folder = os.path.dirname(path)
    while folder != "/":
        found.append(folder)
        folder = os.path.dirname(folder)
    return found[::-1]


def entry_argv(plan: Plan, uid: int) -> list[str]:
    """What bwrap starts: waits until the work folder is filled, then becomes the command that follows.

    A shell, because it starts in a millisecond.  It says on descriptor 3 that everything is mounted, reads a line
    from 4, and closes both.
    """
    entry = [_program("sh"), "-c", 'printf r >&3; read -r _ <&4; exec 3>&- 4<&-; exec "$@"', "sh"]
    if plan.as_root:
        entry += [_program("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return entry


def _program(name: str) -> str:
    found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
    if found is None:
        raise SandboxRefused(f"the program {name} is not installed (Debian and Ubuntu: {_PACKAGES[name]})")
    return found


_PACKAGES = {"bwrap": "apt install bubblewrap", "setpriv": "apt install util-linux", "sh": "apt install dash"}
