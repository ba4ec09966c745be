"""Regions of an image: boxes, discs, polygons and masks, with how far a point is from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

Bounds = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


class Region(Protocol):
    """A part of an image, in pixels."""

    @property
    def bounds(self) -> Bounds: ...

    @property
    def area_px2(self) -> float: ...

    def distance_px(self, x_px: float, y_px: float) -> float:
        """0 inside, else the distance to the nearest part of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRegion:
    """A rectangle.  `BoxRegion(bounds=(2.0, 3.0, 10.0, 9.0))`"""

    bounds: Bounds

    @property
    def area_px2(self) -> float:
        left, top, right, bottom = self.bounds
        return (right - left) * (bottom - top)

    def distance_px(self, x_px: float, y_px: float) -> float:
        left, top, right, bottom = self.bounds
        return math.hypot(max(left - x_px, x_px - right, 0.0), max(top - y_px, y_px - bottom, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscRegion:
    """A disc.  `DiscRegion(x_px=10.0, y_px=10.0, radius_px=4.0)`"""

    x_px: float
    y_px: float
    radius_px: float

    @property
    def bounds(self) -> Bounds:
        x, y, r = self.x_px, self.y_px, self.radius_px
        return (x - r, y - r, x + r, y + r)

    @property
    def area_px2(self) -> float:
        return math.pi * self.radius_px**2

    def distance_px(self, x_px: float, y_px: float) -> float:
        return max(0.0, math.hypot(x_px - self.x_px, y_px - self.y_px) - self.radius_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonRegion:
    """A simple polygon by its corners in order.  `PolygonRegion(corners=((0, 0), (4, 0), (0, 4)))`"""

    corners: tuple[tuple[float, float], ...]

    @property
    def bounds(self) -> Bounds:
        xs, ys = [x for x, _ in self.corners], [y for _, y in self.corners]
        return (min(xs), min(ys), max(xs), max(ys))

    @property
    def area_px2(self) -> float:
        return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in self._edges())) / 2

    def _edges(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        return list(pairwise((*self.corners, self.corners[0])))

    def distance_px(self, x_px: float, y_px: float) -> float:
        crossings = sum(
            (a[1] > y_px) != (b[1] > y_px) and x_px < (b[0] - a[0]) * (y_px - a[1]) / (b[1] - a[1]) + a[0]
            for a, b in self._edges()
        )
        return 0.0 if crossings % 2 else min(_to_segment(x_px, y_px, a, b) for a, b in self._edges())


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRegion:
    """Whole pixels.  `MaskRegion(left_px=3, top_px=5, rows=("0110", "1111"))`: six pixels, the first is (4, 5).

    rows: "1" where a pixel belongs to it; all equally long, at least one "1".
    """

    left_px: int
    top_px: int
    rows: tuple[str, ...]

    def __post_init__(self) -> None:
        if len({len(row) for row in self.rows}) != 1 or not any("1" in row for row in self.rows):
            raise ValueError("rows of a mask are equally long and hold at least one 1")

    @property
    def bounds(self) -> Bounds:
        return (self.left_px, self.top_px, self.left_px + len(self.rows[0]), self.top_px + len(self.rows))

    @property
    def area_px2(self) -> float:
        return float(sum(row.count("1") for row in self.rows))

    def distance_px(self, x_px: float, y_px: float) -> float:
        column, row = math.floor(x_px) - self.left_px, math.floor(y_px) - self.top_px
        if 0 <= row < len(self.rows) and 0 <= column < len(self.rows[0]) and self.rows[row][column] == "1":
            return 0.0
        return min(
            math.hypot(max(left - x_px, x_px - left - 1, 0.0), max(top - y_px, y_px - top - 1, 0.0))
            for top, text in enumerate(self.rows, self.top_px)
            for left, mark in enumerate(text, self.left_px)
            if mark == "1"
        )


def region_from_json(data: Mapping[str, Any]) -> Region:
    """The region of a mapping with one key: box [l, t, r, b], disc [x, y, radius], polygon [[x, y], ...], or mask
    {"left_px", "top_px", "rows"}.  Raises ValueError or KeyError for anything else.

    >>> region_from_json({"box": [0, 0, 4, 2]}).area_px2
    8
    """
    (kind, value), *rest = data.items()
    if rest:
        raise ValueError(f"a region has one kind, got {sorted(data)}")
    if kind == "box" and value[0] < value[2] and value[1] < value[3]:
        return BoxRegion(bounds=tuple(value))
    if kind == "disc" and value[2] > 0:
        return DiscRegion(x_px=value[0], y_px=value[1], radius_px=value[2])
    if kind == "polygon" and len(value) >= 3:
        return PolygonRegion(corners=tuple((x, y) for x, y in value))
    if kind == "mask":
        return MaskRegion(left_px=value["left_px"], top_px=value["top_px"], rows=tuple(value["rows"]))
    raise ValueError(f"no region: {kind} {value!r}")


def region_to_json(region: Region) -> dict[str, Any]:
    """Inverse of `region_from_json`.

    >>> region_to_json(BoxRegion(bounds=(0.0, 0.0, 4.0, 2.0)))
    {'box': [0.0, 0.0, 4.0, 2.0]}
    """
    if isinstance(region, MaskRegion):
        return {"mask": {"left_px": region.left_px, "top_px": region.top_px, "rows": list(region.rows)}}
    if isinstance(region, DiscRegion):
        return {"disc": [region.x_px, region.y_px, region.radius_px]}
    if isinstance(region, PolygonRegion):
        return {"polygon": [list(corner) for corner in region.corners]}
    return {"box": list(region.bounds)}


def place_in(region: Region) -> tuple[float, float]:
    """A place that is in a region for sure: its middle, else the pixel of it that is nearest to the middle.

    >>> place_in(BoxRegion(bounds=(0.0, 0.0, 4.0, 2.0)))
    (2.0, 1.0)
    """
    left, top, right, bottom = region.bounds
    places = [((left + right) / 2, (top + bottom) / 2)]
    if isinstance(region, MaskRegion):
        marked = [
            (region.left_px + column + 0.5, region.top_px + row + 0.5)
            for row, text in enumerate(region.rows)
            for column, mark in enumerate(text)
            if mark == "1"
        ]
        places = [(sum(x for x, _ in marked) / len(marked), sum(y for _, y in marked) / len(marked))]
        places.append(min(marked, key=lambda at: math.dist(at, places[0])))
    if isinstance(region, PolygonRegion):
        # The middle of three corners in a row, one of which is inside of a polygon that is hollow in its own middle.
        places += [
            ((a[0] + b[0] + c[0]) / 3, (a[1] + b[1] + c[1]) / 3)
            for a, b, c in zip(
                region.corners,
                region.corners[1:] + region.corners[:1],
                region.corners[2:] + region.corners[:2],
                strict=True,
            )
        ]
    return next((place for place in places if region.distance_px(*place) == 0.0), places[-1])


def iou(one: Bounds, other: Bounds) -> float:
    """Intersection over union of two rectangles.

    >>> iou((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    if across <= 0 or down <= 0:
        return 0.0
    shared = across * down
    both = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (both - shared)


def _to_segment(x: float, y: float, a: tuple[float, float], b: tuple[float, float]) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length2 = dx * dx + dy * dy
    share = 0.0 if length2 == 0 else max(0.0, min(1.0, ((x - a[0]) * dx + (y - a[1]) * dy) / length2))
    return math.hypot(x - a[0] - share * dx, y - a[1] - share * dy)
