"""Images for teachers and overlays, decoded by Pillow, which is imported where the first one is."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any

from burnish.core.detector import DetectorError, Pixels
from burnish.core.images import ImageStore
from burnish.core.message import ImagePart


def pillow(name: str) -> Any:
    """A module of Pillow.  Raises DetectorError where it is not installed."""
    try:
        return importlib.import_module(f"PIL.{name}")
    except ImportError as error:
        raise DetectorError("looking at images needs Pillow: pip install 'burnish[vision]'") from error


def opened(part: ImagePart, shelf: ImageStore) -> Any:
    """An image of Pillow in RGB.  Raises DetectorError for bytes that are none, ImageError where there are none."""
    library, data = pillow("Image"), shelf.get(part.sha256)
    try:
        with library.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, library.DecompressionBombError) as error:
        raise DetectorError(f"image {part.sha256[:12]} cannot be decoded: {error}") from error


def decoder(shelf: ImageStore) -> Callable[[ImagePart], Pixels]:
    """Pixels of the images on a shelf."""

    def decode(part: ImagePart) -> Pixels:
        image = opened(part, shelf)
        return Pixels(width_px=image.width, height_px=image.height, rgb=image.tobytes())

    return decode
