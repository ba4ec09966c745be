"""Stage 1: what the answer to a question rests on, from the data's own truth or from a teacher that looks.

Both give the reference of a task (`docs/grounding.md`), which graders read; a teacher's says so in `by`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from burnish.core.detector import Detector, DetectorError, Located, Pixels, QuestionTeacher, Reading
from burnish.core.errors import TaskError
from burnish.core.message import ImagePart
from burnish.core.task import Task
from burnish.graders.curation.example import Example
from burnish.graders.evidence.syntax import clean_label
from burnish.graders.grounding.regions import region_to_json
from burnish.graders.grounding.spec import GroundingSpec
from burnish.graders.grounding.teacher_tool import region_of

TRUTH = "truth"

Decode = Callable[[ImagePart], Pixels]
"""The pixels of an image; raises DetectorError or ImageError where there are none."""


def reference_of(task: Task) -> Example:
    """The example of a task whose reference says what its answer rests on.

    Raises TaskError for a task without `reference["grounding"]`, or without images.
    """
    if "grounding" not in task.reference:
        raise TaskError(f"task {task.id} says nothing about grounding; let a teacher find the references")
    GroundingSpec.of(task)
    example = Example(
        id=task.id,
        prompt=task.parts,
        system=task.system,
        answer=str(task.reference.get("answer", "")),
        reference={key: task.reference[key] for key in ("answer", "answer_type", "grounding") if key in task.reference},
        by=TRUTH,
        tags=task.tags,
    )
    if not example.images:
        raise TaskError(f"task {task.id} shows no image")
    return example


def found(example: Example, teacher: QuestionTeacher, decode: Decode) -> Example:
    """The example with the references that a teacher finds; it sees images, question and labels, nothing else.

    Raises DetectorError where the teacher cannot say.
    """
    reading = teacher.read([decode(part) for part in example.images], example.question, example.labels)
    if not reading.things and reading.frames is None:
        raise DetectorError(f"{teacher.name} finds nothing that the answer could rest on")
    grounding: dict[str, Any] = {
        "mode": "think",
        "expected": ["point"] if reading.frames is None else ["span"],
        "medium": medium_of(example),
        "counts": reading.counts,
        "names": reading.names,
    }
    if reading.frames is not None:
        first, last = reading.frames
        fps = grounding["medium"]["fps"]
        grounding["spans"] = [{"start_s": first / fps, "end_s": (last + 1) / fps, "event": reading.event}]
    else:
        grounding["objects"] = [_object(item) for item in reading.things]
        grounding["others"] = [_object(item) for item in reading.others]
    reference: dict[str, Any] = {"answer_type": "exact", "grounding": grounding}
    if reading.answer is not None:
        reference["answer"] = reading.answer
    return replace(example, reference=reference, by=f"{teacher.name} {teacher.version}")


def medium_of(example: Example) -> dict[str, Any]:
    """Size and number of the images, numbered from 1, a second each."""
    first = example.images[0]
    return {
        "width_px": first.width_px,
        "height_px": first.height_px,
        "frames": len(example.images),
        "fps": 1.0,
        "first_frame": 1,
    }


def _object(item: Located) -> dict[str, Any]:
    region = region_to_json(region_of(item.detection))
    return {"labels": [clean_label(item.detection.label)], "region": region, "frame": item.frame}


class LabelTeacher:
    """A `QuestionTeacher` over any detector: the things that the data's labels name, wherever they are found.

    It gives no answer.  A label that is found nowhere, or that the detector does not know, is a DetectorError.
    """

    def __init__(self, detector: Detector) -> None:
        self.name, self.version, self._detector = detector.name, detector.version, detector

    def read(self, images: Sequence[Pixels], question: str, labels: Sequence[str] = ()) -> Reading:
        """Every detection of every label."""
        if not labels:
            raise DetectorError(f"{self.name} needs names to look for: give each line its labels")
        unknown = [label for label in labels if not self._detector.knows(label)]
        if unknown:
            raise DetectorError(f"{self.name} does not know {unknown[0]!r}")
        things = tuple(
            Located(detection=detection, frame=frame)
            for frame, image in enumerate(images)
            for detection in self._detector.detect(image, list(labels))
        )
        missing = set(labels) - {item.detection.label for item in things}
        if missing:
            raise DetectorError(f"{self.name} finds no {', '.join(sorted(missing))}")
        return Reading(things=things, counts=question.lower().lstrip().startswith("how many"))
