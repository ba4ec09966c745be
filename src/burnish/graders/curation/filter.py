"""Stage 4: keep what is correct and grounded.

A trace is kept where its answer is right, every citation is borne out, nothing that matters is left uncited, and the
reasoning agrees with itself and with the answer.  What the answer rests on comes from a teacher that looks at the
images (truth withheld), or from the references that the example carries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from burnish.core.detector import DetectorError, QuestionTeacher
from burnish.core.images import ImageError
from burnish.graders.curation.example import Example
from burnish.graders.curation.references import Decode, found
from burnish.graders.evidence import Mode
from burnish.graders.evidence.parse import holds
from burnish.graders.grounding.result import Component, Status, ToolResult
from burnish.graders.grounding.spatial_tools import SAME_PLACE, BoxOverlap, PointInRegion, settled
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.grounding.temporal_tool import TemporalOverlap, settled_spans
from burnish.graders.grounding.verifier import Record, Verifier
from burnish.graders.rules import normalised


class Answers(StrEnum):
    """Whose answer is right.

    data: the one beside the question.  teacher: the teacher's, the data's is not looked at.  both: where they agree.
    """

    DATA = "data"
    TEACHER = "teacher"
    BOTH = "both"


class Fault(StrEnum):
    """Why a trace is dropped."""

    UNCHECKED = "unchecked"
    FORM = "form"
    ANSWER = "answer"
    CONCLUSION = "conclusion"
    REASONING = "reasoning"
    PLACE = "place"
    SPAN = "span"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSpec:
    """What passes.  `FilterSpec(answers=Answers.TEACHER)`

    answer_type: how answers are compared: exact, numeric or math.  least_credit: what each point has to earn, in
    (0, 1]: one in its region earns 1, one a quarter of its size beside it .61.  least_overlap: of boxes and stretches
    of time (IoU).  closing: words after the last citation have to hold the answer; drops conclusions in wordings that
    nobody foresaw, and traces that end in other words.
    """

    answers: Answers = Answers.DATA
    answer_type: str = "exact"
    least_credit: float = 1.0
    least_overlap: float = 0.75
    closing: bool = False

    def __post_init__(self) -> None:
        for name in ("least_credit", "least_overlap"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} lies in (0, 1], got {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cited:
    """A reference of a trace in one image.  `Cited(label="red circle", bounds=(3.0, 4.0, 3.0, 4.0), frame=0, ok=False)`

    bounds: left, top, right, bottom in pixels of the image, without extent for a point; the whole image for each one in
    a stretch of time.  ok: it is borne out.
    """

    label: str
    bounds: tuple[float, float, float, float]
    frame: int
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`Verdict(faults=(Fault.PLACE,), reasons=("1 of 1 citations are not borne out",))`

    faults, reasons: code and words of each reason to drop it.  cited: what it points at.  checked: the reference that
    it was held against.
    """

    faults: tuple[Fault, ...] = ()
    reasons: tuple[str, ...] = ()
    cited: tuple[Cited, ...] = ()
    checked: Example | None = field(default=None, repr=False)

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """What a line of a file holds of it."""
        data: dict[str, Any] = {
            "kept": self.kept,
            "faults": [fault.value for fault in self.faults],
            "reasons": list(self.reasons),
            "cited": [
                {"label": one.label, "bounds": [round(at, 2) for at in one.bounds], "frame": one.frame, "ok": one.ok}
                for one in self.cited
            ],
        }
        if self.checked is not None:
            data |= {"reference": dict(self.checked.reference), "by": self.checked.by}
        return data


def filtered(
    example: Example, spec: FilterSpec, *, teacher: QuestionTeacher | None = None, decode: Decode | None = None
) -> Verdict:
    """The verdict on an example's trace.

    With a teacher the example's own reference is not read: the teacher gets images, question and labels, and what it
    finds is the reference.  decode: the pixels of an image, needed with a teacher.
    """
    if not example.response:
        return Verdict(faults=(Fault.FORM,), reasons=("there is no trace",))
    checked = example
    if teacher is not None:
        if decode is None:
            raise ValueError("a teacher looks at images: give decode")
        try:
            checked = found(replace(example, reference={}, by=""), teacher, decode)
        except (DetectorError, ImageError) as error:
            return Verdict(faults=(Fault.UNCHECKED,), reasons=(str(error),))
    if "grounding" not in checked.reference:
        return Verdict(faults=(Fault.UNCHECKED,), reasons=("nothing says what the answer rests on",))
    answer, problem = _answer(checked, spec.answers)
    if problem:
        return Verdict(faults=(Fault.UNCHECKED,), reasons=(problem,), checked=checked)
    reference = {**checked.reference, "answer": answer, "answer_type": spec.answer_type}
    task = example.task(reference)
    return _verdict(
        Verifier().verify(task, example.response), GroundingSpec.of(task), replace(checked, reference=reference), spec
    )


def _answer(checked: Example, whose: Answers) -> tuple[str, str]:
    """The right answer, or why there is none."""
    data, teacher = checked.answer, str(checked.reference.get("answer", ""))
    if whose is Answers.DATA:
        return data, "" if data else "the data say no answer"
    if not teacher:
        return "", "the teacher gives no answer"
    if whose is Answers.BOTH and normalised(data) != normalised(teacher):
        return "", f"the data say {data!r}, the teacher {teacher!r}"
    return teacher, ""


