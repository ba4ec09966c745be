"""Drawn shapes (circles, squares, triangles, crosses of five colours) by hue and template: a detector without weights.

A pixel between ground and thing keeps the thing's hue and loses chroma, so hue names the colour and chroma says how far
the pixel is covered.  Connected pixels of one hue are a thing; its shape is that of the template which leaves the
smallest squared difference of coverage over place and size.  It knows how such drawings look, and nothing of the scene
that a picture was made from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from burnish.core.detector import Detection, Pixels

Array = npt.NDArray[np.floating]
Place = tuple[float, float, float]
"""x, y and half extent in pixels."""

HUES: Mapping[str, tuple[float, float]] = {
    "red": (-25.0, 20.0),
    "yellow": (35.0, 75.0),
    "green": (80.0, 165.0),
    "blue": (195.0, 252.0),
    "purple": (256.0, 310.0),
}
"""First and last hue of each name, in degrees."""

LEAST_CHROMA = 18.0
"""Of 255: below it a pixel is ground, grey clutter or noise."""

LEAST_AREA_PX2 = 6.0
"""Less covered area is the fringe between two things."""

_ARM = 0.36
"""Half the width of a cross's arms as a share of their length."""


def _circle(x: Array, y: Array, r: Array) -> Array:
    distance: Array = np.hypot(x, y) - r
    return distance


