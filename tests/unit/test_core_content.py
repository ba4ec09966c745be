"""The content of messages in JSONL files: text, images by hash, by path and as data URLs."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from burnish.core.content import content_of, images_beside, read_content
from burnish.core.images import ImageError, ImageShelf, image_part, png_bytes
from burnish.core.message import ImagePart, TextPart

PNG = png_bytes(3, 2, bytes(range(18)))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    parts = (image_part(PNG, images_beside(path)), TextPart(text="What is it?"))
    shelf = ImageShelf()
    assert read_content(content_of(parts), path, shelf) == parts
    assert shelf.get(parts[0].sha256) == PNG
    assert content_of((TextPart(text="a"), TextPart(text="b"))) == "ab"


@pytest.mark.parametrize("key", ["image_url", "image"])
def test_a_path_and_a_data_url_name_the_same_image(tmp_path: Path, key: str) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    for named in ("x.png", url, {"url": "x.png"}):
        (part,) = read_content([{"type": key, key: named}], tmp_path / "chats.jsonl", ImageShelf())
        assert isinstance(part, ImagePart)
        assert (part.width_px, part.height_px) == (3, 2)


def test_texts_that_follow_each_other_are_one() -> None:
    items = [{"type": "text", "text": "2 + "}, {"type": "text", "text": ""}, {"type": "text", "text": "2?"}]
    assert read_content(items, Path("x")) == (TextPart(text="2 + 2?"),)
    assert read_content(None, Path("x")) == read_content("", Path("x")) == ()


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (3, ValueError, "must be text"),
        (["hi"], ValueError, "must be text"),
        ([{"type": "sound"}], ValueError, "'sound'"),
        ([{"type": "image"}], ValueError, "an image is"),
        ([{"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}], ValueError, "network"),
        ([{"type": "image_url", "image_url": "missing.png"}], ValueError, "missing.png"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,?"}], ValueError, "base64"),
        ([{"type": "image_url", "image_url": "data:text/plain,hello"}], ImageError, "no PNG"),
        ([{"type": "image", "sha256": "0" * 64}], ImageError, "is not on the shelf"),
    ],
)
def test_what_is_no_content_is_said(tmp_path: Path, content: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_content(content, tmp_path / "chats.jsonl", ImageShelf())


def test_an_image_with_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    sha256 = images_beside(path).put(PNG)
    (tmp_path / "images" / sha256[:2] / sha256).write_bytes(png_bytes(1, 1, b"abc"))
    with pytest.raises(ImageError, match="holds other bytes"):
        read_content([{"type": "image", "sha256": sha256}], path, ImageShelf())
