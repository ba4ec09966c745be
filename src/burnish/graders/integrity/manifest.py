"""Files by SHA-256 before and after: what was touched that nobody may touch, and what may leave the agent's world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import normpath

from burnish.core.hashing import bytes_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestVerdict:
    """touched: protected files that were changed, added or removed.  dropped: other changes outside of what may leave.

    `ManifestVerdict(touched=("tests/test_a.py",), dropped=("notes.txt",), kept=("a.py",))`
    """

    touched: tuple[str, ...]
    dropped: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing protected was touched."""
        return not self.touched


def manifest_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Path -> SHA-256.

    >>> manifest_of({"a": b""})["a"][:8]
    'e3b0c442'
    """
    return {path: bytes_hash(data) for path, data in sorted(files.items())}


def compare(
    before: Mapping[str, str], after: Mapping[str, str], *, protected: Sequence[str], allowed: Sequence[str]
) -> ManifestVerdict:
    """What changed between two manifests; patterns as in `fnmatch`, and what is protected is never allowed.

    >>> compare({"t/a": "1"}, {"t/a": "2", "x": "3"}, protected=["t/*"], allowed=["*.py"])
    ManifestVerdict(touched=('t/a',), dropped=('x',), kept=())
    """
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    touched = [path for path in changed if matches(path, protected)]
    rest = [path for path in changed if path not in touched]
    kept = [path for path in rest if matches(path, allowed) and _is_inside(path)]
    return ManifestVerdict(touched=tuple(touched), dropped=tuple(p for p in rest if p not in kept), kept=tuple(kept))


def artefacts(files: Mapping[str, bytes], *, protected: Sequence[str], allowed: Sequence[str]) -> dict[str, bytes]:
    """What is copied from the agent's world into the clean one: allowed, not protected, and inside of it."""
    return {
        path: data
        for path, data in files.items()
        if matches(path, allowed) and not matches(path, protected) and _is_inside(path)
    }


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether any pattern fits the whole path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _is_inside(path: str) -> bool:
    return not path.startswith("/") and normpath(path) == path and not path.startswith("..")
