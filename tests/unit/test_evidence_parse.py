"""Evidence is read from every syntax that is accepted; what cannot be read is counted, never repaired."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.graders.evidence import Convention, Frame, Mode, Parsed, ParseSpec, parse
from burnish.testing.grader import HOSTILE_ANSWERS

FRAME = Frame(width_px=200, height_px=100, frames=30, fps=2.0)


def read(text: str, convention: Convention = Convention.ABSOLUTE) -> Parsed:
    return parse(text, ParseSpec(frame=FRAME, convention=convention))


@pytest.mark.parametrize(
    ("text", "convention", "places"),
    [
        ('<point x="50" y="40" alt="dog">dog</point>', Convention.ABSOLUTE, [("dog", 100.0, 40.0)]),
        (
            '<points x1="50" y1="40" x2="10.5" y2="0" alt="dog">dogs</points>',
            Convention.ABSOLUTE,
            [("dog", 100.0, 40.0), ("dog", 21.0, 0.0)],
        ),
        ('{"point_2d": [20, 30], "label": "The Dog"}', Convention.ABSOLUTE, [("dog", 20.0, 30.0)]),
        ('[{"point_2d": [500, 250], "label": "dog"}]', Convention.THOUSAND, [("dog", 100.0, 25.0)]),
        ("I see a brown dog (20, 30).", Convention.ABSOLUTE, [("brown dog", 20.0, 30.0)]),
        ("dog (50, 25)", Convention.PERCENT, [("dog", 100.0, 25.0)]),
        ("dog (0.5, 0.25)", Convention.UNIT, [("dog", 100.0, 25.0)]),
    ],
)
def test_points(text: str, convention: Convention, places: list[tuple[str, float, float]]) -> None:
    found = read(text, convention)
    assert [(p.label, p.x_px, p.y_px) for p in found.points] == places
    assert not found.malformed
    start, end = found.points[0].source
    assert 0 <= start < end <= len(text)


def test_boxes_frames_and_spans() -> None:
    found = read('{"bbox_2d": [10, 20, 80, 60], "label": "dog"} cat [1, 2, 3, 4], bird (5, 6)@2')
    assert [(b.label, b.left_px, b.bottom_px) for b in found.boxes] == [("dog", 10, 60), ("cat", 1, 4)]
    assert [(p.label, p.frame) for p in found.points] == [("bird", 2)]
    spans = read("door <t>3.2-5.0</t>, cup [00:03-00:05], then bell frames 12-20 and horn frame 0").spans
    assert [(s.event, s.start_s, s.end_s) for s in spans] == [
        ("door", 3.2, 5.0),
        ("cup", 3.0, 5.0),
        ("bell", 6.0, 10.5),
        ("horn", 0.0, 0.5),
    ]


def test_entities_claims_and_actions() -> None:
    found = read(
        '<entity>order 12</entity> <claim about="dog">two sleep</claim> There are 3 pears. <action>put(a, b)</action>'
    )
    assert [type(item).__name__ for item in found.evidence] == ["Entity", "Claim", "Claim", "Action"]
    assert [(c.about, c.count) for c in found.claims] == [("dog", None), ("pears", 3)]
    assert found.actions[0].arguments == ("a", "b")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dog (900, 5)", "outside"),
        ("dog (-3, 5)", "outside"),
        ("dog (nan, 5)", "not_a_number"),
        ("dog (inf, 5)", "not_a_number"),
        ("dog (1, 2, 3)", "arity"),
        ("dog (30, 20, 10, 5)", "empty"),
        ("dog (3, 4)@99", "outside"),
        ('<point x="oops" y="3" alt="dog">dog</point>', "not_a_number"),
        ('<point x="1" y="3" alt="dog">dog', "syntax"),
        ('{"point_2d": [1, 2, 3], "label": "dog"}', "arity"),
        ('{"point_2d": [1, 2, "label": "dog"}', "syntax"),
        ("<t>5.0-3.0</t>", "empty"),
        ("<t>soon</t>", "syntax"),
        ("frames 12-99", "outside"),
        ("<action>put the apple</action>", "syntax"),
    ],
)
def test_what_is_malformed_is_counted_and_not_guessed(text: str, reason: str) -> None:
    found = read(text)
    assert [item.reason for item in found.malformed] == [reason]
    assert not found.evidence
    assert not found.format_ok


def test_percent_where_pixels_are_due_is_not_repaired() -> None:
    assert read("dog (95, 95)").points[0].x_px == 95
    assert parse("dog (95, 95)", ParseSpec(frame=Frame(width_px=32, height_px=32))).malformed[0].reason == "outside"


@pytest.mark.parametrize(
    ("text", "mode", "answer", "problems"),
    [
        ("<think>dog (1, 2)</think> 3", Mode.THINK, "3", ()),
        ("dog (1, 2)</think>3", Mode.THINK, "3", ()),
        ("3", Mode.DIRECT, "3", ()),
        ("<think>never ends", Mode.THINK, None, ("think_unclosed", "no_answer")),
        ("<think>a</think><think>b</think>3", Mode.THINK, "3", ("think_repeated",)),
        ("<answer>3</answer>", Mode.DIRECT, "3", ()),
        ("<answer>3</answer> no, 4", Mode.DIRECT, None, ("text_after_answer",)),
        ("<answer>3</answer><answer>4</answer>", Mode.DIRECT, None, ("several_answers",)),
        ("\\boxed{3} or \\boxed{4}", Mode.DIRECT, None, ("several_answers",)),
        ("", Mode.DIRECT, None, ("no_answer",)),
    ],
)
def test_answers(text: str, mode: Mode, answer: str | None, problems: tuple[str, ...]) -> None:
    found = read(text)
    assert (found.mode, found.answer, found.problems) == (mode, answer, problems)


def test_the_conclusion_of_the_reasoning() -> None:
    assert read("<think>dog (1, 2). So the answer is 4</think>3").conclusion == "4"


@pytest.mark.parametrize(
    ("words", "answer", "conclusion"),
    [
        ("Hence 4", "3", "4"),
        ("Therefore, it must be blue", "red", "blue"),
        ("That makes it 4.", "3", "4"),
        ("I conclude that it is in the top left", "top left", "top left"),
        ("I conclude no", "yes", "no"),
        ("My answer has to be 4 or 3", "3", "4 or 3"),
        ("Therefore it is left of it", "yes", ""),
        ("This means there are more dogs than cats in the picture", "red", ""),
        ("Thus there are two", "2", ""),
        ("Hence 4. So it is 3", "3", "3"),
    ],
)
def test_conclusions_in_other_words_and_sentences_that_are_none(words: str, answer: str, conclusion: str) -> None:
    assert read(f"<think>dog (1, 2). {words}</think>{answer}").conclusion == conclusion


@pytest.mark.parametrize("text", [*HOSTILE_ANSWERS, "(" * 19_000, "<point " * 2800, "a (1, 2) " * 2200, "[1," * 6000])
def test_every_text_is_read_quickly(text: str) -> None:
    began_s = time.perf_counter()
    read(text)
    assert time.perf_counter() - began_s < 0.5


@given(
    x=st.floats(0, 1, allow_nan=False),
    y=st.floats(0, 1, allow_nan=False),
    convention=st.sampled_from(list(Convention)),
    size=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    shown=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
)
def test_coordinates_come_back(
    x: float, y: float, convention: Convention, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    """The resize plan has an exact inverse, in every convention."""
    frame = Frame(width_px=size[0], height_px=size[1], shown_width_px=shown[0], shown_height_px=shown[1])
    place = x * size[0], y * size[1]
    back = frame.to_pixels(*frame.from_pixels(*place, convention), convention)
    assert all(math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-9) for a, b in zip(place, back, strict=True))


@given(x=st.integers(0, 200), y=st.integers(0, 100), label=st.sampled_from(["dog", "red circle", "big old oak"]))
def test_what_is_written_is_read(x: int, y: int, label: str) -> None:
    (point,) = read(f"<think>there is a {label} ({x}, {y})</think>1").points
    assert (point.label, point.x_px, point.y_px) == (label, x, y)


@given(st.text(max_size=300))
def test_parsing_is_total(text: str) -> None:
    read(text)
