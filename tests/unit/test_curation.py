"""Curation: references are found, drawn and cited; the filter keeps the right and grounded and names what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from burnish.core.detector import Detection, DetectorError, Pixels
from burnish.core.errors import TaskError
from burnish.core.images import SHELF, ImageShelf, image_part, png_bytes
from burnish.core.message import TextPart
from burnish.core.task import Task
from burnish.environments.scenes import Scenes
from burnish.environments.scenes.traces import trace
from burnish.graders.curation import (
    Answers,
    Example,
    FilterSpec,
    asked,
    cited,
    example_from_row,
    example_to_row,
    filtered,
    found,
    overlaid,
    reference_of,
)
from burnish.graders.curation.filter import Fault
from burnish.graders.curation.overlay import marks_of
from burnish.graders.curation.pixels import decoder
from burnish.graders.curation.references import LabelTeacher
from burnish.integrations.shape_questions import ShapeTeacher

pytest.importorskip("PIL")

TEACHER, DECODE = ShapeTeacher(), decoder(SHELF)
BLIND = FilterSpec(answers=Answers.TEACHER)


def made(n: int = 16, **options: object) -> list[Task]:
    return list(Scenes(**{"heldout": n, **options}).tasks("heldout", Random(5)))  # type: ignore[arg-type]


def blind(example: Example, spec: FilterSpec = BLIND) -> set[Fault]:
    return set(filtered(example, spec, teacher=TEACHER, decode=DECODE).faults)


def test_what_is_written_from_the_truth_passes_with_and_without_it() -> None:
    for task in made(32):
        example = cited(reference_of(task))
        assert filtered(example, FilterSpec()).kept
        assert not blind(example), example.response


@pytest.mark.parametrize(
    ("mistake", "faults"),
    [
        ("wrong_answer", {Fault.ANSWER}),
        ("moved_point", {Fault.PLACE, Fault.SPAN}),
        ("swapped_label", {Fault.PLACE, Fault.SPAN}),
        ("contradiction", {Fault.CONCLUSION}),
        ("no_evidence", {Fault.FORM}),
    ],
)
def test_every_mistake_is_dropped_and_named_with_the_truth_withheld(mistake: str, faults: set[Fault]) -> None:
    for task in made(16):
        found_faults = blind(replace(reference_of(task), response=trace(task, Random(3), mistake)))
        assert found_faults & faults, (mistake, found_faults)


def test_with_a_teacher_the_examples_own_truth_is_not_read() -> None:
    right, other = made(2, kinds=["where"])
    example = cited(reference_of(right))
    poisoned = replace(example, reference=reference_of(other).reference, answer="nowhere")
    assert not filtered(poisoned, FilterSpec()).kept
    assert not blind(poisoned)


def test_whose_answer_counts() -> None:
    (task,) = made(1, kinds=["attribute"])
    example = cited(reference_of(task))
    lied = replace(example, answer="grey")
    assert not blind(lied)
    assert blind(lied, FilterSpec(answers=Answers.DATA)) == {Fault.ANSWER}
    assert blind(lied, FilterSpec(answers=Answers.BOTH)) == {Fault.UNCHECKED}
    assert not blind(example, FilterSpec(answers=Answers.BOTH))
    assert blind(replace(example, answer=""), FilterSpec(answers=Answers.DATA)) == {Fault.UNCHECKED}


def test_a_conclusion_in_unforeseen_words_is_dropped_where_closing_words_have_to_answer() -> None:
    (task,) = made(1, kinds=["attribute"])
    example = cited(reference_of(task))
    answer = example.answer
    for words, kept in ((f" In short, {answer}!", True), (" In short, grey.", False), ("", True)):
        said = replace(example, response=example.response.replace("</think>", f".{words}</think>"))
        assert not blind(said)
        assert (not blind(said, replace(BLIND, closing=True))) is kept


def test_every_citation_has_to_be_borne_out_and_everything_cited() -> None:
    (task,) = made(1, kinds=["inventory"], look={"size_px": 48, "least": 3, "most": 3})
    example = cited(reference_of(task))
    first, *rest = example.response.removeprefix("<think>").split("), ")
    assert Fault.MISSING in blind(replace(example, response=f"<think>{'), '.join(rest)}"))
    more = example.response.replace("<think>", "<think>red circle (0, 0), ")
    verdict = filtered(replace(example, response=more), BLIND, teacher=TEACHER, decode=DECODE)
    assert Fault.PLACE in verdict.faults
    assert [one.ok for one in verdict.cited] == [False, True, True, True]
    assert first


def test_boxes_are_written_and_checked_by_their_overlap() -> None:
    part = image_part(png_bytes(20, 20, bytes(1200)))
    medium = {"width_px": 20, "height_px": 20}
    gold = {"labels": ["dog"], "region": {"box": [2, 2, 12, 12]}}
    reference = {"answer": "1", "grounding": {"expected": ["box"], "medium": medium, "objects": [gold]}}
    example = Example(id="a", prompt=(part, TextPart(text="How many?")), answer="1", reference=reference, by="truth")
    assert cited(example).response == "<think>dog [2, 2, 12, 12]</think>1"
    for right, ok in ((12, True), (11, True), (8, False)):
        verdict = filtered(replace(example, response=f"<think>dog [2, 2, {right}, 12]</think>1"), FilterSpec())
        assert (verdict.kept, [one.ok for one in verdict.cited]) == (ok, [ok])


def test_what_the_teacher_cannot_check_is_dropped_as_such() -> None:
    (task,) = made(1, kinds=["where"])
    example = cited(reference_of(task))
    unread = replace(example, prompt=(*example.images, TextPart(text="Why?")))
    assert blind(unread) == {Fault.UNCHECKED}
    assert filtered(replace(example, reference={}), FilterSpec()).faults == (Fault.UNCHECKED,)
    assert filtered(replace(example, response=""), FilterSpec()).faults == (Fault.FORM,)


def test_a_bare_answer_is_kept_where_the_task_asks_for_no_more() -> None:
    (task,) = made(1, kinds=["where"], direct=1.0)
    example = cited(reference_of(task))
    assert example.response == task.reference["answer"]
    assert filtered(example, FilterSpec()).kept
    assert filtered(replace(example, response="nowhere"), FilterSpec()).faults == (Fault.ANSWER,)


def test_references_are_drawn_where_they_are() -> None:
    (task,) = made(1, kinds=["where"])
    example = overlaid(reference_of(task), SHELF)
    (overlay,) = example.overlays
    before, after = (DECODE(part) for part in (example.images[0], overlay))
    assert after.width_px == 12 * before.width_px == 384
    (mark,) = marks_of(example)
    left, top, right, bottom = (round(12 * value) for value in mark.region.bounds)  # type: ignore[union-attr]
    enlarged = [
        after.rgb[3 * (y * 384 + x) : 3 * (y * 384 + x) + 3]
        == before.rgb[3 * (y // 12 * 32 + x // 12) : 3 * (y // 12 * 32 + x // 12) + 3]
        for y in range(384)
        for x in range(384)
    ]
    changed = {(index % 384, index // 384) for index, same in enumerate(enlarged) if not same}
    assert (left - 1, (top + bottom) // 2) in changed
    assert ((left + right) // 2, (top + bottom) // 2) not in changed
    assert len(changed) < 0.1 * 384 * 384


def test_a_model_is_shown_the_overlays_and_told_the_references() -> None:
    (task,) = made(1, kinds=["relation"])
    example = overlaid(reference_of(task), SHELF)
    shown = asked(example)
    assert [part.sha256 for part in shown.parts if not isinstance(part, TextPart)] == [example.overlays[0].sha256]
    for label in {item["labels"][0] for item in task.reference["grounding"]["objects"]}:
        assert f". {label} (" in shown.prompt_text
    assert shown.prompt_text.endswith(task.prompt_text)
    assert task.reference["answer"] not in shown.prompt_text.split(task.prompt_text)[0].split()


class _Dots:
    name, version = "dots", "1"
    true_positive_rate = false_positive_rate = None

    def knows(self, label: str) -> bool:
        return label in ("dot", "comma")

    def detect(self, image: Pixels, labels: list[str]) -> list[Detection]:
        return [Detection(label="dot", left_px=2, top_px=2, right_px=6, bottom_px=6)] if "dot" in labels else []


def test_any_detector_finds_what_the_data_name() -> None:
    part = image_part(png_bytes(8, 8, bytes(192)))
    example = Example(id="a", prompt=(part, TextPart(text="How many dots?")), answer="1", labels=("dot",))
    teacher = LabelTeacher(_Dots())
    read = found(example, teacher, DECODE)
    assert read.by == "dots 1"
    assert "answer" not in read.reference
    assert cited(read).response == "<think>dot (4, 4)</think>1"
    good, bad = (replace(example, response=f"<think>dot ({x}, 4)</think>1") for x in (3, 7))
    assert filtered(good, FilterSpec(), teacher=teacher, decode=DECODE).kept
    assert not filtered(bad, FilterSpec(), teacher=teacher, decode=DECODE).kept
    for labels, said in ((("dog",), "does not know"), (("comma",), "finds no comma"), ((), "needs names")):
        with pytest.raises(DetectorError, match=said):
            found(replace(example, labels=labels), teacher, DECODE)
    with pytest.raises(TaskError, match="let a model write"):
        cited(replace(read, answer=""))


def test_a_line_holds_all_of_an_example(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    example = replace(cited(overlaid(reference_of(made(1)[0]), SHELF)), system="Look.", labels=("red",))
    for part in (*example.images, *example.overlays):
        ImageShelf(tmp_path / "images").put(SHELF.get(part.sha256))
    assert example_from_row(example_to_row(example), path, 1, ImageShelf()) == example


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "expected"),
        ({"messages": []}, "one of the user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "one of the user"),
        ({"messages": [{"role": "user", "content": "no image"}]}, "needs an image"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "roles"),
    ],
)
def test_a_line_that_is_no_example_is_named(row: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=f":7: .*{said}"):
        example_from_row(row, tmp_path / "x.jsonl", 7, ImageShelf())


def test_a_task_without_grounding_has_no_references() -> None:
    with pytest.raises(TaskError, match="let a teacher"):
        reference_of(Task(prompt="2 + 2?", reference={"answer": "4"}))
