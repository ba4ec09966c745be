"""Random scenes: what is there, where, and how much of it shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from burnish.environments.scenes.scene import COLOURS, SHAPES, SIZES, Scene, Thing, radius_px, visible_share

_TRIES = 200
LEAST_VISIBLE = 0.45
"""No thing is hidden further, so that every one can be pointed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How scenes are made.  `Look(size_px=32, least=2, most=3)`

    least, most: number of things.  occlusion: how far two things may overlap, as a share of the sum of their radii; 0
    keeps them a pixel apart.  clutter: grey specks.
    """

    size_px: int = 32
    least: int = 2
    most: int = 3
    occlusion: float = 0.0
    clutter: int = 0


def random_kinds(rng: Random, n: int) -> list[tuple[str, str, str]]:
    """Shape, colour and size of n things, no two alike in shape and colour."""
    pairs = rng.sample([(shape, colour) for shape in SHAPES for colour in COLOURS], n)
    return [(shape, colour, rng.choice(list(SIZES))) for shape, colour in pairs]


def place(rng: Random, kinds: Sequence[tuple[str, str, str]], look: Look) -> Scene | None:
    """A scene with things of these kinds at random places; None where they do not fit."""
    things: list[Thing] = []
    for shape, colour, size in kinds:
        for _ in range(_TRIES):
            thing = _at_random(rng, shape, colour, size, look)
            if all(_apart(thing, other, look) for other in things):
                things.append(thing)
                break
        else:
            return None
    side = look.size_px
    clutter = tuple((_half(rng.uniform(1, side - 1)), _half(rng.uniform(1, side - 1))) for _ in range(look.clutter))
    scene = Scene(size_px=side, things=tuple(things), clutter=clutter, noise_seed=rng.randrange(2**31))
    if look.occlusion and min(visible_share(scene)) < LEAST_VISIBLE:
        return None
    return scene


def moved(rng: Random, scene: Scene, index: int, look: Look) -> Scene | None:
    """The scene with one thing well away from where it was; None where there is no room."""
    thing = scene.things[index]
    others = [other for other in scene.things if other is not thing]
    for _ in range(_TRIES):
        new = _at_random(rng, thing.shape, thing.colour, thing.size, look)
        far = math.hypot(new.x_px - thing.x_px, new.y_px - thing.y_px) > 0.3 * look.size_px
        if far and all(_apart(new, other, look) for other in others):
            things = (*scene.things[:index], new, *scene.things[index + 1 :])
            return replace(scene, things=things, noise_seed=rng.randrange(2**31))
    return None


def _at_random(rng: Random, shape: str, colour: str, size: str, look: Look) -> Thing:
    radius = radius_px(size, look.size_px)
    low, high = radius + 0.5, look.size_px - radius - 0.5
    return Thing(
        shape=shape, colour=colour, size=size, x_px=_half(rng.uniform(low, high)), y_px=_half(rng.uniform(low, high))
    )


def _half(value: float) -> float:
    """To half pixels, so that numbers stay short and drawings can be cached."""
    return round(2 * value) / 2


def _apart(one: Thing, other: Thing, look: Look) -> bool:
    reach = radius_px(one.size, look.size_px) + radius_px(other.size, look.size_px)
    needed = reach * (1 - look.occlusion) if look.occlusion else reach + 1
    return math.hypot(one.x_px - other.x_px, one.y_px - other.y_px) >= needed
