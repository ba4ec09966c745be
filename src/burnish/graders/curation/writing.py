"""Stage 3: traces that cite the references: from the references themselves, or from a model that is asked for them."""

from __future__ import annotations

from dataclasses import replace

from burnish.core.errors import TaskError
from burnish.core.message import TextPart
from burnish.core.task import Task
from burnish.graders.curation.example import Example
from burnish.graders.curation.overlay import marks_of
from burnish.graders.evidence import Convention, Mode
from burnish.graders.grounding.regions import place_in
from burnish.graders.grounding.spec import Expected, GroundingSpec

SCRIPT = "references"

INSTRUCTIONS = (
    "Think step by step inside <think> and </think>, then give the answer alone.  Cite each thing where you use it, "
    "with its name and a place on it, and nothing that you do not use."
)


def cited(example: Example) -> Example:
    """The example with the shortest trace that cites every reference, from left to right, and answers.

    `<think>red circle (12, 20), blue square (5, 7)</think>yes`.  Raises TaskError where nothing says the answer or
    what it rests on.
    """
    if "grounding" not in example.reference:
        raise TaskError(f"{example.id}: it has no references; find them first")
    answer = example.answer or str(example.reference.get("answer", ""))
    if not answer:
        raise TaskError(f"{example.id}: neither the data nor the teacher say the answer; let a model write the trace")
    spec = GroundingSpec.of(example.task())
    body = ", ".join(_citations(example, spec))
    response = answer if spec.mode is Mode.DIRECT else f"<think>{body}</think>{answer}"
    return replace(example, response=response, writer=SCRIPT)


def asked(example: Example) -> Task:
    """What a model is shown: the overlays where there are some, the references in words, and the question."""
    spec = GroundingSpec.of(example.task())
    shown = example.overlays or example.images
    lines = [f"{number}. {text}" for number, text in enumerate(_citations(example, spec), 1)]
    listed = "Marked, in pixels of the original image:\n" + "\n".join(lines) + "\n\n" if lines else ""
    words = f"{listed}{INSTRUCTIONS}\n\n{example.question}"
    return Task(prompt=(*shown, TextPart(text=words)), id=example.id)


def _citations(example: Example, spec: GroundingSpec) -> list[str]:
    """The references as a response writes them."""
    many = len(example.images) > 1
    places: list[str] = []
    for mark in marks_of(example):
        if mark.region is None:
            continue  # A stretch of time, which is written as one below.
        where = f"@{mark.frame + spec.frame.first_frame}" if many else ""
        if Expected.BOX in spec.expected and Expected.POINT not in spec.expected:
            left, top, right, bottom = mark.region.bounds
            places.append(f"{mark.label} [{_said(spec, left, top)}, {_said(spec, right, bottom)}]{where}")
        else:
            places.append(f"{mark.label} ({_said(spec, *place_in(mark.region))}){where}")
    for span in spec.spans:
        first = round(span.start_s * spec.frame.fps) + spec.frame.first_frame
        last = round(span.end_s * spec.frame.fps) + spec.frame.first_frame - 1
        whole = spec.frame.frames > 1
        text = f"frames {first}-{last}" if whole else f"<t>{span.start_s:g}-{span.end_s:g}</t>"
        places.append(f"{span.event} {text}")
    return places


def _said(spec: GroundingSpec, x_px: float, y_px: float) -> str:
    """A place as a pair of numbers: a pixel by its own, shares with a digit more than they need."""
    x, y = spec.frame.from_pixels(x_px, y_px, spec.convention)
    if spec.convention is Convention.ABSOLUTE:
        return f"{int(x)}, {int(y)}"
    digits = 4 if spec.convention is Convention.UNIT else 1
    return f"{round(x, digits):g}, {round(y, digits):g}"
