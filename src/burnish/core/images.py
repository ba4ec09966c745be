"""Images by content hash: what a message refers to, where the bytes lie, and where an image stands among tokens.

A message holds an `ImagePart` (hash, type, size); the bytes lie once in each process on a shelf and, in a run, once in
the run's artefacts, which every process of the run reads.  In a token stream an image is a fixed number of placeholder
ids; which image they stand for is said beside them, by `ImageSpan`.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from burnish.core.errors import BurnishError
from burnish.core.hashing import bytes_hash
from burnish.core.message import ImagePart

_HELD_BYTES = 256 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"


class ImageError(BurnishError):
    """An image that cannot be read or is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """Tokens `[start, end)` show the image `sha256`: those among them that are the placeholder id are its own.

    `ImageSpan(start=4, end=20, sha256="9f2c...")` is an image of at most 16 tokens behind 4 others.
    """

    start: int
    end: int
    sha256: str

    def moved(self, tokens: int) -> ImageSpan:
        """The same image in a stream with `tokens` more in front."""
        return ImageSpan(start=self.start + tokens, end=self.end + tokens, sha256=self.sha256)


def joined_spans(parts: Iterable[tuple[int, Sequence[ImageSpan]]]) -> tuple[ImageSpan, ...]:
    """Spans of streams that are put one after another, given their lengths and their own spans.

    >>> joined_spans([(3, ()), (2, (ImageSpan(start=0, end=2, sha256="a"),))])
    (ImageSpan(start=3, end=5, sha256='a'),)
    """

    def run() -> Iterator[ImageSpan]:
        before = 0
        for length, spans in parts:
            for span in spans:
                yield span.moved(before)
            before += length

    return tuple(run())


class ImageStore(Protocol):
    """Bytes by the SHA-256 of their content."""

    def put(self, data: bytes) -> str:
        """Keep the bytes of an image; their hash (64 hex digits)."""
        ...

    def get(self, sha256: str) -> bytes:
        """The bytes of an image.  Raises ImageError where it is not there."""
        ...


class ImageShelf:
    """An `ImageStore` in memory and, where a folder is given, in files that other processes read too.

    folder: the artefacts of a run; a file lies at `folder/9f/9f2c...`.  What is put, read or kept while there is a
    folder is written; what else is held belongs to another world of this process.  With a folder at most 256 MiB stay
    in memory.

    >>> shelf = ImageShelf()
    >>> shelf.get(shelf.put(b"png"))
    b'png'
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_bytes = 0
        self._written: set[str] = set()
        self._folder = folder

    @property
    def folder(self) -> Path | None:
        """Where the files lie; None for memory alone."""
        return self._folder

    def keep_in(self, folder: Path | None) -> None:
        """From now on images that are used lie in `folder` too."""
        if folder != self._folder:
            self._folder = folder
            # also what stands in an earlier folder: the next run of this process reads its own alone
            self._written = set()

    @contextmanager
    def kept_in(self, folder: Path) -> Iterator[None]:
        """`keep_in`, until the context ends."""
        before = self._folder
        self.keep_in(folder)
        try:
            yield
        finally:
            self.keep_in(before)

    def keep(self, images: Iterable[str]) -> None:
        """Write those of these images that are held, for other processes that are going to read them; where none is
        held, `images` is not even looked at."""
        if not self._held:
            return
        for sha256 in images:
            if sha256 in self._held:
                self._write(sha256, self._held[sha256])

    def put(self, data: bytes) -> str:
        sha256 = bytes_hash(data)
        self._write(sha256, data)
        self._hold(sha256, data)
        return sha256

    def get(self, sha256: str) -> bytes:
        held = self._held.get(sha256)
        if held is not None:
            self._write(sha256, held)
            return held
        where = "in this process" if self._folder is None else f"on the shelf or in {self._folder}"
        try:
            data = (self._folder / sha256[:2] / sha256).read_bytes() if self._folder is not None else None
        except OSError:
            data = None
        if data is None:
            raise ImageError(
                f"image {sha256[:12]} is not {where}; make image parts with `image_part`, which keeps the bytes"
            )
        if bytes_hash(data) != sha256:
            raise ImageError(f"the file of image {sha256[:12]} in {self._folder} holds other bytes; restore it")
        self._hold(sha256, data)
        return data

    def _write(self, sha256: str, data: bytes) -> None:
        if self._folder is not None and sha256 not in self._written:
            _write_once(self._folder / sha256[:2] / sha256, data)
            self._written.add(sha256)

    def _hold(self, sha256: str, data: bytes) -> None:
        """In memory too; what lies in files makes room for newer images."""
        if sha256 in self._held:
            return
        self._held[sha256] = data
        self._held_bytes += len(data)
        while self._folder is not None and self._held_bytes > _HELD_BYTES and len(self._held) > 1:
            oldest, gone = next(iter(self._held.items()))
            self._write(oldest, gone)
            del self._held[oldest]
            self._held_bytes -= len(gone)


SHELF = ImageShelf()
"""The shelf of this process.  Content never changes under its hash, so sharing it shares no state that could differ."""


def image_part(data: bytes, shelf: ImageStore = SHELF) -> ImagePart:
    """An image as a part of a prompt, reply or tool result; its bytes are kept on the shelf.

    data: an encoded PNG, JPEG or GIF.  Raises ImageError for anything else.

    >>> image_part(png_bytes(2, 1, bytes(6))).width_px
    2
    """
    media_type, width_px, height_px = image_header(data)
    return ImagePart(sha256=shelf.put(data), media_type=media_type, width_px=width_px, height_px=height_px)


def image_header(data: bytes) -> tuple[str, int, int]:
    """Media type, width and height in pixels.  Raises ImageError for what is no PNG, JPEG or GIF.

    >>> image_header(png_bytes(3, 2, bytes(18)))
    ('image/png', 3, 2)
    """
    if data[:8] == _PNG and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return "image/png", width, height
    if data[:6] in (b"GIF87a", b"GIF89a") and len(data) >= 10:
        width, height = struct.unpack("<HH", data[6:10])
        return "image/gif", width, height
    if data[:2] == b"\xff\xd8":
        size = _jpeg_size(data)
        if size is not None:
            return "image/jpeg", *size
    raise ImageError(f"{len(data)} bytes that begin with {data[:8]!r} are no PNG, JPEG or GIF image")


def png_bytes(width_px: int, height_px: int, rgb: bytes) -> bytes:
    """A PNG of 8-bit RGB pixels, rows from the top; the same pixels give the same bytes on every machine.

    Raises ImageError where `rgb` is not width * height * 3 bytes.

    >>> png_bytes(1, 1, b"abc")[:4]
    b'\\x89PNG'
    """
    if width_px < 1 or height_px < 1 or len(rgb) != width_px * height_px * 3:
        raise ImageError(f"{len(rgb)} bytes are no {width_px} x {height_px} RGB pixels (3 bytes each)")
    stride = width_px * 3
    rows = b"".join(b"\x00" + rgb[row * stride : (row + 1) * stride] for row in range(height_px))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return _PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def _write_once(path: Path, data: bytes) -> None:
    """Whole or not at all, whoever else writes the same bytes."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".image-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
