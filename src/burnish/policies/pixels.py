"""From the bytes of an image to what an encoder is given.

Pillow is imported where the first image is decoded: a run on text alone needs none.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.core.images import ImageError, ImageStore
from burnish.policies.resize import ResizePlan, plan_resize

_MOST_HELD = 20_000
_HELD_BYTES = 256 * 2**20


def decode_image(data: bytes, sha256: str) -> Any:
    """A PIL image in RGB.  Raises ImageError for bytes that are none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"image {sha256[:12]} cannot be decoded: {error}") from error


class PixelCache:
    """Images of a store, scaled by their plan: uint8 [3, H, W], kept while there is room (256 MiB)."""

    def __init__(self, store: ImageStore, *, patch_px: int, max_tokens: int) -> None:
        self._store = store
        self._patch_px, self._max_tokens = patch_px, max_tokens
        self._held: OrderedDict[str, tuple[ResizePlan, npt.NDArray[np.uint8]]] = OrderedDict()
        self._bytes = 0

    def plan(self, sha256: str) -> ResizePlan:
        """The grid of an image."""
        return self._read(sha256)[0]

    def pixels(self, sha256: str) -> npt.NDArray[np.uint8]:
        """What the encoder is given."""
        return self._read(sha256)[1]

    def _read(self, sha256: str) -> tuple[ResizePlan, npt.NDArray[np.uint8]]:
        found = self._held.get(sha256)
        if found is None:
            from PIL import Image

            image = decode_image(self._store.get(sha256), sha256)
            plan = plan_resize(*image.size, patch_px=self._patch_px, max_tokens=self._max_tokens)
            size = (plan.model_width_px, plan.model_height_px)
            if image.size != size:
                image = image.resize(size, Image.Resampling.BILINEAR)
            found = plan, np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
            self._held[sha256] = found
            self._bytes += found[1].nbytes
            while len(self._held) > _MOST_HELD or (self._bytes > _HELD_BYTES and len(self._held) > 1):
                self._bytes -= self._held.popitem(last=False)[1][1].nbytes
        return found
