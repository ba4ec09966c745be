"""A tool for places that nobody has marked: a detector says whether the named thing is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from burnish.core.detector import Detection, Detector, DetectorError
from burnish.core.task import Task
from burnish.graders.evidence import Point
from burnish.graders.grounding.matching import match
from burnish.graders.grounding.regions import BoxRegion, MaskRegion, Region
from burnish.graders.grounding.result import Case, Component, Status, ToolResult
from burnish.graders.grounding.spatial_tools import NO_CREDIT, SAME_PLACE, SOFTNESS, settled
from burnish.graders.grounding.spec import Expected, GroundingSpec

LEAST_RELIABILITY, UNMEASURED_RELIABILITY = 0.05, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorTeacher:
    """Points against what a detector finds of the names that should be cited, one to one, with F1.

    Its reliability is TPR - FPR of the detector, as measured by somebody else's labels: a noisy teacher keeps the order
    inside right answers as long as that is above 0.  An unmeasured one counts half.
    """

    detector: Detector
    name: str = "detector_teacher"
    version: str = "1"
    component: Component = Component.SPATIAL
    cost_ms: float = 200.0

    def applies(self, task: Task, spec: GroundingSpec) -> bool:
        wanted = Expected.POINT in spec.expected and bool(spec.objects) and not spec.has_regions
        return spec.expects_grounding and wanted and all(item.labels for item in spec.objects)

    def available(self, spec: GroundingSpec, detectors: Sequence[Detector]) -> str:
        unknown = [item.labels[0] for item in spec.objects if not self.detector.knows(item.labels[0])]
        return f"{self.detector.name} does not know {unknown[0]!r}" if unknown else ""

    @property
    def reliability(self) -> float:
        """Youden's index of the detector, at least .05."""
        tpr, fpr = self.detector.true_positive_rate, self.detector.false_positive_rate
        if tpr is None or fpr is None:
            return UNMEASURED_RELIABILITY
        return max(LEAST_RELIABILITY, min(1.0, tpr - fpr))

    def verify(self, case: Case) -> ToolResult:
        wanted = sorted({item.labels[0] for item in case.spec.objects})
        if case.images is None:
            return self._none(Status.UNAVAILABLE, "the task's images are not at hand")
        try:
            found = {
                frame: self.detector.detect(case.images(frame), wanted)
                for frame in sorted({item.frame for item in case.spec.objects})
            }
        except DetectorError as error:
            return self._none(Status.ERROR, str(error))
        frame = case.spec.frame
        points, n_void = settled(case.parsed.points, SAME_PLACE * math.hypot(frame.width_px, frame.height_px))
        flat = [(index, detection) for index, detections in found.items() for detection in detections]
        n_true = len(case.spec.objects)
        matched = match(
            points, flat, lambda point, item: _credit(point, item[0], item[1]), n_malformed=len(case.parsed.malformed)
        )
        cited = matched.n_cited + n_void
        score = 2 * min(matched.true_positives, n_true) / (cited + n_true)
        return ToolResult(
            tool=self.name,
            component=self.component,
            score=min(1.0, score),
            reliability=self.reliability,
            detail={"n_cited": cited, "n_true": n_true, "n_detected": len(flat), "teacher": self.detector.name},
        )

    def _none(self, status: Status, problem: str) -> ToolResult:
        return ToolResult(
            tool=self.name,
            component=self.component,
            score=None,
            status=status,
            reliability=self.reliability,
            detail={"problem": problem, "teacher": self.detector.name},
        )


def region_of(detection: Detection) -> Region:
    """The mask of a detection, else its box."""
    left, top = math.floor(detection.left_px), math.floor(detection.top_px)
    width, height = math.ceil(detection.right_px) - left, math.ceil(detection.bottom_px) - top
    if len(detection.mask) == width * height and any(detection.mask):
        rows = tuple(
            "".join("1" if mark else "0" for mark in detection.mask[row * width : (row + 1) * width])
            for row in range(height)
        )
        return MaskRegion(left_px=left, top_px=top, rows=rows)
    return BoxRegion(bounds=(detection.left_px, detection.top_px, detection.right_px, detection.bottom_px))


def support(x_px: float, y_px: float, detections: Sequence[Detection], *, sharp: bool = False) -> float:
    """How well a place is borne out by detections of one name, in [0, 1]: the largest confidence times closeness.

    Closeness is 1 inside and exp(-d^2 / 2 s^2) outside, s a quarter of the square root of the region's area; sharp: 0
    outside.

    >>> dog = Detection(label="dog", left_px=0, top_px=0, right_px=4, bottom_px=4, confidence=0.9)
    >>> support(2, 2, [dog]), round(support(2, 6, [dog]), 3)
    (0.9, 0.122)
    """
    near = ((_closeness(x_px, y_px, item), item.confidence) for item in detections)
    return max((close * sure for close, sure in near if close == 1.0 or not sharp), default=0.0)


def _closeness(x_px: float, y_px: float, detection: Detection) -> float:
    region = region_of(detection)
    distance_px = region.distance_px(x_px, y_px)
    if distance_px == 0.0:
        return 1.0
    return math.exp(-(distance_px**2) / (2 * SOFTNESS**2 * max(region.area_px2, 1.0)))


def _credit(point: Point, frame: int, detection: Detection) -> float:
    is_it = point.frame == frame and point.label.removesuffix("s") == detection.label.removesuffix("s")
    closeness = _closeness(point.x_px, point.y_px, detection) if is_it else 0.0
    return closeness if closeness >= NO_CREDIT else 0.0
