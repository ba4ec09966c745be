"""The kinds of questions: wording, the answers there are, a scene in which a wanted answer is the true one, and what of
it should be cited.

The answer is chosen first and the scene made for it, so that every answer of a kind is equally frequent whatever the
words of the question, and a shortcut is nothing but another choice of answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar

from burnish.core.hashing import derive_seed
from burnish.environments.scenes.placing import Look, moved, place, random_kinds
from burnish.environments.scenes.scene import COLOURS, SHAPES, SIZES, Scene, radius_px

_TRIES = 400
CLIP_FRAMES = 4

Kind = tuple[str, str, str]
"""Shape, colour and size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Posed:
    """A question about frames, with its truth.

    cited: (frame, index of the thing in that frame) of what should be pointed at.  span: first and last frame (from 1)
    of the event that should be cited instead, None where there is none.
    """

    text: str
    frames: tuple[Scene, ...]
    answer: str
    cited: tuple[tuple[int, int], ...] = ()
    span: tuple[int, int] | None = None
    event: str = ""


class QuestionKind(ABC):
    """One kind of question.

    words: what a question is about, drawn before the answer.  answers: those that there can be, given the words.
    """

    name: ClassVar[str]
    counts: ClassVar[bool] = False
    names: ClassVar[bool] = False
    n_frames: ClassVar[int] = 1

    @abstractmethod
    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        """The things that the question names, the first one the cue of the shortcut."""

    @abstractmethod
    def cue(self, named: Sequence[Kind]) -> str:
        """The word of the question that a shortcut hangs on."""

    @abstractmethod
    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        """The possible answers, in a fixed order."""

    @abstractmethod
    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        """A question with this answer; None where this try did not work out."""

    def shortcut(self, named: Sequence[Kind], look: Look) -> str:
        """The answer that the question's words point to where there is a shortcut."""
        answers = self.answers(named, look)
        return answers[derive_seed("scenes", self.name, self.cue(named)) % len(answers)]


def posed(
    kind: QuestionKind, rng: Random, look: Look, *, shortcut: float = 0.0, named: Sequence[Kind] | None = None
) -> Posed:
    """A question of a kind.  shortcut: how often the answer is the one that the words point to, beyond chance.

    Raises ValueError where no scene fits, which takes a look that leaves no room.
    """
    for _ in range(_TRIES):
        about = kind.words(rng, look) if named is None else named
        answers = kind.answers(about, look)
        answer = kind.shortcut(about, look) if rng.random() < shortcut else rng.choice(answers)
        for _ in range(8):
            found = kind.pose(rng, about, answer, look)
            if found is not None:
                return found
    raise ValueError(f"no scene for a question of kind {kind.name} with {look}; leave more room or fewer things")


def _number(rng: Random, look: Look, least: int) -> int:
    return rng.randint(max(look.least, least), max(look.most, least))


def _scene(rng: Random, named: Sequence[Kind], look: Look, *, avoid: str = "") -> tuple[Scene, list[int]] | None:
    """A scene with the named things among others, and where in it they are.

    avoid: "shape" keeps others from having the shape of the first one named.
    """
    n_others = _number(rng, look, len(named)) - len(named)
    taken = {(shape, colour) for shape, colour, _ in named}
    others = [
        kind
        for kind in random_kinds(rng, len(SHAPES) * len(COLOURS))
        if kind[:2] not in taken and not (avoid == "shape" and kind[0] == named[0][0])
    ][:n_others]
    kinds = [*named, *others]
    order = rng.sample(range(len(kinds)), len(kinds))
    scene = place(rng, [kinds[index] for index in order], look)
    return None if scene is None else (scene, [order.index(index) for index in range(len(named))])