def _square(x: Array, y: Array, r: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - r


def _triangle(x: Array, y: Array, r: Array) -> Array:
    """Upright, as high as wide, r half of both."""
    return np.maximum(y - r, (2 * np.abs(x) - y - r) / math.sqrt(5.0))


def _cross(x: Array, y: Array, r: Array) -> Array:
    across, down = np.abs(x), np.abs(y)
    lying, standing = np.maximum(across - r, down - _ARM * r), np.maximum(across - _ARM * r, down - r)
    distance: Array = np.minimum(lying, standing)
    return distance


SHAPES: Mapping[str, Callable[[Array, Array, Array], Array]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
}
"""Signed distance in pixels to the edge of each shape, of half extent r around (0, 0); below 0 inside."""

_STEPS = (0.2, 0.08, 0.03)
"""Of the search for place and size, each finer around the best of the one before, as shares of the half extent."""

_AREA = {"circle": math.pi, "square": 4.0, "triangle": 2.0, "cross": 4 * _ARM * (2 - _ARM)}
"""Area of each shape in units of r^2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A thing as it was fitted.  `Shape(shape="circle", colour="red", x_px=10.0, y_px=12.0, reach_px=3.4, ...)`

    reach_px: half its extent.  misfit: root mean square difference of coverage, in [0, 1].  seen: its detection.
    """

    shape: str
    colour: str
    x_px: float
    y_px: float
    reach_px: float
    misfit: float
    seen: Detection

    @property
    def label(self) -> str:
        """ "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def area_px2(self) -> float:
        """Of the whole shape, hidden parts included."""
        return _AREA[self.shape] * self.reach_px**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeDetector:
    """A core `Detector` of drawn shapes.  `ShapeDetector().detect(pixels, ["red circle"])`"""

    name: str = "shapes"
    version: str = "1"
    true_positive_rate: float | None = None
    false_positive_rate: float | None = None

    def knows(self, label: str) -> bool:
        """ "red circle": one of its colours, one of its shapes."""
        colour, _, shape = label.partition(" ")
        return colour in HUES and shape in SHAPES

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        """Every thing with one of these names."""
        return [found.seen for found in self.shapes(image) if found.label in labels]

    def shapes(self, image: Pixels) -> list[Shape]:
        """Everything that is drawn, from left to right."""
        rgb = np.frombuffer(image.rgb, dtype=np.uint8).reshape(image.height_px, image.width_px, 3).astype(np.float64)
        chroma, names = _coloured(rgb)
        found = []
        for colour, part in _parts(chroma, names):
            peak = float(np.quantile(chroma[part], 0.8))
            cover = np.where(part, np.minimum(chroma / peak, 1.0), 0.0)
            if cover.sum() >= LEAST_AREA_PX2:
                # Pixels of another colour may be in front: whether the thing goes on behind them nobody can see.
                hidden = (names != "") & ~part & (chroma > LEAST_CHROMA)
                found.append(_fitted(cover, hidden, colour))
        return sorted(found, key=lambda one: (one.x_px, one.y_px))


def _coloured(rgb: Array) -> tuple[Array, npt.NDArray[np.str_]]:
    """Chroma of each pixel less that of the ground, and the colour that its hue names ("" for none)."""
    ground = np.median(rgb.reshape(-1, 3), axis=0)
    offset = rgb - ground
    high, low = offset.max(axis=2), offset.min(axis=2)
    chroma = high - low
    scale = np.where(chroma > 0, chroma, 1.0)
    red, green, blue = (offset[:, :, index] for index in range(3))
    hue = np.where(
        high == red,
        (green - blue) / scale,
        np.where(high == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    degrees = (60 * hue + 25) % 360 - 25
    names = np.full(chroma.shape, "", dtype="<U8")
    for name, (first, last) in HUES.items():
        names[(degrees >= first) & (degrees <= last) & (chroma > LEAST_CHROMA)] = name
    return chroma, names


def _parts(chroma: Array, names: npt.NDArray[np.str_]) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Connected pixels of one colour: those well covered tell things apart, the fringe goes to the thing it touches."""
    for colour in HUES:
        mine = names == colour
        if not mine.any():
            continue
        sure = mine & (chroma > 0.5 * np.quantile(chroma[mine], 0.8))
        numbered, count = ndimage.label(sure)
        nearest = ndimage.distance_transform_edt(numbered == 0, return_distances=False, return_indices=True)
        owner = numbered[tuple(nearest)]
        near = ndimage.binary_dilation(sure, structure=np.ones((3, 3), dtype=np.bool_))
        for index in range(1, count + 1):
            yield colour, mine & near & (owner == index)


def _fitted(cover: Array, hidden: npt.NDArray[np.bool_], colour: str) -> Shape:
    """The template that explains a coverage best."""
    rows, columns = np.nonzero(cover)
    top, left = max(0, int(rows.min()) - 2), max(0, int(columns.min()) - 2)
    bottom, right = int(rows.max()) + 3, int(columns.max()) + 3
    patch, seen = cover[top:bottom, left:right], ~hidden[top:bottom, left:right]
    y_px, x_px = (float((axis * cover).sum() / cover.sum()) + 0.5 for axis in np.indices(cover.shape))
    best: tuple[float, str, Place] = (math.inf, "", (0.0, 0.0, 1.0))
    for shape in SHAPES:
        reach = math.sqrt(float(cover.sum()) / _AREA[shape])
        shift = 0.17 * reach if shape == "triangle" else 0.0  # The middle of its extent lies above its centroid.
        place = (x_px - left, y_px - top - shift * 2, reach)
        misfit = math.inf
        for step in _STEPS:
            misfit, place = _search(patch, seen, shape, place, step)
        if misfit < best[0]:
            best = (misfit, shape, place)
    misfit, shape, (x, y, reach) = best
    seen_as = _detection(cover >= 0.5, f"{colour} {shape}", 1.0 - misfit)
    return Shape(shape=shape, colour=colour, x_px=x + left, y_px=y + top, reach_px=reach, misfit=misfit, seen=seen_as)


def _search(patch: Array, seen: npt.NDArray[np.bool_], shape: str, start: Place, step: float) -> tuple[float, Place]:
    """The best of a grid around a start, and its misfit.  step: as a share of the half extent."""
    offsets = np.arange(-2, 3) * step
    grid = np.array(np.meshgrid(offsets, offsets, offsets, indexing="ij"), dtype=np.float32).reshape(3, -1) * start[2]
    grid += np.asarray(start, dtype=np.float32)[:, None]
    indices: Array = np.indices(patch.shape, dtype=np.float32) + np.float32(0.5)
    x, y = indices[1][None] - grid[0][:, None, None], indices[0][None] - grid[1][:, None, None]
    template = np.clip(0.5 - SHAPES[shape](x, y, grid[2][:, None, None]), 0.0, 1.0)
    wrong = ((template - patch.astype(np.float32)) ** 2)[:, seen].sum(axis=1)
    at = int(np.argmin(wrong))
    # Against the covered area, so that a larger thing is not a worse fit.
    misfit = math.sqrt(float(wrong[at]) / max(float(patch.sum()), 1.0))
    return misfit, (float(grid[0][at]), float(grid[1][at]), float(grid[2][at]))


def _detection(mask: npt.NDArray[np.bool_], label: str, confidence: float) -> Detection:
    rows, columns = np.nonzero(mask)
    top, bottom, left, right = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    return Detection(
        label=label,
        left_px=float(left),
        top_px=float(top),
        right_px=float(right),
        bottom_px=float(bottom),
        confidence=max(0.0, min(1.0, confidence)),
        mask=np.ascontiguousarray(mask[top:bottom, left:right], dtype=np.uint8).tobytes(),
    )
