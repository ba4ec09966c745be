"""Stage 2: the references drawn on the images, numbered, for whoever writes the traces.

Small images are enlarged by a whole factor, so that a mark hides little of what it marks.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

from burnish.core.images import ImageStore, image_part
from burnish.core.message import ImagePart
from burnish.graders.curation.example import Example
from burnish.graders.curation.pixels import opened, pillow
from burnish.graders.grounding.regions import Region
from burnish.graders.grounding.spec import GroundingSpec

LEAST_SIDE_PX = 384
_COLOURS = ("#e6194b", "#0082c8", "#f58231", "#911eb4", "#008080", "#9a6324")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A numbered reference.  `Mark(number=1, label="red circle", frame=0, region=BoxRegion(...))`

    region: None for a whole image, as of a stretch of time.
    """

    number: int
    label: str
    frame: int
    region: Region | None = None


def marks_of(example: Example) -> list[Mark]:
    """What is drawn, numbered by image and from left to right; all images of a stretch of time have one number."""
    spec = GroundingSpec.of(example.task())
    things = [
        (item.frame, item.region, item.labels[0] if item.labels else "")
        for item in spec.objects
        if item.region is not None
    ]
    things.sort(key=lambda one: (one[0], *one[1].bounds[:2]))
    marks = [
        Mark(number=n, label=label, frame=frame, region=region) for n, (frame, region, label) in enumerate(things, 1)
    ]
    for number, span in enumerate(spec.spans, len(marks) + 1):
        first, last = (round(second * spec.frame.fps) for second in (span.start_s, span.end_s))
        marks += [Mark(number=number, label=span.event, frame=frame) for frame in range(first, last)]
    return marks


def overlaid(example: Example, shelf: ImageStore) -> Example:
    """The example with its overlays, one for each image.  Raises DetectorError where Pillow is missing."""
    marks = marks_of(example)
    overlays = tuple(
        _drawn(part, [mark for mark in marks if mark.frame == frame], shelf)
        for frame, part in enumerate(example.images)
    )
    return replace(example, overlays=overlays)


def _drawn(part: ImagePart, marks: list[Mark], shelf: ImageStore) -> ImagePart:
    image = opened(part, shelf)
    scale = max(1, -(-LEAST_SIDE_PX // max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), pillow("Image").Resampling.NEAREST)
    draw = pillow("ImageDraw").Draw(image)
    line_px = max(2, max(image.size) // 192)
    for mark in marks:
        colour = _COLOURS[(mark.number - 1) % len(_COLOURS)]
        bounds = (0, 0, part.width_px, part.height_px) if mark.region is None else mark.region.bounds
        # One line outside of the thing, so that its edge stays visible.
        left, top, right, bottom = (round(value * scale) for value in bounds)
        inside = 0 if mark.region is None else line_px
        draw.rectangle((left - inside, top - inside, right + inside, bottom + inside), outline=colour, width=line_px)
        _name(draw, f"{mark.number} {mark.label}", (left, top - inside), image.size, colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return image_part(buffer.getvalue(), shelf)


def _name(draw: Any, text: str, at: tuple[int, int], size: tuple[int, int], colour: str) -> None:
    """Number and name above a mark, below its upper edge where there is no room."""
    _, _, width, height = draw.textbbox((0, 0), text)
    x = max(0, min(at[0], size[0] - int(width) - 4))
    y = at[1] - int(height) - 4 if at[1] >= height + 4 else at[1] + 4
    draw.rectangle((x, y, x + width + 4, y + height + 4), fill=colour)
    draw.text((x + 2, y + 1), text, fill="white")