def _verdict(record: Record, spec: GroundingSpec, checked: Example, limits: FilterSpec) -> Verdict:
    """Every fault that the record shows."""
    found_faults: list[tuple[Fault, str]] = []
    parsed = record.parsed
    if record.format_score < 1.0:
        wrong_mode = f"the trace is in {parsed.mode} mode" if parsed.mode is not spec.mode else ""
        malformed = [f"{item.text!r} is {item.reason}" for item in parsed.malformed]
        found_faults.append((Fault.FORM, "; ".join([wrong_mode, *parsed.problems, *malformed]).strip("; ")))
    for result in record.results:
        if result.status is not Status.OK:
            found_faults.append((Fault.UNCHECKED, f"{result.tool}: {result.status} {result.detail.get('problem', '')}"))
        elif result.component is Component.ANSWER and (result.score or 0.0) < 1.0:
            right = checked.reference["answer"]
            found_faults.append((Fault.ANSWER, f"the answer is {right!r}, not {parsed.answer!r}"))
        elif result.component is Component.REASONING:
            found_faults += _reasoning(result, record)
        elif result.component is Component.TEMPORAL:
            found_faults += _unmatched(result, Fault.SPAN, limits.least_overlap)
        elif result.component is Component.SPATIAL:
            is_box = result.tool == BoxOverlap().name
            found_faults += _unmatched(result, Fault.PLACE, limits.least_overlap if is_box else limits.least_credit)
    if limits.closing and not found_faults and not _closes(record):
        found_faults.append((Fault.CONCLUSION, f"it ends in words without the answer {parsed.answer!r}"))
    return Verdict(
        faults=tuple(dict.fromkeys(fault for fault, _ in found_faults)),
        reasons=tuple(text for _, text in found_faults),
        cited=_pointed(record, spec, limits) if spec.mode is Mode.THINK else (),
        checked=checked,
    )


def _closes(record: Record) -> bool:
    """Whether the words after the last citation, where there are some, hold the answer."""
    parsed = record.parsed
    last = max((item.source[1] for item in parsed.evidence), default=0)
    words = re.sub(r"[^\w-]+", " ", parsed.reasoning[last:]).strip()
    return not words or holds(words, parsed.answer or "")


def _reasoning(result: ToolResult, record: Record) -> list[tuple[Fault, str]]:
    """What the rules of consistency found; missing evidence is found by the tools for places and times."""
    parsed, detail = record.parsed, result.detail
    if detail["broken"] == "other_conclusion":
        return [(Fault.CONCLUSION, f"the reasoning concludes {parsed.conclusion!r}, the answer is {parsed.answer!r}")]
    if detail["broken"] == "contradiction":
        return [(Fault.CONCLUSION, "two statements contradict each other")]
    texts = {
        "count": f"the answer {parsed.answer!r} is not the number of things cited",
        "named": f"{parsed.answer!r} was not cited",
        "claims": "a number that the reasoning states is not that of the things cited",
    }
    return [(Fault.REASONING, text) for rule, text in texts.items() if detail.get(rule) is False]


def _unmatched(result: ToolResult, fault: Fault, least: float) -> list[tuple[Fault, str]]:
    """Citations that are not borne out, and references that nothing cites."""
    detail = result.detail
    good = sum(credit >= least for _, _, credit in detail["matched"])
    n_cited, n_true = detail["n_cited"], detail["n_true"]
    faults = []
    if good < n_cited:
        faults.append((fault, f"{n_cited - good} of {n_cited} citations are not borne out"))
    if good < n_true:
        faults.append((Fault.MISSING, f"{n_true - good} of {n_true} references are not cited"))
    return faults


def _pointed(record: Record, spec: GroundingSpec, limits: FilterSpec) -> tuple[Cited, ...]:
    """Every reference of the trace, and whether it is borne out."""
    matched = {result.tool: result.detail.get("matched", ()) for result in record.results}
    points, boxes, spans = record.parsed.points, record.parsed.boxes, record.parsed.spans
    clear, _ = settled(points, SAME_PLACE * math.hypot(spec.frame.width_px, spec.frame.height_px))
    clear_spans, _ = settled_spans(spans)

    def good(tool: str, cited: Sequence[Any], least: float) -> list[Any]:
        return [cited[index] for index, _, credit in matched.get(tool, ()) if credit >= least]

    good_points = good(PointInRegion().name, clear, limits.least_credit)
    good_boxes = good(BoxOverlap().name, boxes, limits.least_overlap)
    good_spans = good(TemporalOverlap().name, clear_spans, limits.least_overlap)
    found = [
        Cited(label=p.label, bounds=(p.x_px, p.y_px, p.x_px, p.y_px), frame=p.frame, ok=p in good_points)
        for p in points
    ]
    found += [
        Cited(label=b.label, bounds=(b.left_px, b.top_px, b.right_px, b.bottom_px), frame=b.frame, ok=b in good_boxes)
        for b in boxes
    ]
    whole = (0.0, 0.0, spec.frame.width_px, spec.frame.height_px)
    found += [
        Cited(label=span.event, bounds=whole, frame=frame, ok=span in good_spans)
        for span in spans
        for frame in range(spec.frame.frames)
        if span.start_s <= frame / spec.frame.fps < span.end_s
    ]
    return tuple(found)
