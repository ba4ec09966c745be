"""A small assembler for seccomp filters, and the two filters of the ladder.

A filter is a classic BPF program over `struct seccomp_data` (linux/seccomp.h): the number of the system call at
offset 0, the architecture at 4, the six arguments from 16 on, 8 bytes each.  Instructions are 8 bytes: code, jump if
true, jump if false, operand.  Only x86-64 has a table of numbers here (arch/x86/entry/syscalls/syscall_64.tbl of
Linux 6.18); on other architectures `filter_program` refuses, and the rungs that need it are absent.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from burnish.core.sandbox import SandboxError

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000
_NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; NEWTIME exists in clone3 and unshare only."""
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10

_CALLS = {
    "shmget": 29, "shmat": 30, "shmctl": 31, "socket": 41, "socketpair": 53, "clone": 56, "kill": 62, "semget": 64,
    "msgget": 68, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "syslog": 103,
    "setpgid": 109, "setsid": 112, "rt_sigqueueinfo": 129, "utime": 132, "uselib": 134, "personality": 135,
    "sysfs": 139, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "vhangup": 153,
    "modify_ldt": 154, "pivot_root": 155, "_sysctl": 156, "adjtimex": 159, "chroot": 161, "acct": 163,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
    "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176,
    "quotactl": 179, "nfsservctl": 180, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
    "lremovexattr": 198, "fremovexattr": 199, "tkill": 200, "sched_setaffinity": 203, "lookup_dcookie": 212,
    "clock_settime": 227, "tgkill": 234, "utimes": 235, "mbind": 237, "set_mempolicy": 238, "mq_open": 240,
    "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "ioprio_set": 251, "migrate_pages": 256,
    "fchownat": 260, "futimesat": 261, "fchmodat": 268, "unshare": 272, "move_pages": 279, "utimensat": 280,
    "rt_tgsigqueueinfo": 297, "perf_event_open": 298, "fanotify_init": 300, "fanotify_mark": 301, "prlimit64": 302,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305, "setns": 308, "process_vm_readv": 310,
    "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "sched_setattr": 314, "memfd_create": 319,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "ioctl": 16, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "quotactl_fd": 443, "memfd_secret": 447, "process_mrelease": 448,
    "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
}  # fmt: skip

_NEVER = (
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount",
    "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "ptrace", "process_vm_readv", "process_vm_writev",
    "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp", "bpf", "perf_event_open", "userfaultfd",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl",
    "open_by_handle_at", "name_to_handle_at", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "settimeofday", "adjtimex", "clock_settime",
    "clock_adjtime", "sethostname", "setdomainname", "iopl", "ioperm", "quotactl", "quotactl_fd", "syslog",
    "personality", "vhangup", "nfsservctl", "lookup_dcookie", "fanotify_init", "fanotify_mark", "move_pages",
    "migrate_pages", "mbind", "set_mempolicy", "_sysctl", "uselib", "modify_ldt", "sysfs",
)  # fmt: skip
_UNCOUNTED_MEMORY = (
    "memfd_create", "memfd_secret", "shmget", "shmat", "shmctl", "msgget", "semget", "mq_open",
)  # fmt: skip
"""Memory outside of every process and folder, where no limit of the ladder would see it."""

