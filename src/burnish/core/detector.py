"""The protocols between grounded verification and models (or classical methods) that find things in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from burnish.core.errors import BurnishError


class DetectorError(BurnishError):
    """A detector could not look: missing weights, out of memory, an image that it cannot take.  Never a score of 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """An image, decoded.  `Pixels(width_px=2, height_px=1, rgb=bytes(6))`

    rgb: 8-bit red, green, blue, rows from the top; width * height * 3 bytes.
    """

    width_px: int
    height_px: int
    rgb: bytes

    def __post_init__(self) -> None:
        if len(self.rgb) != self.width_px * self.height_px * 3:
            raise ValueError(f"{len(self.rgb)} bytes are no {self.width_px} x {self.height_px} RGB pixels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """A named thing found at a place.

    `Detection(label="face", left_px=175.0, top_px=70.0, right_px=268.0, bottom_px=163.0, confidence=0.9)`

    confidence in [0, 1].  mask: one byte for each pixel of the box rounded outwards, rows from the top, not 0 where the
    thing is; empty where only the box is known.
    """

    label: str
    left_px: float
    top_px: float
    right_px: float
    bottom_px: float
    confidence: float = 1.0
    mask: bytes = b""


class Detector(Protocol):
    """Finds named things in an image.

    true_positive_rate, false_positive_rate: measured on points that were labelled by somebody else, None where nobody
    has.  They fix the reliability of what rests on it, a constant for a task.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def true_positive_rate(self) -> float | None: ...
    @property
    def false_positive_rate(self) -> float | None: ...

    def knows(self, label: str) -> bool:
        """Whether it can look for this at all."""
        ...

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """What it finds.  Raises DetectorError where it cannot look."""
        ...


class Segmenter(Protocol):
    """Refines boxes to masks."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...

    def segment(self, image: Pixels, boxes: Sequence[Detection]) -> Sequence[Detection]:
        """The same detections, each with its mask.  Raises DetectorError where it cannot look."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A detection in one of several images.  `Located(detection=Detection(...), frame=1)`: in the second one."""

    detection: Detection
    frame: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a teacher reads from images about a question: what an answer should rest on, and the answer.

    `Reading(things=(Located(...),), answer="red")`

    things: what should be cited; others: what else is there.  event, frames: the event that should be cited instead,
    and the indices (from 0) of its first and last image; empty and None for none.  counts: the answer is the number of
    things; names: it names one of them.  answer: None where the teacher only says where things are.
    """

    things: tuple[Located, ...] = ()
    others: tuple[Located, ...] = ()
    event: str = ""
    frames: tuple[int, int] | None = None
    counts: bool = False
    names: bool = False
    answer: str | None = None


class QuestionTeacher(Protocol):
    """Says what the answer to a question about images rests on, from the images and the question alone."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...

    def read(self, images: Sequence[Pixels], question: str, labels: Sequence[str] = ()) -> Reading:
        """What it reads.  labels: names of the things to be cited, where the data say them.

        Raises DetectorError where it cannot say: never a reading that is a guess.
        """
        ...
