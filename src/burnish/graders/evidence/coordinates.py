"""Conventions of coordinates, and the way back to pixels of the original image and to seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Convention(StrEnum):
    """What a pair of numbers means; a property of the policy, never guessed from the numbers.

    absolute: pixels of the image as the policy was shown it.  percent: 0 to 100 of width and height (Molmo).
    thousand: 0 to 1000 of width and height (Qwen3-VL).  unit: 0 to 1.
    """

    ABSOLUTE = "absolute"
    PERCENT = "percent"
    THOUSAND = "thousand"
    UNIT = "unit"


_SCALE = {Convention.PERCENT: 100.0, Convention.THOUSAND: 1000.0, Convention.UNIT: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The size of a medium, as it is and as the policy was shown it.

    `Frame(width_px=640, height_px=480, shown_width_px=320, shown_height_px=240)`

    shown_*: 0 for the same.  frames: images or video frames.  fps: frames per second of a clip.  first_frame: the
    number that the policy calls the first frame by.
    """

    width_px: float
    height_px: float
    shown_width_px: float = 0.0
    shown_height_px: float = 0.0
    frames: int = 1
    fps: float = 1.0
    first_frame: int = 0

    def __post_init__(self) -> None:
        if not (self.width_px > 0 and self.height_px > 0 and self.frames >= 1 and self.fps > 0):
            raise ValueError(
                f"a frame needs a positive size, at least one frame and fps above 0, got {self.width_px} x "
                f"{self.height_px}, {self.frames} frames, {self.fps} fps"
            )

    @property
    def duration_s(self) -> float:
        """Seconds of the clip."""
        return self.frames / self.fps

    def to_pixels(self, x: float, y: float, convention: Convention) -> tuple[float, float]:
        """Original pixels of a pair of numbers; the inverse of `from_pixels`.

        >>> Frame(width_px=640, height_px=480).to_pixels(50, 25, Convention.PERCENT)
        (320.0, 120.0)
        """
        across, down = self._span(convention)
        return x * self.width_px / across, y * self.height_px / down

    def from_pixels(self, x_px: float, y_px: float, convention: Convention) -> tuple[float, float]:
        """The pair of numbers that a policy writes for a place.

        >>> Frame(width_px=640, height_px=480).from_pixels(320, 120, Convention.THOUSAND)
        (500.0, 250.0)
        """
        across, down = self._span(convention)
        return x_px * across / self.width_px, y_px * down / self.height_px

    def _span(self, convention: Convention) -> tuple[float, float]:
        if convention is Convention.ABSOLUTE:
            return self.shown_width_px or self.width_px, self.shown_height_px or self.height_px
        return _SCALE[convention], _SCALE[convention]

    def holds(self, x_px: float, y_px: float) -> bool:
        """Whether a place lies in the image, edges included; False for NaN."""
        return 0.0 <= x_px <= self.width_px and 0.0 <= y_px <= self.height_px

    def frame_index(self, number: float) -> int | None:
        """Index from 0 of a frame by the policy's number; None where there is no such frame."""
        if not math.isfinite(number) or number != int(number):
            return None
        index = int(number) - self.first_frame
        return index if 0 <= index < self.frames else None

    def seconds_of_frames(self, first: int, last: int) -> tuple[float, float]:
        """Start of frame `first` to the end of frame `last`, indices from 0.

        >>> Frame(width_px=8, height_px=8, frames=10, fps=2.0).seconds_of_frames(2, 3)
        (1.0, 2.0)
        """
        return first / self.fps, (last + 1) / self.fps
