"""What a scene is, and how one is drawn: anti-aliased shapes on a plain noisy ground, by numpy alone.

Deterministic: the same scene gives the same pixels on every machine that has the same numpy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 50, 47),
    "green": (60, 170, 60),
    "blue": (50, 90, 220),
    "yellow": (235, 200, 40),
    "purple": (150, 60, 190),
}
SIZES = {"small": 0.105, "large": 0.165}
"""Radius as a share of the image's side."""

_GROUND = (236, 236, 232)
_CLUTTER = (170, 170, 168)
_NOISE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object in a scene.  `Thing(shape="circle", colour="red", size="small", x_px=10.0, y_px=12.0)`

    x_px, y_px: its centre.
    """

    shape: str
    colour: str
    size: str
    x_px: float
    y_px: float

    @property
    def label(self) -> str:
        """ "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Things from back to front; a later one hides what it overlaps.

    `Scene(size_px=32, things=(Thing(...),), noise_seed=7)`.  clutter: (x, y) of grey specks that nobody asks about.
    """

    size_px: int
    things: tuple[Thing, ...]
    clutter: tuple[tuple[float, float], ...] = ()
    noise_seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """`scene_from_json` is its inverse."""
        return {
            "size_px": self.size_px,
            "things": [asdict(thing) for thing in self.things],
            "clutter": [list(place) for place in self.clutter],
            "noise_seed": self.noise_seed,
        }


def scene_from_json(data: Any) -> Scene:
    """Inverse of `Scene.to_json`."""
    return Scene(
        size_px=data["size_px"],
        things=tuple(Thing(**thing) for thing in data["things"]),
        clutter=tuple((x, y) for x, y in data["clutter"]),
        noise_seed=data["noise_seed"],
    )


def radius_px(size: str, size_px: int) -> float:
    """Half the extent of a thing of a size."""
    return SIZES[size] * size_px


def render(scene: Scene) -> Image:
    """The pixels, (height, width, 3)."""
    size = scene.size_px
    noise = np.random.default_rng(scene.noise_seed).integers(-_NOISE, _NOISE + 1, size=(size, size, 1))
    image = np.asarray(_GROUND, dtype=np.float64) + noise
    for x_px, y_px in scene.clutter:
        _paint(image, coverage("circle", x_px, y_px, 0.03 * size, size), _CLUTTER)
    for thing in scene.things:
        _paint(image, _of(thing, size), COLOURS[thing.colour])
    return image.clip(0, 255).round().astype(np.uint8)


def visible_masks(scene: Scene) -> list[Mask]:
    """For each thing the pixels that show it: covered by half and more, and by nothing in front."""
    covered = [_of(thing, scene.size_px) >= 0.5 for thing in scene.things]
    masks: list[Mask] = []
    hidden = np.zeros((scene.size_px, scene.size_px), dtype=np.bool_)
    for mask in reversed(covered):
        masks.insert(0, mask & ~hidden)
        hidden |= mask
    return masks


def visible_share(scene: Scene) -> list[float]:
    """For each thing the share of it that nothing hides."""
    masks = visible_masks(scene)
    return [
        float(mask.sum() / max(1, (_of(thing, scene.size_px) >= 0.5).sum()))
        for thing, mask in zip(scene.things, masks, strict=True)
    ]


def anchor(mask: Mask) -> tuple[float, float]:
    """A place that is on the thing for sure: the visible pixel nearest to the centre of all visible ones."""
    rows, columns = np.nonzero(mask)
    nearest = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))
    return float(columns[nearest]) + 0.5, float(rows[nearest]) + 0.5


def mask_to_json(mask: Mask) -> dict[str, Any]:
    """The region of a mask as graders read it."""
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    cut = mask[top : int(rows.max()) + 1, left : int(columns.max()) + 1]
    return {"mask": {"left_px": left, "top_px": top, "rows": ["".join("01"[int(x)] for x in row) for row in cut]}}


def _of(thing: Thing, size_px: int) -> npt.NDArray[np.float64]:
    return coverage(thing.shape, thing.x_px, thing.y_px, radius_px(thing.size, size_px), size_px)


def _paint(image: npt.NDArray[np.float64], cover: npt.NDArray[np.float64], colour: Sequence[int]) -> None:
    image += cover[:, :, None] * (np.asarray(colour, dtype=np.float64) - image)


@functools.lru_cache(maxsize=8)
def _centres(size_px: int) -> npt.NDArray[np.float64]:
    return np.arange(size_px, dtype=np.float64) + 0.5


@functools.lru_cache(maxsize=128)
def coverage(shape: str, x_px: float, y_px: float, radius: float, size_px: int) -> npt.NDArray[np.float64]:
    """How far each pixel is covered, in [0, 1]: 1 half a pixel inside the edge, 0 half a pixel outside."""
    across = _centres(size_px)[None, :] - x_px
    down = _centres(size_px)[:, None] - y_px
    if shape == "circle":
        outside = np.hypot(across, down) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(across), np.abs(down)) - 0.88 * radius
    elif shape == "triangle":
        outside = np.maximum(down - 0.8 * radius, (2 * np.abs(across) - down) / np.sqrt(5.0) - 0.5 * radius)
    elif shape == "cross":
        thin, long = 0.36 * radius, radius
        bar = np.maximum(np.abs(across) - long, np.abs(down) - thin)
        outside = np.minimum(bar, np.maximum(np.abs(across) - thin, np.abs(down) - long))
    else:
        raise ValueError(f"unknown shape {shape!r}; there are {', '.join(SHAPES)}")
    cover: npt.NDArray[np.float64] = np.clip(0.5 - outside, 0.0, 1.0)
    cover.setflags(write=False)
    return cover
