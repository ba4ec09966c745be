"""Files that are whole or absent: write aside, fsync, rename, fsync the folder.  And the lock of the one writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from burnish.core.errors import StoreError

_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.05


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` so that after any crash `path` holds all of it or does not exist (or what it held before).

    Raises OSError (ENOSPC for a full disk); nothing is left behind then.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int:
    """Take the writer's lock and return its file descriptor; the kernel gives it back when the process ends.

    Raises StoreError where another process holds it.  Readers touch the lock for an instant to see whether a run is
    live, so it is tried for half a second.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    for attempt in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _LOCK_TRIES - 1:
                time.sleep(_LOCK_PAUSE_S)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor
    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    os.close(descriptor)
    raise StoreError(
        f"{path.parent} is being written by process {holder}; wait until it ends, or stop it, then try again"
    )


def is_locked(path: Path) -> bool:
    """Whether a process holds the writer's lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def full_disk_advice(error: BaseException) -> str:
    """What to do about an error of writing; names the full disk where it is one."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "disk is full" in str(error):
        return "the disk is full; free some space (`burnish runs prune` removes old runs) and resume the run"
    return "check the disk and its permissions, then resume the run"
