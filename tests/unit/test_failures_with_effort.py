"""The claim about failures that come with effort: how often its grader fails, and what its verdict is made of."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from array import array
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from burnish.core.grade import Grade
from burnish.core.message import Message, ToolCall
from burnish.core.task import Task
from burnish.core.trajectory import Node, Trajectory
from burnish.testing.grader import answered

FOLDER = Path(__file__).resolve().parents[2] / "claims" / "failures_with_effort"
TASK = Task(prompt="Where?", reference={"answer": "left"})


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"failures_with_effort_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


effort, run = loaded("effort"), loaded("run")


def episode(seed: int, *, looks: bool, phase: str = "rl") -> Trajectory:
    played = answered(TASK, "left")
    calls = (ToolCall(id="c", name="look", arguments={"item": 1}),) if looks else ()
    node = Node(
        parent=-1,
        messages=(Message.assistant("left", calls),),
        token_ids=array("i"),
        action_mask=array("b"),
        logprobs=array("f"),
        versions=array("i"),
        is_action=True,
    )
    return replace(played, id=f"{phase}/000001/0000/{seed:02d}", seed=seed, nodes=(node,))


def graded(grader: object, trajectory: Trajectory) -> Grade:
    return asyncio.run(grader.grade(TASK, trajectory))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("looks", "rate"), [(True, 0.7), (False, 0.3)])
def test_the_service_is_down_as_often_as_it_says(looks: bool, rate: float) -> None:
    grader = effort.FailingGrader(full=0.7, shortcut=0.3)
    found = [graded(grader, episode(seed, looks=looks)) for seed in range(1000)]
    assert sum(grade.score is None for grade in found) / 1000 == pytest.approx(rate, abs=0.05)
    assert {grade.score for grade in found} == {None, 1.0}
    zeros = effort.FailingGrader(full=0.7, shortcut=0.3, as_zero=True)
    as_zero = [graded(zeros, episode(seed, looks=looks)) for seed in range(1000)]
    assert [grade.score for grade in as_zero] == [grade.score or 0.0 for grade in found], "the same ones fail"


def test_evaluations_never_fail() -> None:
    grader = effort.FailingGrader(full=1.0, shortcut=1.0)
    assert graded(grader, episode(0, looks=True)).score is None
    assert graded(grader, episode(0, looks=True, phase="eval")).score == 1.0


@pytest.mark.parametrize(
    ("masked", "zero", "verdict"),
    [
        (0.96, 0.60, "reproduced"),
        (0.92, 0.60, "mixed"),
        (0.97, 0.85, "mixed"),
        (0.80, 0.60, "not reproduced"),
        (0.97, 0.93, "not reproduced"),
    ],
)
def test_the_verdict_is_the_criterion(masked: float, zero: float, verdict: str) -> None:
    ends = {"fault_free": 0.98, "masked": masked, "zero": zero, "masked_independent": 0.97, "zero_independent": 0.96}
    arms = {name: [{"success": value, "looked": 1.0, "step": 60, "trained": 1}] * 2 for name, value in ends.items()}
    found = run.reading(arms)
    assert found.verdict == verdict
    assert found.figures["gaps"]["zero"]["mean"] == pytest.approx(zero - 0.98)
