"""Tools, router and verifier: each score, each status, and that no tool's failure touches another component."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.detector import Detection, DetectorError, Pixels
from burnish.core.errors import TaskError
from burnish.core.task import Task
from burnish.graders.evidence import Action
from burnish.graders.gated import NOT_APPLICABLE
from burnish.graders.grounding import Component, Status, ToolResult, Verifier
from burnish.graders.grounding.answer_tools import number_in_unit, relative_accuracy
from burnish.graders.grounding.graders import GroundedGrader
from burnish.graders.grounding.matching import match
from burnish.graders.grounding.plan_tool import execute
from burnish.graders.grounding.regions import region_from_json
from burnish.graders.grounding.result import Case
from burnish.graders.grounding.router import default_tools
from burnish.testing.grader import GraderConformance, answered

DOG = {"labels": ["dog"], "region": {"box": [10, 10, 30, 30]}}
CAT = {"labels": ["cat"], "region": {"disc": [70, 70, 10]}}


def task(*, answer: str = "1", expected: Sequence[str] = ("point",), **grounding: Any) -> Task:
    data = {"expected": list(expected), "medium": {"width_px": 100, "height_px": 100, "frames": 20}, **grounding}
    return Task(prompt="?", reference={"answer": answer, "grounding": data})


ONE = task(objects=[DOG], others=[CAT])


def spatial(task_: Task, text: str) -> float | None:
    return Verifier().verify(task_, f"<think>{text}</think>1").component(Component.SPATIAL)[0]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("dog (20, 20)", 1.0),
        ("dogs (20, 20)", 1.0),
        ("", 0.0),
        ("cat (20, 20)", 0.0),
        ("dog (70, 70)", 0.0),
        ("dog (20, 20), dog (90, 10)", 2 / 3),
        ("dog (20, 20), dog (20, 20)", 1.0),
        ("dog (20, 20), cat (20, 20)", 0.0),
        ("dog (20, 20), dog (900, 10)", 2 / 3),
        ("dog (35, 20)", 0.6065),
        ("dog (50, 20)", 0.0),
    ],
)
def test_points(text: str, score: float) -> None:
    assert spatial(ONE, text) == pytest.approx(score, abs=1e-3)


def test_a_spray_of_points_earns_nothing() -> None:
    spray = ", ".join(f"dog ({x}, {y})" for x in range(5, 100, 10) for y in range(5, 100, 10))
    assert spatial(ONE, spray) == 0.0
    assert (spatial(ONE, ", ".join(f"dog ({20 + 3 * i}, 20)" for i in range(3))) or 0) < 0.67


def test_boxes_and_spans() -> None:
    boxes = task(expected=["box"], objects=[DOG])
    assert spatial(boxes, "dog [10, 10, 30, 30]") == 1.0
    assert spatial(boxes, "dog [0, 0, 100, 100]") == 0.0
    assert spatial(boxes, "dog [10, 10, 30, 25]") == pytest.approx(0.75)
    spans = task(expected=["span"], spans=[{"start_s": 2.0, "end_s": 6.0, "event": "bark"}])
    record = Verifier().verify(spans, "<think>bark <t>2.0-4.0</t></think>1")
    assert record.component(Component.TEMPORAL)[0] == pytest.approx(0.5)
    whole = Verifier().verify(spans, "<think>bark <t>0-20</t></think>1")
    assert whole.component(Component.TEMPORAL)[0] == pytest.approx(0.2)


def test_events_in_the_wrong_order_cost() -> None:
    two = task(expected=["span"], spans=[{"start_s": 0.0, "end_s": 4.0}, {"start_s": 3.0, "end_s": 8.0}])
    right = Verifier().verify(two, "<think><t>0-4</t> <t>3-8</t></think>1").component(Component.TEMPORAL)[0]
    assert right == 1.0


@pytest.mark.parametrize(
    "region",
    [
        {"box": [2, 2, 6, 6]},
        {"disc": [4, 4, 2]},
        {"polygon": [[2, 2], [6, 2], [6, 6], [2, 6]]},
        {"mask": {"left_px": 2, "top_px": 2, "rows": ["1111"] * 4}},
    ],
)
def test_regions(region: dict[str, Any]) -> None:
    found = region_from_json(region)
    assert found.distance_px(4, 4) == 0
    assert found.distance_px(4, 9) == pytest.approx(3.0)
    assert found.bounds == (2, 2, 6, 6)
    with pytest.raises(ValueError, match="region"):
        region_from_json({"blob": [1]})


@given(st.lists(st.integers(0, 8), max_size=7), st.lists(st.integers(0, 8), max_size=5), st.integers(0, 8))
def test_another_reference_never_raises_precision_for_nothing(cited: list[int], true: list[int], extra: int) -> None:
    """F1 lies in [0, 1], and a reference that matches nothing more lowers it."""
    equal = lambda a, b: float(a == b)  # noqa: E731
    before, after = match(cited, true, equal), match([*cited, extra], true, equal)
    assert 0.0 <= before.f1 <= 1.0
    if after.true_positives <= before.true_positives and before.f1 > 0:
        assert after.f1 < before.f1


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ({"answer": "cat", "choices": ["dog", "cat"]}, "B", 1.0),
        ({"answer": "cat", "choices": ["dog", "cat"]}, "(b)", 1.0),
        ({"answer": "cat", "choices": ["dog", "cat"]}, "B. cat", 1.0),
        ({"answer": "cat", "choices": ["dog", "cat"]}, "A or B", 0.0),
        ({"answer": "10", "answer_type": "numeric"}, "9", 0.8),
        ({"answer": "10", "answer_type": "numeric", "exact": True}, "9", 0.0),
        ({"answer": "120", "answer_type": "numeric", "unit": "cm"}, "1.2 m", 1.0),
        ({"answer": "120", "answer_type": "numeric", "unit": "cm"}, "120 kg", 0.0),
        ({"answer": "Paris"}, "paris.", 1.0),
        ({"answer": "1/2", "answer_type": "math"}, "\\frac{1}{2}", 1.0),
    ],
)
def test_answers(reference: dict[str, Any], answer: str, score: float) -> None:
    record = Verifier().verify(Task(prompt="?", reference=reference), answer)
    assert record.component(Component.ANSWER)[0] == pytest.approx(score)


def test_numbers() -> None:
    assert relative_accuracy(Fraction(5), Fraction(10)) == 0.0
    assert number_in_unit("5 parsecs", "m") is None


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("dog (20, 20)", "1", 1.0),
        ("dog (20, 20). So the answer is 2", "1", 0.0),
        ("There are 2 dogs. There are 3 dogs. dog (20, 20)", "1", 0.0),
        ("There are 2 dogs: dog (20, 20)", "1", 0.5),
        ("dog (20, 20), dog (25, 12)", "1", 0.0),
        ("dog (80, 80)", "1", 0.0),
        ("", "1", 0.0),
    ],
)
def test_consistency(text: str, answer: str, score: float) -> None:
    counted = task(objects=[DOG], counts=True)
    record = Verifier().verify(counted, f"<think>{text}</think>{answer}")
    assert record.component(Component.REASONING)[0] == pytest.approx(score)


PLAN = {
    "initial": ["on(apple, shelf)", "empty"],
    "goal": ["on(apple, table)"],
    "actions": {
        "take": {
            "parameters": ["x", "y"],
            "needs": ["on(x, y)", "empty"],
            "adds": ["has(x)"],
            "removes": ["on(x, y)", "empty"],
        },
        "put": {"parameters": ["x", "y"], "needs": ["has(x)"], "adds": ["on(x, y)", "empty"], "removes": ["has(x)"]},
    },
}


def test_plans_are_executed() -> None:
    right = [Action(verb="take", arguments=("apple", "shelf")), Action(verb="put", arguments=("apple", "table"))]
    assert execute(right, PLAN).reached == 1.0
    broken = execute([*right, Action(verb="take", arguments=("apple", "shelf"))], PLAN)
    assert (broken.legal, broken.problem) == (2, "step 3, take(apple, shelf): needs on(apple,shelf)")
    assert execute(right[1:], PLAN).reached == 0.0
    assert execute([], {**PLAN, "goal": ["empty"]}).reached == 0.0
    planned = task(expected=["plan"], plan=PLAN)
    record = Verifier().verify(
        planned, "<think><action>take(apple, shelf)</action><action>put(apple, table)</action></think>1"
    )
    assert record.component(Component.PROCESS)[0] == 1.0


@dataclass
class FakeDetector:
    """Finds a dog at one place; or breaks."""

    breaks: bool = False
    name: str = "fake"
    version: str = "1"
    true_positive_rate: float | None = 0.9
    false_positive_rate: float | None = 0.2

    def knows(self, label: str) -> bool:
        return label == "dog"

    def detect(self, image: Pixels, labels: Sequence[str]) -> Sequence[Detection]:
        if self.breaks:
            raise DetectorError("no weights")
        return [Detection(label="dog", left_px=10, top_px=10, right_px=30, bottom_px=30)]


UNMARKED = task(objects=[{"labels": ["dog"]}])
BLANK = Pixels(width_px=1, height_px=1, rgb=bytes(3))


def test_a_teacher_judges_where_nobody_marked_the_place() -> None:
    verifier = Verifier(detectors=(FakeDetector(),), images=lambda task_, frame: BLANK)
    score, weight = verifier.verify(UNMARKED, "<think>dog (20, 20)</think>1").component(Component.SPATIAL)
    assert (score, weight) == (1.0, pytest.approx(0.7))
    assert verifier.verify(UNMARKED, "<think>dog (80, 80)</think>1").component(Component.SPATIAL)[0] == 0.0
    assert verifier.verify(UNMARKED, "1").component(Component.SPATIAL)[0] == 0.0


@pytest.mark.parametrize(
    ("verifier", "status"),
    [
        (Verifier(), Status.UNAVAILABLE),
        (Verifier(detectors=(FakeDetector(),)), Status.UNAVAILABLE),
        (Verifier(detectors=(FakeDetector(breaks=True),), images=lambda task_, frame: BLANK), Status.ERROR),
        (Verifier(detectors=(FakeDetector(),), images=lambda task_, frame: BLANK, budget_ms=10), Status.UNAVAILABLE),
    ],
)
def test_a_teacher_that_cannot_judge_is_no_zero(verifier: Verifier, status: Status) -> None:
    record = verifier.verify(UNMARKED, "<think>dog (20, 20)</think>1")
    assert record.component(Component.SPATIAL)[0] is None
    assert [r.status for r in record.results if r.component is Component.SPATIAL] == [status]
    assert record.component(Component.ANSWER)[0] == 1.0


@dataclass
class Broken:
    name: str = "broken"
    version: str = "1"
    component: Component = Component.REASONING
    cost_ms: float = 0.1
    error: Exception = RuntimeError("boom")  # noqa: RUF009

    def applies(self, task_: Task, spec: Any) -> bool:
        return True

    def available(self, spec: Any, detectors: Any) -> str:
        return ""

    def verify(self, case: Case) -> ToolResult:
        raise self.error


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("x"), Status.ERROR), (TimeoutError(), Status.TIMEOUT)])
def test_a_broken_tool_changes_no_other_component(error: Exception, status: Status) -> None:
    whole = Verifier().verify(ONE, "<think>dog (20, 20)</think>1")
    record = Verifier(tools=(*default_tools(), Broken(error=error))).verify(ONE, "<think>dog (20, 20)</think>1")
    assert record.results[-1].status is status
    assert record.component(Component.REASONING)[0] is None
    for component in (Component.ANSWER, Component.SPATIAL):
        assert record.component(component) == whole.component(component)


@given(
    st.lists(
        st.sampled_from(["dog (20, 20)", "cat (1, 1)", "dog (nan, 3)", "There are 2 dogs.", "</think>", "<point", "7"]),
        max_size=6,
    )
)
def test_the_route_looks_at_the_task_alone(pieces: list[str]) -> None:
    """All members of a group get the same tools, whatever they write; a choice of mode waives nothing."""
    expected = [(r.tool, r.status) for r in Verifier().verify(ONE, "<think>dog (20, 20)</think>1").results]
    assert [(r.tool, r.status) for r in Verifier().verify(ONE, "".join(pieces)).results] == expected


def test_direct_mode_asks_for_no_evidence_and_thinking_mode_does() -> None:
    direct = task(objects=[DOG], mode="direct")
    assert Verifier().verify(direct, "1").grounding is None
    assert Verifier().verify(ONE, "1").grounding == 0.0
    assert Verifier().verify(direct, "1").format_score == 1.0
    assert Verifier().verify(ONE, "1").format_score == 0.0


def test_a_task_that_cannot_be_read_says_so() -> None:
    with pytest.raises(TaskError, match="grounding cannot be read"):
        Verifier().verify(task(objects=[{"labels": ["dog"], "region": {"box": [3, 3, 1, 1]}}]), "1")


def test_results_keep_their_contract() -> None:
    with pytest.raises(ValueError, match="status"):
        ToolResult(tool="x", component=Component.ANSWER, score=None)
    with pytest.raises(ValueError, match="status"):
        ToolResult(tool="x", component=Component.ANSWER, score=1.0, status=Status.ERROR)


class TestGroundedGrader(GraderConformance):
    make_grader = GroundedGrader
    right = ((ONE, "<think>dog (20, 20)</think>1"),)
    wrong = ((ONE, "<think>dog (20, 20)</think>2"), (ONE, "1"))


def test_components_as_grades() -> None:
    def grade(component: str, text: str) -> Any:
        return asyncio.run(GroundedGrader(component=component).grade(ONE, answered(ONE, text)))

    assert grade("spatial", "<think>dog (20, 20)</think>2").score == 1.0
    assert grade("answer", "<think>dog (20, 20)</think>2").score == 0.0
    assert grade("temporal", "1").cause == NOT_APPLICABLE
    assert grade("format", "1").score == 0.0
    with pytest.raises(ValueError, match="component"):
        GroundedGrader(component="luck")
