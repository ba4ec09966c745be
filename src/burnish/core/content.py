"""What a message of a JSONL file holds: text, or a list of texts and images, into parts and back.

    "How many pears?"
    [{"type": "image", "sha256": "9f2c..."}, {"type": "text", "text": "How many pears?"}]
    [{"type": "image_url", "image_url": {"url": "pears.png"}}, ...]     a path beside the file, or a data URL

The bytes of an image that is named by its hash lie beside the file, at `images/9f/9f2c...`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.core.images import SHELF, ImageShelf, ImageStore, image_part
from burnish.core.message import ImagePart, Part, TextPart

IMAGES = "images"
"""The folder of images beside a JSONL file."""

_DATA = "data:"


def images_beside(path: Path) -> ImageShelf:
    """The images of a JSONL file, by content hash."""
    return ImageShelf(path.absolute().parent / IMAGES)


def read_content(content: Any, path: Path, shelf: ImageStore = SHELF) -> tuple[Part, ...]:
    """The parts of a message's content in the file `path`; images go on `shelf`.

    Raises ValueError for what is no content, ImageError for an image that is not there or cannot be read.

    >>> read_content("hi", Path("chats.jsonl"))
    (TextPart(text='hi'),)
    """
    if content is None or content == "":
        return ()
    if isinstance(content, str):
        return (TextPart(text=content),)
    if not isinstance(content, list) or not all(isinstance(item, Mapping) for item in content):
        raise ValueError("message content must be text or a list of parts")
    parts: list[Part] = []
    for item in content:
        kind = item.get("type")
        if kind == "text":
            parts.append(TextPart(text=str(item.get("text", ""))))
        elif kind in ("image", "image_url"):
            parts.append(image_part(_bytes_of(item, path), shelf))
        else:
            raise ValueError(f"a part of message content is text, image or image_url, got {kind!r}")
    return tuple(_joined(parts))


def content_of(parts: Sequence[Part]) -> str | list[dict[str, Any]]:
    """The form that `read_content` reads: plain text where there is no image.

    >>> content_of((TextPart(text="hi"),))
    'hi'
    """
    if not any(isinstance(part, ImagePart) for part in parts):
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image", "sha256": part.sha256}
        for part in parts
    ]


def _bytes_of(item: Mapping[str, Any], path: Path) -> bytes:
    """The bytes of an image part: by hash, from a data URL, or from a file beside `path`."""
    if isinstance(item.get("sha256"), str):
        return images_beside(path).get(item["sha256"])
    inner = item.get("image_url", item.get("image"))
    url = inner.get("url") if isinstance(inner, Mapping) else inner
    if not isinstance(url, str) or not url:
        raise ValueError('an image is {"type": "image", "sha256": ...} or {"type": "image_url", "image_url": {"url"}}')
    if url.startswith(_DATA):
        head, _, body = url.partition(",")
        try:
            return base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
        except binascii.Error as error:
            raise ValueError(f"the data URL of an image is no base64: {error}") from error
    if "://" in url:
        raise ValueError(f"image {url[:60]!r} lies on a network; save it beside the file and name its path")
    try:
        return (path.absolute().parent / url).read_bytes()
    except OSError as error:
        raise ValueError(f"image {url[:120]!r} cannot be read: {error.strerror or error}") from error


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Texts that follow each other as one; empty ones left out."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            joined[-1] = TextPart(text=last.text + part.text)
        elif not (isinstance(part, TextPart) and not part.text):
            joined.append(part)
    return joined
