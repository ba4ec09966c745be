"""The files of one episode, as the agent sees and changes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from burnish.core.errors import ToolError
from burnish.core.hashing import bytes_hash

MAX_FILE_CHARS = 200_000
MAX_FILES = 500
MAX_HITS = 60
MAX_LINES = 400
_MAX_PATH_CHARS = 200
_MAX_DEPTH = 16
_MAX_BYTES = 4 * 2**20
_PATH = re.compile(r"[\w./ +@,=~-]+", re.ASCII)
"""Names that every sandbox can hold: a path that none can would end the episode without a verdict."""


class Workspace:
    """Relative path -> content, with where it started from.  `.git` and compiled files are there and not shown."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.start = dict(files)
        self.files = dict(files)

    def shown(self) -> list[str]:
        """Paths that tools list, in order."""
        return sorted(path for path in self.files if is_shown(path))

    def take(self, files: Mapping[str, bytes]) -> None:
        """What a command left."""
        self.files = {path: data for path, data in files.items() if not path.endswith(".pyc")}

    def listing(self, folder: str) -> str:
        """Paths below a folder, one a line."""
        prefix = "" if folder.strip() in ("", ".", "./", "/") else checked_path(folder) + "/"
        found = [path for path in self.shown() if path.startswith(prefix)]
        if not found:
            raise ToolError(f"there are no files in {folder!r}")
        return "\n".join(found)

    def text(self, path: str) -> str:
        """A file as text; raises ToolError where it is none."""
        path = checked_path(path)
        if path not in self.files:
            raise ToolError(f"there is no file {path!r}; list_files shows what there is")
        try:
            return self.files[path].decode()
        except UnicodeDecodeError:
            raise ToolError(f"{path!r} is not UTF-8 text") from None

    def lines(self, path: str, start: int, end: int) -> str:
        """Lines `start` to `end`, both counted from 1 and included, with their numbers; an end of 0 is the last."""
        lines = self.text(path).splitlines()
        last = len(lines) if end <= 0 else min(end, len(lines))
        first = max(1, start)
        if lines and first > last:
            raise ToolError(f"{path!r} has {len(lines)} lines; there are none from {start} to {end}")
        shown = [f"{number}\t{lines[number - 1]}" for number in range(first, min(last, first + MAX_LINES - 1) + 1)]
        if last - first >= MAX_LINES:
            shown.append(f"... {last - first + 1 - MAX_LINES} more lines; ask for them by start and end")
        return "\n".join(shown) or "(empty)"

    def search(self, text: str, folder: str) -> str:
        """`path:line: text` of every line that holds a text, capitals or not."""
        if not text.strip():
            raise ToolError("give a text to look for")
        wanted, hits = text.lower(), []
        for path in self.listing(folder).splitlines():
            content = self.files[path].decode("utf-8", "replace")
            hits += [
                f"{path}:{number}: {line.strip()[:200]}"
                for number, line in enumerate(content.splitlines(), start=1)
                if wanted in line.lower()
            ]
        if len(hits) > MAX_HITS:
            hits[MAX_HITS:] = [f"... {len(hits) - MAX_HITS} more"]
        return "\n".join(hits) or "nothing found"

    def edit(self, path: str, old: str, new: str) -> str:
        """Replace a text that occurs exactly once."""
        text = self.text(path)
        count = text.count(old) if old else 0
        if count != 1:
            hint = "give a text that is there" if not old or not count else "add lines around it until it is unique"
            raise ToolError(f"the old text occurs {count} times in {path!r}; {hint}")
        self.write(path, text.replace(old, new))
        return f"edited {checked_path(path)}"

    def write(self, path: str, content: str) -> str:
        """Make a file, or replace all of one."""
        path = checked_path(path)
        if path.split("/")[0] == ".git":
            raise ToolError("git's own files are changed by git alone")
        if len(content) > MAX_FILE_CHARS:
            raise ToolError(f"a file has at most {MAX_FILE_CHARS} characters, got {len(content)}")
        if path not in self.files and len(self.files) >= MAX_FILES:
            raise ToolError(f"there are {MAX_FILES} files already")
        parents = {str(parent) for parent in PurePosixPath(path).parents}
        clash = next((known for known in self.files if known in parents or known.startswith(path + "/")), "")
        if clash:
            raise ToolError(f"{path!r} cannot be written: {clash!r} is there")
        if sum(map(len, self.files.values())) + 4 * len(content) > _MAX_BYTES:
            raise ToolError(f"the files of the repository have at most {_MAX_BYTES} bytes together")
        self.files[path] = content.encode("utf-8", "replace")
        return f"wrote {path}"

    def changed(self) -> dict[str, str]:
        """Text of each file that is new or not as it was; what is not text is left out."""
        found: dict[str, str] = {}
        for path, data in sorted(self.files.items()):
            if is_shown(path) and self.start.get(path) != data and len(data) <= 4 * MAX_FILE_CHARS:
                try:
                    found[path] = data.decode()
                except UnicodeDecodeError:
                    continue
        return found

    def removed(self) -> list[str]:
        """Files that are gone."""
        return sorted(path for path in self.start if is_shown(path) and path not in self.files)

    def tidy(self, text: str) -> str:
        """Output without what differs from run to run: seconds of test runs, where the folder lies."""
        text = re.sub(r"\bin \d+\.\d+s\b", "in 0.000s", text)
        known = "|".join(re.escape(path) for path in self.shown())
        return re.sub(rf'(?<=["\s(])/[\w./-]*?/(?=(?:{known})\b)', "", text) if known else text

    def report(self) -> dict[str, Any]:
        """What integrity checks read: SHA-256 of files `before` and `after`, old and new `texts` of what changed."""
        return {
            "before": _hashes(self.start),
            "after": _hashes(self.files),
            "texts": {
                path: [self.start.get(path, b"").decode("utf-8", "replace"), text]
                for path, text in self.changed().items()
            },
        }


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: bytes_hash(data) for path, data in sorted(files.items()) if is_shown(path)}


def is_shown(path: str) -> bool:
    """Whether a file is the repository's own, neither git's nor compiled."""
    return not path.startswith(".git/") and not path.endswith(".pyc") and "__pycache__/" not in path


def checked_path(path: str) -> str:
    """A relative path in its plain form; raises ToolError for one that leaves the repository.

    >>> checked_path("./src//a.py")
    'src/a.py'
    """
    parts = [part for part in PurePosixPath(path.strip()).parts if part != "."]
    leaves = not parts or parts[0] == "/" or ".." in parts
    if leaves or len(path) > _MAX_PATH_CHARS or len(parts) > _MAX_DEPTH or not _PATH.fullmatch("/".join(parts)):
        raise ToolError(
            f"{path[:80]!r} is no path inside of the repository; give a relative one, plain letters, no '..'"
        )
    return "/".join(parts)
