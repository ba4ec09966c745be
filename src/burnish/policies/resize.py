"""Dynamic resolution: how an image becomes a grid of tokens, and the way back for coordinates.

A model sees an image as `columns` x `rows` tokens of `patch_px` x `patch_px` model pixels each.  An image that fits the
budget keeps its scale (its sides are stretched to whole tokens); a larger one is scaled down until it fits.  The two
axes are scaled on their own, so that nothing is cropped or padded and every mapping has an exact inverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from burnish.core.errors import ConfigError

THOUSANDTHS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizePlan:
    """The grid of one image.  Coordinates are continuous: pixel (0, 0) covers [0, 1) x [0, 1).

    >>> plan = plan_resize(64, 32, patch_px=8, max_tokens=16)
    >>> (plan.columns, plan.rows, plan.model_width_px), plan.to_model(63.0, 31.0)
    ((5, 2, 40), (39.375, 15.5))
    """

    width_px: int
    height_px: int
    columns: int
    rows: int
    patch_px: int

    @property
    def tokens(self) -> int:
        """How many tokens the image takes."""
        return self.columns * self.rows

    @property
    def model_width_px(self) -> int:
        """Width of what the encoder is given."""
        return self.columns * self.patch_px

    @property
    def model_height_px(self) -> int:
        """Height of what the encoder is given."""
        return self.rows * self.patch_px

    def to_model(self, x: float, y: float) -> tuple[float, float]:
        """Image pixels to model pixels."""
        return x * self.model_width_px / self.width_px, y * self.model_height_px / self.height_px

    def to_image(self, x: float, y: float) -> tuple[float, float]:
        """Model pixels to image pixels; inverse of `to_model`."""
        return x * self.width_px / self.model_width_px, y * self.height_px / self.model_height_px

    def token_at(self, x: float, y: float) -> int:
        """Index, row by row, of the token that shows a point of the image.  Raises ValueError outside of it."""
        if not (0.0 <= x < self.width_px and 0.0 <= y < self.height_px):
            raise ValueError(f"point ({x:g}, {y:g}) lies outside an image of {self.width_px} x {self.height_px} pixels")
        # a product that rounds up to the far edge still belongs to the last token
        column = min(self.columns - 1, int(x * self.columns / self.width_px))
        row = min(self.rows - 1, int(y * self.rows / self.height_px))
        return row * self.columns + column

    def token_box(self, token: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom, in image pixels, of what a token shows."""
        if not 0 <= token < self.tokens:
            raise ValueError(f"token {token} is none of the {self.tokens} of this image")
        row, column = divmod(token, self.columns)
        across, down = self.width_px / self.columns, self.height_px / self.rows
        return column * across, row * down, (column + 1) * across, (row + 1) * down

    def to_thousandths(self, x: float, y: float) -> tuple[float, float]:
        """Image pixels to the 0-1000 convention of some families."""
        return x * THOUSANDTHS / self.width_px, y * THOUSANDTHS / self.height_px

    def from_thousandths(self, x: float, y: float) -> tuple[float, float]:
        """Inverse of `to_thousandths`."""
        return x * self.width_px / THOUSANDTHS, y * self.height_px / THOUSANDTHS


def plan_resize(width_px: int, height_px: int, *, patch_px: int, max_tokens: int) -> ResizePlan:
    """The grid of an image, of at most `max_tokens` tokens.

    Raises ConfigError for sizes below 1.

    >>> plan_resize(32, 32, patch_px=8, max_tokens=16).tokens
    16
    """
    if min(width_px, height_px, patch_px, max_tokens) < 1:
        raise ConfigError(
            f"image, patch and budget are at least 1, got {width_px} x {height_px} pixels, patches of {patch_px}, "
            f"{max_tokens} tokens"
        )
    columns, rows = math.ceil(width_px / patch_px), math.ceil(height_px / patch_px)
    if columns * rows > max_tokens:
        shrink = math.sqrt(max_tokens * patch_px * patch_px / (width_px * height_px))
        columns = min(max_tokens, max(1, int(width_px * shrink / patch_px)))
        rows = max(1, min(int(height_px * shrink / patch_px), max_tokens // columns))
        columns = min(columns, max_tokens // rows)
    return ResizePlan(width_px=width_px, height_px=height_px, columns=columns, rows=rows, patch_px=patch_px)
