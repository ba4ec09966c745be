"""A teacher that answers questions about drawn shapes by looking: which things matter, where they are, what follows.

It reads the question's words and what `ShapeDetector` finds; the kinds of questions are those of `scenes`.  What it
cannot read, cannot find or cannot tell apart is a DetectorError, never a guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from burnish.core.detector import DetectorError, Located, Pixels, Reading
from burnish.integrations.classical_shapes import HUES, SHAPES, Shape, ShapeDetector

LEAST_MOVE = 0.1
"""Share of the image's side that a thing has to have moved, so that it counts."""

_COLOUR = "|".join(HUES)
_SHAPE = "|".join(SHAPES)
_THING = rf"(?:{_COLOUR}) (?:{_SHAPE})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeTeacher:
    """A core `QuestionTeacher`.  `ShapeTeacher().read([pixels], "What colour is the circle?").answer`

    worst_misfit: a thing that fits no template better makes an image unreadable.
    """

    detector: ShapeDetector = field(default_factory=ShapeDetector)
    worst_misfit: float = 0.25
    name: str = "shapes"
    version: str = "1"

    def read(self, images: Sequence[Pixels], question: str, labels: Sequence[str] = ()) -> Reading:
        """What the answer rests on, and the answer."""
        frames = [self._seen(image, number) for number, image in enumerate(images, 1)]
        for pattern, answer in _QUESTIONS:
            found = re.search(pattern, question, re.IGNORECASE)
            if found is not None and frames:
                side_px = float(max(images[0].width_px, images[0].height_px))
                return answer(_View(frames=frames, side_px=side_px), [word.lower() for word in found.groups()])
        raise DetectorError(f"{self.name} cannot read the question {question[:80]!r}")

    def _seen(self, image: Pixels, number: int) -> list[Shape]:
        shapes = self.detector.shapes(image)
        for shape in shapes:
            if shape.misfit > self.worst_misfit:
                raise DetectorError(f"image {number}: the {shape.label} fits no template ({shape.misfit:.2f})")
        return shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """What is seen in each image."""

    frames: list[list[Shape]]
    side_px: float

    def one(self, label: str, frame: int = 0) -> Shape:
        """The thing of a name, which there has to be one of."""
        found = [shape for shape in self.frames[frame] if shape.label == label]
        if len(found) != 1:
            raise DetectorError(f"{len(found)} things look like a {label} in image {frame + 1}")
        return found[0]

    def reading(
        self, cited: Sequence[tuple[int, Shape]], answer: str, *, counts: bool = False, names: bool = False
    ) -> Reading:
        """The reading that cites these; everything else is `others`."""
        chosen = {id(shape) for _, shape in cited}
        others = tuple(
            Located(detection=shape.seen, frame=frame)
            for frame, shapes in enumerate(self.frames)
            for shape in shapes
            if id(shape) not in chosen
        )
        things = tuple(Located(detection=shape.seen, frame=frame) for frame, shape in cited)
        return Reading(things=things, others=others, answer=answer, counts=counts, names=names)


def _count(view: _View, words: Sequence[str]) -> Reading:
    cited = [(0, shape) for shape in view.frames[0] if not words or shape.colour == words[0]]
    return view.reading(cited, str(len(cited)), counts=True)


def _attribute(view: _View, words: Sequence[str]) -> Reading:
    found = [shape for shape in view.frames[0] if shape.shape == words[0]]
    if len(found) != 1:
        raise DetectorError(f"{len(found)} things look like a {words[0]}")
    return view.reading([(0, found[0])], found[0].colour)


def _relation(view: _View, words: Sequence[str]) -> Reading:
    one, other = (view.one(label) for label in words)
    return view.reading([(0, one), (0, other)], "yes" if one.x_px < other.x_px else "no")


def _comparison(view: _View, words: Sequence[str]) -> Reading:
    one, other = (view.one(label) for label in words)
    larger = one if one.area_px2 > other.area_px2 else other
    return view.reading([(0, one), (0, other)], larger.label, names=True)


def _where(view: _View, words: Sequence[str]) -> Reading:
    thing, middle = view.one(words[0]), view.side_px / 2
    place = f"{'top' if thing.y_px < middle else 'bottom'} {'left' if thing.x_px < middle else 'right'}"
    return view.reading([(0, thing)], place)


def _changed(view: _View, words: Sequence[str]) -> Reading:
    if len(view.frames) != 2:
        raise DetectorError(f"what moved is asked of two images, got {len(view.frames)}")
    paths = {label: (view.one(label, 0), view.one(label, 1)) for label in words}
    moves = {label: math.hypot(b.x_px - a.x_px, b.y_px - a.y_px) for label, (a, b) in paths.items()}
    furthest = max(moves, key=lambda label: moves[label])
    if moves[furthest] < LEAST_MOVE * view.side_px:
        raise DetectorError(f"neither moved: {', '.join(f'{label} {px:.1f} px' for label, px in moves.items())}")
    return view.reading(list(enumerate(paths[furthest])), furthest, names=True)


def _when(view: _View, words: Sequence[str]) -> Reading:
    (label,) = words
    shown = [frame for frame, shapes in enumerate(view.frames) if any(shape.label == label for shape in shapes)]
    if not shown or shown != list(range(shown[0], shown[-1] + 1)):
        raise DetectorError(f"a {label} is seen in images {[frame + 1 for frame in shown]}, which is no one stretch")
    read = view.reading([], str(shown[0] + 1))
    return replace(read, event=label, frames=(shown[0], shown[-1]), others=())


_QUESTIONS: tuple[tuple[str, Callable[[_View, Sequence[str]], Reading]], ...] = (
    (rf"how many things are ({_COLOUR})\b", _count),
    (r"how many things are there\b", _count),
    (rf"what colour is the ({_SHAPE})\b", _attribute),
    (rf"is the ({_THING}) left of the ({_THING})\b", _relation),
    (rf"which is larger, the ({_THING}) or the ({_THING})\b", _comparison),
    (rf"where is the ({_THING})\b", _where),
    (rf"which moved, the ({_THING}) or the ({_THING})\b", _changed),
    (rf"in which frame does the ({_THING}) appear\b", _when),
)
"""Wordings, and how each is answered."""