_OTHERS_TIME = ("setpriority", "ioprio_set")
_OTHERS_BY_PID = ("prlimit64", "sched_setparam", "sched_setscheduler", "sched_setattr", "sched_setaffinity")
_SIGNALS = ("kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal", "tgkill")
_METADATA = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "removexattr", "lremovexattr",
    "fremovexattr", "removexattrat", "file_setattr",
)  # fmt: skip
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a filter has to make up for.

    has_namespaces: own pid and network namespaces, so sockets reach nobody and a session cannot be left.
    shares_uid: the commands run under the uid of the harness, whose files and processes the kernel then lets them
    change.  scopes_signals: Landlock keeps signals inside (ABI 6 and later).
    """

    has_namespaces: bool
    shares_uid: bool = False
    scopes_signals: bool = True


def supported() -> bool:
    """Whether this architecture has a table of system calls here."""
    return platform.machine() == "x86_64"


def filter_program(confinement: Confinement) -> bytes:
    """The filter as an array of `struct sock_filter`, as bwrap's --seccomp and the kernel take it.

    >>> len(filter_program(Confinement(has_namespaces=True))) % 8
    0
    """
    if not supported():
        raise SandboxError(f"no system call table for {platform.machine()}; sandboxes need x86-64 or a provider")
    parts = [_deny(_CALLS[name], errno.EPERM) for name in (*_NEVER, *_UNCOUNTED_MEMORY)]
    parts += [_deny(_CALLS["clone3"], errno.ENOSYS)]
    parts += [_deny_bits(_CALLS["clone"], 0, _NEW_NAMESPACES, errno.EPERM)]
    parts += [_deny_values(_CALLS["ioctl"], 1, (_TIOCSTI, _TIOCLINUX), errno.EPERM)]
    parts += [_only_values(_CALLS["socketpair"], 0, (AF_UNIX,), errno.EAFNOSUPPORT)]
    if confinement.has_namespaces:
        families = (AF_UNIX, AF_INET, AF_INET6)
        parts += [_only_values(_CALLS["socket"], 0, families, errno.EAFNOSUPPORT)]
    else:
        denied = ("socket", "setsid", "setpgid", *_OTHERS_TIME)
        parts += [_deny(_CALLS[name], errno.EACCES if name == "socket" else errno.EPERM) for name in denied]
        parts += [_only_values(_CALLS[name], 0, (0,), errno.EPERM) for name in _OTHERS_BY_PID]
        if confinement.shares_uid:
            parts += [_deny(_CALLS[name], errno.EPERM) for name in _METADATA]
        if confinement.shares_uid and not confinement.scopes_signals:
            parts += [_deny(_CALLS[name], errno.EPERM) for name in _SIGNALS]
    return _assemble([_prologue(), *parts, [(_RETURN, 0, 0, _ALLOW)]])


_Code = Sequence[tuple[int, int, int, int]]


def _assemble(parts: Iterable[_Code]) -> bytes:
    return b"".join(struct.pack("=HBBI", *one) for part in parts for one in part)


def _prologue() -> _Code:
    """End the process on a foreign architecture or an x32 number; leave the number loaded."""
    return [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQ, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JUMP_GE, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]


def _deny(number: int, error: int) -> _Code:
    return [(_JUMP_EQ, 0, 1, number), (_RETURN, 0, 0, _ERRNO | error)]


def _deny_bits(number: int, argument: int, bits: int, error: int) -> _Code:
    """Refuse where the low word of an argument has any of `bits`."""
    body: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 16 + 8 * argument),
        (_JUMP_SET, 0, 1, bits),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return [(_JUMP_EQ, 0, len(body), number), *body]


def _deny_values(number: int, argument: int, values: Sequence[int], error: int) -> _Code:
    """Refuse where the low word of an argument is one of `values`."""
    return _by_value(number, argument, values, hit=_ERRNO | error, miss=_ALLOW)


def _only_values(number: int, argument: int, values: Sequence[int], error: int) -> _Code:
    """Allow only where the low word of an argument is one of `values`."""
    return _by_value(number, argument, values, hit=_ALLOW, miss=_ERRNO | error)


def _by_value(number: int, argument: int, values: Sequence[int], *, hit: int, miss: int) -> _Code:
    body: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 16 + 8 * argument)]
    body += [step for value in values for step in ((_JUMP_EQ, 0, 1, value), (_RETURN, 0, 0, hit))]
    body += [(_RETURN, 0, 0, miss)]
    return [(_JUMP_EQ, 0, len(body), number), *body]
