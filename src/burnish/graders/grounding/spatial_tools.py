"""Tools that check places against known ones: points in regions, boxes by overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from burnish.core.detector import Detector
from burnish.core.task import Task
from burnish.graders.evidence import Box, Point
from burnish.graders.grounding.matching import Match, match
from burnish.graders.grounding.regions import iou
from burnish.graders.grounding.result import Case, Component, ToolResult
from burnish.graders.grounding.spec import Expected, GoldObject, GroundingSpec

SAME_PLACE = 0.02
"""Points nearer to each other than this share of the image's diagonal are at one place."""

SOFTNESS = 0.25
"""Part credit outside of a region: exp(-d^2 / (2 s^2)) with s this share of the square root of its area.  At 1 s, a
quarter of the way across a square, it is .61; at 2 s .14."""

NO_CREDIT = 0.05
"""Less part credit than this is none."""

Place = TypeVar("Place", Point, Box)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointInRegion:
    """One-to-one F1 of points against the regions of the things that should be cited.

    A point on another thing than the one it names earns nothing; one beside its region earns part credit that falls
    off with the distance.  Repeated points of one name at one place count once; several names at one place void them
    all: one of them would be right by chance.
    """

    name: str = "point_in_region"
    version: str = "1"
    component: Component = Component.SPATIAL
    cost_ms: float = 0.2

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return spec.expects_grounding and Expected.POINT in spec.expected and spec.has_regions

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        spec = case.spec
        points, n_void = settled(case.parsed.points, SAME_PLACE * math.hypot(spec.frame.width_px, spec.frame.height_px))
        found = match(
            points,
            spec.objects,
            lambda point, gold: point_credit(point, gold, spec),
            n_malformed=len(case.parsed.malformed) + n_void,
        )
        return _result(self.name, found, n_malformed=len(case.parsed.malformed), n_void=n_void)


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxOverlap:
    """One-to-one F1 of boxes; a pair earns its IoU from `passed_at` on, nothing below.

    The detail has F1 at 0.3, 0.5 and 0.75 with whole credit.
    """

    name: str = "box_iou"
    version: str = "1"
    component: Component = Component.SPATIAL
    cost_ms: float = 0.3
    passed_at: float = 0.5

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        return spec.expects_grounding and Expected.BOX in spec.expected and spec.has_regions

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        n_malformed = len(case.parsed.malformed)

        def f1_at(passed_at: float, *, whole: bool) -> Match:
            def credit(box: Box, gold: GoldObject) -> float:
                overlap = box_overlap(box, gold)
                return 0.0 if overlap < passed_at else 1.0 if whole else overlap

            return match(case.parsed.boxes, case.spec.objects, credit, n_malformed=n_malformed)

        marks = {f"f1_at_{level}": round(f1_at(level, whole=True).f1, 4) for level in (0.3, 0.5, 0.75)}
        return _result(self.name, f1_at(self.passed_at, whole=False), n_malformed=n_malformed, **marks)


def point_credit(point: Point, gold: GoldObject, spec: GroundingSpec) -> float:
    """What a point earns for a thing, in [0, 1]."""
    if gold.region is None or point.frame != gold.frame or not names(point.label, gold):
        return 0.0
    distance_px = gold.region.distance_px(point.x_px, point.y_px)
    if distance_px == 0.0:
        return 1.0
    if any(_is_on(point, other) for other in (*spec.objects, *spec.others) if other is not gold):
        return 0.0
    softness_px = SOFTNESS * math.sqrt(gold.region.area_px2)
    credit = math.exp(-(distance_px**2) / (2 * softness_px**2))
    return credit if credit >= NO_CREDIT else 0.0


def box_overlap(box: Box, gold: GoldObject) -> float:
    """IoU with the bounds of a thing; 0 for another name or frame."""
    if gold.region is None or box.frame != gold.frame or not names(box.label, gold):
        return 0.0
    return iou((box.left_px, box.top_px, box.right_px, box.bottom_px), gold.region.bounds)


def names(label: str, gold: GoldObject) -> bool:
    """Whether a label is one of the thing's own; plurals count."""
    if not gold.labels:
        return True
    return label in gold.labels or label.removesuffix("s") in gold.labels


def settled(points: Sequence[Point], radius_px: float) -> tuple[list[Point], int]:
    """Points with repeats left out, and how many are void because several names stand at their place.

    >>> twice = [Point(x_px=1, y_px=1, label="dog"), Point(x_px=1, y_px=1, label="dog")]
    >>> len(settled(twice, 0.5)[0]), settled([*twice, Point(x_px=1, y_px=1, label="cat")], 0.5)
    (1, ([], 2))
    """
    kept: list[Point] = []
    for point in points:
        if not any(_same_place(point, other, radius_px) and point.label == other.label for other in kept):
            kept.append(point)
    void = [p for p in kept if any(_same_place(p, o, radius_px) and p.label != o.label for o in kept)]
    return [point for point in kept if point not in void], len(void)


def _same_place(one: Point, other: Point, radius_px: float) -> bool:
    return one.frame == other.frame and math.hypot(one.x_px - other.x_px, one.y_px - other.y_px) <= radius_px


def _is_on(point: Point, gold: GoldObject) -> bool:
    return (
        gold.region is not None and point.frame == gold.frame and gold.region.distance_px(point.x_px, point.y_px) == 0.0
    )


def _result(tool: str, found: Match, **detail: float) -> ToolResult:
    return ToolResult(
        tool=tool,
        component=Component.SPATIAL,
        score=found.f1,
        detail={
            "f1": found.f1,
            "n_cited": found.n_cited,
            "n_true": found.n_true,
            "matched": [[cited, true, round(credit, 4)] for cited, true, credit in found.pairs],
            **detail,
        },
    )
