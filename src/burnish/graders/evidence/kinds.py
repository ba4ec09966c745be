"""The kinds of evidence, and what parsing a response gives.

Places are pixels of the original image (x to the right, y down, pixel (0, 0) spans [0, 1) in both), times are seconds
from the start of the clip.  `source` is (first character, one past the last) in the response.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Source = tuple[int, int]


class Mode(StrEnum):
    """How a response is written: reasoning before the answer, or the answer alone."""

    THINK = "think"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A place.  `Point(x_px=12.0, y_px=20.0, label="red circle")`

    frame: index from 0 of the image or video frame that it lies in.
    """

    x_px: float
    y_px: float
    label: str = ""
    frame: int = 0
    source: Source = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle.  `Box(left_px=2.0, top_px=3.0, right_px=10.0, bottom_px=9.0, label="dog")`"""

    left_px: float
    top_px: float
    right_px: float
    bottom_px: float
    label: str = ""
    frame: int = 0
    source: Source = (0, 0)

    @property
    def area_px2(self) -> float:
        """Width times height."""
        return (self.right_px - self.left_px) * (self.bottom_px - self.top_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of time.  `Span(start_s=3.2, end_s=5.0, event="the door opens")`"""

    start_s: float
    end_s: float
    event: str = ""
    source: Source = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A thing named on purpose.  `Entity(text="order 12")`"""

    text: str
    source: Source = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement.  `Claim(text="there are 3 pears", about="pear", count=3)`

    count: the number that it says there are, None where it states none.
    """

    text: str
    about: str = ""
    count: int | None = None
    source: Source = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A step of a plan.  `Action(verb="put", arguments=("apple", "table"))`"""

    verb: str
    arguments: tuple[str, ...] = ()
    source: Source = (0, 0)


Evidence = Point | Box | Span | Entity | Claim | Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """Something that was meant as a reference and is none.  `Malformed(reason="outside", text="dog (900, 5)")`

    reason: "outside" the image or clip, "not_a_number", "arity" (a wrong number of coordinates), "empty" (a box or span
    without extent), "syntax".
    """

    reason: str
    text: str
    source: Source = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A response, taken apart.

    `Parsed(mode=Mode.DIRECT, reasoning="", answer="3", evidence=(), malformed=(), problems=())`

    answer: None where the response commits to none or to several.  problems: codes of what is wrong with the form:
    "no_answer", "several_answers", "text_after_answer", "think_unclosed", "think_repeated", "too_long".
    conclusion: what the reasoning itself ends in, "" where it says nothing of the kind.
    """

    mode: Mode
    reasoning: str
    answer: str | None
    evidence: tuple[Evidence, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    problems: tuple[str, ...] = ()
    conclusion: str = ""

    @property
    def format_ok(self) -> bool:
        """One answer, whole tags, and every reference readable."""
        return not self.problems and not self.malformed

    @property
    def points(self) -> tuple[Point, ...]:
        """The points, in order of appearance."""
        return tuple(item for item in self.evidence if isinstance(item, Point))

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The boxes, in order of appearance."""
        return tuple(item for item in self.evidence if isinstance(item, Box))

    @property
    def spans(self) -> tuple[Span, ...]:
        """The spans, in order of appearance."""
        return tuple(item for item in self.evidence if isinstance(item, Span))

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims, in order of appearance."""
        return tuple(item for item in self.evidence if isinstance(item, Claim))

    @property
    def actions(self) -> tuple[Action, ...]:
        """The actions, in order of appearance."""
        return tuple(item for item in self.evidence if isinstance(item, Action))