def _across(scene: Scene, indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Things of the first frame from left to right: an order that can be seen, so that imitating it can be learnt."""
    return tuple((0, index) for index in sorted(indices, key=lambda at: (scene.things[at].x_px, scene.things[at].y_px)))


class Count(QuestionKind):
    """How many things are red?"""

    name = "count"
    counts = True

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return [("", rng.choice(list(COLOURS)), "")]

    def cue(self, named: Sequence[Kind]) -> str:
        return named[0][1]

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return [str(number) for number in range(1, min(look.most, len(SHAPES)) + 1)]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        colour, n = named[0][1], int(answer)
        wanted = [(shape, colour, rng.choice(list(SIZES))) for shape in rng.sample(SHAPES, n)]
        n_others = _number(rng, look, n) - n
        others = [kind for kind in random_kinds(rng, len(SHAPES) * len(COLOURS)) if kind[1] != colour][:n_others]
        kinds = [*wanted, *others]
        rng.shuffle(kinds)
        scene = place(rng, kinds, look)
        if scene is None:
            return None
        cited = _across(scene, [index for index, thing in enumerate(scene.things) if thing.colour == colour])
        return Posed(text=f"How many things are {colour}?", frames=(scene,), answer=answer, cited=cited)


class Inventory(QuestionKind):
    """How many things are there?  Asks for every one of them: the kind that teaches most about looking."""

    name = "inventory"
    counts = True

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return []

    def cue(self, named: Sequence[Kind]) -> str:
        return ""

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return [str(number) for number in range(look.least, look.most + 1)]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        scene = place(rng, random_kinds(rng, int(answer)), look)
        if scene is None:
            return None
        cited = _across(scene, range(len(scene.things)))
        return Posed(text="How many things are there?", frames=(scene,), answer=answer, cited=cited)


class Attribute(QuestionKind):
    """What colour is the circle?"""

    name = "attribute"

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return [(rng.choice(SHAPES), "", rng.choice(list(SIZES)))]

    def cue(self, named: Sequence[Kind]) -> str:
        return named[0][0]

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return list(COLOURS)

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        shape, _, size = named[0]
        made = _scene(rng, [(shape, answer, size)], look, avoid="shape")
        if made is None:
            return None
        return Posed(text=f"What colour is the {shape}?", frames=(made[0],), answer=answer, cited=((0, made[1][0]),))


class _OfTwo(QuestionKind):
    """Base: two things are named."""

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return random_kinds(rng, 2)

    def cue(self, named: Sequence[Kind]) -> str:
        return named[0][0]


class Relation(_OfTwo):
    """Is the red circle left of the blue square?"""

    name = "relation"

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return ["yes", "no"]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        made = _scene(rng, named, look)
        if made is None:
            return None
        scene, (one, other) = made
        gap_px = scene.things[other].x_px - scene.things[one].x_px
        if abs(gap_px) < 0.1 * look.size_px or (gap_px > 0) != (answer == "yes"):
            return None
        text = f"Is the {_label(named[0])} left of the {_label(named[1])}?"
        return Posed(text=text, frames=(scene,), answer=answer, cited=((0, one), (0, other)))


class Comparison(_OfTwo):
    """Which is larger, the red circle or the blue square?"""

    name = "comparison"
    names = True

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return [_label(named[0]), _label(named[1])]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        sized = [(shape, colour, "large" if f"{colour} {shape}" == answer else "small") for shape, colour, _ in named]
        made = _scene(rng, sized, look)
        if made is None:
            return None
        scene, (one, other) = made
        text = f"Which is larger, the {_label(named[0])} or the {_label(named[1])}?"
        return Posed(text=text, frames=(scene,), answer=answer, cited=((0, one), (0, other)))


class Where(QuestionKind):
    """Where is the red circle?"""

    name = "where"

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return random_kinds(rng, 1)

    def cue(self, named: Sequence[Kind]) -> str:
        return named[0][1]

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return ["top left", "top right", "bottom left", "bottom right"]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        for _ in range(16):
            made = _scene(rng, named, look)
            if made is not None and quarter(made[0], made[1][0]) == answer:
                scene, (index,) = made
                text = f"Where is the {_label(named[0])}?"
                return Posed(text=text, frames=(scene,), answer=answer, cited=((0, index),))
        return None


def quarter(scene: Scene, index: int) -> str:
    """The quarter of the image that a thing's centre is in; empty near the middle lines.

    >>> from burnish.environments.scenes.scene import Thing
    >>> thing = Thing(shape="circle", colour="red", size="small", x_px=8.0, y_px=25.0)
    >>> quarter(Scene(size_px=32, things=(thing,)), 0)
    'bottom left'
    """
    thing, middle = scene.things[index], scene.size_px / 2
    if min(abs(thing.x_px - middle), abs(thing.y_px - middle)) < 0.05 * scene.size_px:
        return ""
    return f"{'top' if thing.y_px < middle else 'bottom'} {'left' if thing.x_px < middle else 'right'}"


class Changed(_OfTwo):
    """Two frames: which moved, the red circle or the blue square?"""

    name = "changed"
    names = True
    n_frames = 2

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return [_label(named[0]), _label(named[1])]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        made = _scene(rng, named, look)
        if made is None:
            return None
        scene, places = made
        index = places[self.answers(named, look).index(answer)]
        after = moved(rng, scene, index, replace(look, occlusion=0.0))
        if after is None:
            return None
        text = f"Which moved, the {_label(named[0])} or the {_label(named[1])}?"
        return Posed(text=text, frames=(scene, after), answer=answer, cited=((0, index), (1, index)))


class When(QuestionKind):
    """A short clip: in which frame does the red circle appear?"""

    name = "when"
    n_frames = CLIP_FRAMES

    def words(self, rng: Random, look: Look) -> Sequence[Kind]:
        return random_kinds(rng, 1)

    def cue(self, named: Sequence[Kind]) -> str:
        return named[0][1]

    def answers(self, named: Sequence[Kind], look: Look) -> Sequence[str]:
        return [str(number) for number in range(1, CLIP_FRAMES + 1)]

    def pose(self, rng: Random, named: Sequence[Kind], answer: str, look: Look) -> Posed | None:
        made = _scene(rng, named, replace(look, occlusion=0.0))
        if made is None:
            return None
        scene, (index,) = made
        without = replace(scene, things=tuple(t for at, t in enumerate(scene.things) if at != index))
        first = int(answer)
        last = rng.randint(first, min(first + 1, CLIP_FRAMES))
        frames = tuple(
            replace(scene if first <= number <= last else without, noise_seed=rng.randrange(2**31))
            for number in range(1, CLIP_FRAMES + 1)
        )
        label = _label(named[0])
        text = f"In which frame does the {label} appear?"
        return Posed(text=text, frames=frames, answer=answer, span=(first, last), event=label)


def _label(kind: Kind) -> str:
    return f"{kind[1]} {kind[0]}"


KINDS: dict[str, QuestionKind] = {
    kind.name: kind
    for kind in (Count(), Attribute(), Relation(), Comparison(), Where(), Changed(), When(), Inventory())
}
"""Kinds of questions by name."""


def fits(look: Look) -> bool:
    """Whether the largest number of large things has room at all (their area against a third of the image's)."""
    return look.most * 4 * radius_px("large", look.size_px) ** 2 < 0.75 * look.size_px**2
