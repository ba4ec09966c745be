"""The work folder seen from outside: files put in, measured, and read back without following anything.

Everything goes through a descriptor of the folder, one path component at a time, each opened without following links:
what a command left behind may be a link to a secret, a pipe that blocks whoever opens it, or a tree without end.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from burnish.core.sandbox import SandboxError

_MAX_DEPTH = 32
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def checked_path(name: str) -> tuple[str, ...]:
    """The components of a relative path; raises SandboxError for one that could leave the folder.

    >>> checked_path("src/a.py")
    ('src', 'a.py')
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or len(parts) > _MAX_DEPTH:
        raise SandboxError(f"{name!r} cannot be put into a sandbox; give a relative path without '..'")
    return parts


def put_files(root_fd: int, files: Mapping[str, bytes]) -> None:
    """Write files below a folder; one that is there is replaced, whatever it is, and never written through."""
    for name, content in files.items():
        *folders, last = checked_path(name)
        fd = _made_folder(root_fd, folders)
        try:
            _put(fd, last, content)
        except OSError as error:
            raise SandboxError(f"{name!r} cannot be written into the work folder: {error.strerror}") from error
        finally:
            os.close(fd)


def _put(folder_fd: int, name: str, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    fd = os.open(name, _NEW_FILE, 0o755 if content.startswith(b"#!") else 0o644, dir_fd=folder_fd)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


def _made_folder(root_fd: int, folders: Sequence[str]) -> int:
    fd = os.dup(root_fd)
    for name in folders:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=fd)
        try:
            inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
        except OSError as error:
            raise SandboxError(f"{name!r} in the work folder is no folder: {error.strerror}") from error
        finally:
            os.close(fd)
        fd = inner
    return fd


def read_back(
    root_fd: int, patterns: Sequence[str], *, max_bytes: int, max_files: int
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Files that match, and those that matched but were left alone, with the reason.  Nothing may run there by now."""
    found: dict[str, bytes] = {}
    skipped: dict[str, str] = {}
    left = max_bytes
    for count, (path, folder_fd, name) in enumerate(_entries(root_fd, skipped)):
        if count >= max_files:
            skipped[path] = f"more than {max_files} files"
            break
        if not any(fnmatchcase(path, pattern) for pattern in patterns):
            continue
        content = _read(folder_fd, name, left)
        if isinstance(content, str):
            skipped[path] = content
        else:
            found[path] = content
            left -= len(content)
    return found, skipped


def _read(folder_fd: int, name: str, max_bytes: int) -> bytes | str:
    """A regular file's content, or why it is not read."""
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode)
        if kind != stat.S_IFREG:
            return _KINDS.get(kind, "not a regular file")
        fd = os.open(name, _OPEN_FILE, dir_fd=folder_fd)
    except OSError as error:
        return error.strerror or "cannot be opened"
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        if status.st_nlink != 1:
            return "hard link"
        if status.st_size > max_bytes:
            return "size"
        return file.read(max_bytes)


_KINDS = {
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _entries(root_fd: int, skipped: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """(relative path, descriptor of its folder, name) of everything that is no folder, in order of names."""
    pending = [""]
    while pending:
        folder = pending.pop()
        fd = _opened(root_fd, folder)
        if fd < 0:
            skipped[folder] = "folder cannot be opened"
            continue
        try:
            for name in sorted(os.listdir(fd)):
                path = f"{folder}/{name}" if folder else name
                if not _is_text(path):
                    skipped[ascii(path)] = "name is not UTF-8"
                elif not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    yield path, fd, name
                elif path.count("/") >= _MAX_DEPTH - 1:
                    skipped[path] = f"deeper than {_MAX_DEPTH} folders"
                else:
                    pending.append(path)
        finally:
            os.close(fd)


def _opened(root_fd: int, folder: str) -> int:
    fd = os.dup(root_fd)
    try:
        for name in PurePosixPath(folder).parts:
            inner = os.open(name, _OPEN_FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError:
        os.close(fd)
        return -1
    return fd


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def usage(path: str, *, max_entries: int) -> tuple[int, int]:
    """(bytes on disk, entries) below a path of this machine; stops counting one past `max_entries`.

    Only numbers come of it, so that a tree which changes under the walk can mislead it by no more than a count.
    """
    size, entries, pending = 0, 0, [path]
    while pending and entries <= max_entries:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > max_entries:
                        break
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except OSError:
            continue
    return size, entries


def folder_files(folder: Path, *, max_bytes: int = 64 * 2**20) -> dict[str, bytes]:
    """A folder of this machine as the `files` of a run; links are left out.

    `folder_files(Path("fixtures/repo"))` is `{"src/a.py": b"...", ...}`.
    """
    fd = os.open(folder, _OPEN_FOLDER)
    try:
        found, skipped = read_back(fd, ("*",), max_bytes=max_bytes, max_files=100_000)
    finally:
        os.close(fd)
    too_large = [name for name, reason in skipped.items() if reason == "size"]
    if too_large:
        raise SandboxError(f"{folder} holds more than {max_bytes} bytes, the first file beyond is {too_large[0]!r}")
    return found
