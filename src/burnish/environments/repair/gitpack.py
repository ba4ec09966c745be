"""A git repository as files, written without git: one pack, its index, one branch, and the staging area.

The same history gives the same bytes on every machine but for zlib's, and the same commit ids everywhere.  Formats:
gitformat-pack(5), gitformat-index(5).
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_TYPES = {"commit": 1, "tree": 2, "blob": 3}
_CONFIG = "[core]\n\trepositoryformatversion = 0\n\tfilemode = false\n\tbare = false\n\tlogallrefupdates = false\n"
_BRANCH = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One commit: the whole tree after it.  `Commit(message="First", files={"a.py": b""}, author="Ann <a@b>", at_s=0)`

    at_s: seconds since 1970, UTC.
    """

    message: str
    files: Mapping[str, bytes]
    author: str
    at_s: int


@dataclass(slots=True)
class _Objects:
    """Objects by id, each once."""

    found: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)

    def add(self, kind: str, content: bytes) -> bytes:
        digest = hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).digest()
        self.found.setdefault(digest, (kind, content))
        return digest

    def add_tree(self, files: Mapping[str, bytes]) -> bytes:
        """The tree of relative paths, folders below it included."""
        folders: dict[str, dict[str, bytes]] = {}
        rows: list[tuple[bytes, bytes, bytes]] = []
        for path, content in files.items():
            head, _, rest = path.partition("/")
            if rest:
                folders.setdefault(head, {})[rest] = content
            else:
                rows.append((head.encode(), b"100644", self.add("blob", content)))
        # git sorts a folder as if its name ended in a slash.
        rows += [(name.encode() + b"/", b"40000", self.add_tree(below)) for name, below in folders.items()]
        parts = [mode + b" " + name.rstrip(b"/") + b"\0" + digest for name, mode, digest in sorted(rows)]
        return self.add("tree", b"".join(parts))


def git_folder(commits: Sequence[Commit]) -> dict[str, bytes]:
    """The files of `.git` after these commits, oldest first, with the last one checked out.

    >>> sorted(git_folder([Commit(message="First", files={"a": b"x"}, author="Ann <a@b>", at_s=0)]))[:2]
    ['.git/HEAD', '.git/config']
    """
    objects, parent = _Objects(), b""
    for commit in commits:
        lines = [b"tree " + objects.add_tree(commit.files).hex().encode()]
        lines += [b"parent " + parent.hex().encode()] if parent else []
        stamp = f"{commit.author} {commit.at_s} +0000".encode()
        lines += [b"author " + stamp, b"committer " + stamp, b"", commit.message.encode() + b"\n"]
        parent = objects.add("commit", b"\n".join(lines))
    pack, index, name = _packed(objects)
    return {
        ".git/HEAD": f"ref: refs/heads/{_BRANCH}\n".encode(),
        ".git/config": _CONFIG.encode(),
        f".git/refs/heads/{_BRANCH}": parent.hex().encode() + b"\n",
        f".git/objects/pack/pack-{name}.pack": pack,
        f".git/objects/pack/pack-{name}.idx": index,
        ".git/index": _staged(commits[-1].files, objects),
    }


def _packed(objects: _Objects) -> tuple[bytes, bytes, str]:
    """A pack, its index (version 2), and the name of both."""
    pack, places = bytearray(b"PACK" + struct.pack(">II", 2, len(objects.found))), {}
    for digest in sorted(objects.found):
        kind, content = objects.found[digest]
        data = _header(_TYPES[kind], len(content)) + zlib.compress(content, 6)
        places[digest] = (len(pack), zlib.crc32(data))
        pack += data
    trailer = hashlib.sha1(pack).digest()
    pack += trailer
    counts = [sum(digest[0] <= first for digest in places) for first in range(256)]
    index = b"\xfftOc" + struct.pack(">I256I", 2, *counts) + b"".join(places)
    index += b"".join(struct.pack(">I", crc) for _, crc in places.values())
    index += b"".join(struct.pack(">I", offset) for offset, _ in places.values()) + trailer
    index += hashlib.sha1(index).digest()
    name = hashlib.sha1(b"".join(places)).hexdigest()
    return bytes(pack), index, name


def _header(kind: int, size: int) -> bytes:
    first, size = (kind << 4) | (size & 15), size >> 4
    header = bytearray()
    while size:
        header.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    header.append(first)
    return bytes(header)


def _staged(files: Mapping[str, bytes], objects: _Objects) -> bytes:
    """The staging area (version 2): `git status` finds nothing changed.  Times are 0, so git looks at contents."""
    index = bytearray(b"DIRC" + struct.pack(">II", 2, len(files)))
    for path in sorted(files, key=str.encode):
        name = path.encode()
        stat = struct.pack(">10I", 0, 0, 0, 0, 0, 0, 0o100644, 0, 0, len(files[path]))
        entry = stat + objects.add("blob", files[path]) + struct.pack(">H", min(len(name), 0xFFF)) + name
        index += entry + b"\0" * (8 - len(entry) % 8)
    return bytes(index) + hashlib.sha1(index).digest()
