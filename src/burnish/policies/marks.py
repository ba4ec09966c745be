"""How a renderer writes an image: the text of its placeholders, and where these stand among the ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, Protocol

from burnish.core.errors import ConfigError, RenderError
from burnish.core.images import ImageSpan
from burnish.core.message import ImagePart
from burnish.policies.resize import plan_resize

IMAGE_TOKEN = "<|image|>"


class ImageMarks(Protocol):
    """What one family of models wants to read where an image is shown; it depends on the image's size alone."""

    placeholder_id: int

    def text(self, part: ImagePart) -> str:
        """Control tokens and placeholders of an image."""
        ...

    def tokens(self, part: ImagePart) -> int:
        """How many placeholders are among them."""
        ...


class TinyMarks:
    """Of a `VisionPolicy`: one placeholder for each token of the image's grid, row by row, and nothing around them.

    Raises ConfigError where the tokenizer has no such token.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.placeholder_id = int(config.image_token_id)
        self._patch_px, self._max_tokens = int(config.patch_px), int(config.max_image_tokens)
        found = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        if found != self.placeholder_id:
            raise ConfigError(
                f"the tokenizer's {IMAGE_TOKEN} is id {found} and the model's placeholder {self.placeholder_id}; "
                "they do not belong together"
            )

    def text(self, part: ImagePart) -> str:
        return IMAGE_TOKEN * self.tokens(part)

    def tokens(self, part: ImagePart) -> int:
        plan = plan_resize(part.width_px, part.height_px, patch_px=self._patch_px, max_tokens=self._max_tokens)
        return plan.tokens


def find_spans(token_ids: array[int], images: Sequence[ImagePart], marks: ImageMarks) -> tuple[ImageSpan, ...]:
    """The spans of images in rendered ids, the images in their order.

    Raises RenderError where the ids hold more or fewer placeholders than the images take.
    """
    places = [place for place, token in enumerate(token_ids) if token == marks.placeholder_id]
    counts = [marks.tokens(part) for part in images]
    if sum(counts) != len(places):
        raise RenderError(
            f"{len(images)} images take {sum(counts)} placeholders and the rendered prompt holds {len(places)}; the "
            "chat template drops or repeats images"
        )
    spans, at = [], 0
    for part, count in zip(images, counts, strict=True):
        mine = places[at : at + count]
        spans.append(ImageSpan(start=mine[0], end=mine[-1] + 1, sha256=part.sha256))
        at += count
    return tuple(spans)
