"""System calls that Python has no function for: Landlock, seccomp, prctl, ambient capabilities.

Everything here acts on the calling process, and is meant for a child between fork and exec.  Sources:
linux/landlock.h, linux/seccomp.h, linux/prctl.h, linux/capability.h; the numbers are the same on every architecture
but those of `landlock_*` and `seccomp`, which `bpf.supported` stands in front of.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

from burnish.core.sandbox import SandboxError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 1, 4, 8
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_SYS_SECCOMP, _SYS_CAPSET = 317, 126
_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files an ABI knows, lowest bits first: REFER came with 2, TRUNCATE with 3, IOCTL_DEV with 5."""
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
SCOPES_SIGNALS_ABI = 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def landlock_abi() -> int:
    """Version of Landlock in the running kernel, 0 where there is none."""
    version: int = _libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, version)


def restrict_paths(readable: Sequence[str], writable: Sequence[str], devices: Sequence[str], abi: int) -> None:
    """Confine this process and all that it starts to these trees; no TCP, no signals and abstract sockets outside.

    readable: read and run.  writable: everything.  devices: single files to read and write.  Missing paths are left
    out.  Needs no_new_privs.
    """
    rights = (1 << _RIGHTS_BY_ABI.get(abi, 16)) - 1
    attributes = struct.pack("=Q", rights)
    if abi >= 4:
        attributes += struct.pack("=Q", _BIND_TCP | _CONNECT_TCP)
    if abi >= SCOPES_SIGNALS_ABI:
        attributes += struct.pack("=Q", _SCOPE_ABSTRACT_SOCKET | _SCOPE_SIGNAL)
    ruleset = _checked(
        "landlock_create_ruleset",
        _libc.syscall(_SYS_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)),
    )
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(ruleset, path, rights)
    for path in devices:
        _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
    _checked("landlock_restrict_self", _libc.syscall(_SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= ~_READ_DIR
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, fd))
    _checked("landlock_add_rule", _libc.syscall(_SYS_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, 0))
    os.close(fd)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def load_filter(program: bytes) -> None:
    """Put a filter of `bpf` on this process for good.  Needs no_new_privs."""
    buffer = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    _checked("seccomp", _libc.syscall(_SYS_SECCOMP, ctypes.c_uint(1), ctypes.c_uint(0), ctypes.byref(header)))


def no_new_privileges() -> None:
    """Set-uid programs lend nothing from here on."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """Be killed when the thread that forked this process ends.  A change of uid clears it: call it afterwards."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def adopt_orphans() -> None:
    """Be the parent of every descendant whose own parent has ended, so that none is lost."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become(uid: int, *, read_everything: bool) -> None:
    """Change from root to `uid` for good, with no groups and no capabilities.

    read_everything: keep CAP_DAC_READ_SEARCH, for interpreters that lie in a folder of root's alone.  Only where
    Landlock says which files may be read at all, or nothing does in any case.
    """
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    if read_everything:
        _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresuid(uid, uid, uid)
    if read_everything:
        bit = 1 << _CAP_DAC_READ_SEARCH
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        _checked("capset", _libc.syscall(_SYS_CAPSET, header, struct.pack("=6I", bit, bit, bit, 0, 0, 0)))
        _prctl(_PR_CAP_AMBIENT, 2, _CAP_DAC_READ_SEARCH)


def _prctl(option: int, value: int, more: int = 0) -> None:
    words = [ctypes.c_ulong(word) for word in (value, more, 0, 0)]
    _checked(f"prctl {option}", _libc.prctl(ctypes.c_int(option), *words))


def _checked(what: str, value: int) -> int:
    if value < 0:
        error = ctypes.get_errno()
        raise SandboxError(f"{what} failed: {os.strerror(error)}")
    return value
