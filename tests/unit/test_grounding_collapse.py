"""What the claim about grounding, and the benchmark of noisy teachers, conclude from figures that are made up."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.environments.scenes import Scenes
from burnish.environments.scenes.traces import trace
from burnish.store.rows import Fate, StoredTrajectory
from burnish.testing.grader import answered

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports a file of the repository as a module of its own."""
    monkeypatch.syspath_prepend(str(ROOT / "claims"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def made(path: str) -> ModuleType:
        label = path.removesuffix(".py").replace("/", "_")
        spec = importlib.util.spec_from_file_location(label, ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, label, module)
        spec.loader.exec_module(module)
        return module

    return made


def figures(accuracy: float, grounding: float) -> dict[str, float]:
    return {"accuracy": accuracy, "grounding": grounding, "citing": 0.5, "grounding_given_cited": 0.4, "causal": 0.3}


def seeds(outcome: tuple[float, float], gated: tuple[float, float], warm: float = 0.3) -> list[dict]:
    """Three seeds around these accuracies and groundings with shortcuts."""
    return [
        {
            "warm": figures(0.55, warm + shift),
            "plain-outcome": figures(0.6, 0.3 + shift),
            "plain-gated": figures(0.6, 0.4 - shift),
            "shortcuts-outcome": figures(outcome[0] + shift, outcome[1] + shift / 2),
            "shortcuts-gated": figures(gated[0], gated[1] - shift),
        }
        for shift in (-0.01, 0.0, 0.01)
    ]


@pytest.mark.parametrize(
    ("outcome", "gated", "verdict"),
    [
        ((0.45, 0.05), (0.47, 0.40), "reproduced"),
        ((0.45, 0.05), (0.40, 0.40), "mixed"),
        ((0.45, 0.30), (0.47, 0.40), "mixed"),
        ((0.45, 0.30), (0.47, 0.30), "not reproduced"),
        ((0.45, 0.30), (0.40, 0.40), "not reproduced"),
    ],
)
def test_the_criterion_gives_the_verdict(load, outcome, gated, verdict: str) -> None:
    assert load("claims/grounding_collapse/run.py").reading(seeds(outcome, gated)).verdict == verdict


def judged(module: ModuleType, n: int, *, mistake: str | None, fpr: float, fnr: float) -> float:
    """How often the teacher says good of one response under many ids."""
    (task,) = Scenes(kinds=("where",), heldout=1).tasks("heldout", Random(0))
    text = trace(task, Random(0), mistake)
    teacher = module.NoisyTeacher(fpr=fpr, fnr=fnr)
    played = answered(task, text)
    grades = [asyncio.run(teacher.grade(task, replace(played, id=f"t/{number}"))) for number in range(n)]
    assert {grade.evidence["good"] for grade in grades} == {mistake is None}
    return sum(grade.score or 0.0 for grade in grades) / n


@pytest.mark.parametrize(("fpr", "fnr"), [(0.0, 0.0), (0.3, 0.1), (0.5, 0.6)])
def test_the_teacher_errs_at_its_rates(load, fpr: float, fnr: float) -> None:
    module = load("benchmarks/scene_runs/teacher.py")
    assert judged(module, 400, mistake=None, fpr=fpr, fnr=fnr) == pytest.approx(1 - fnr, abs=0.08)
    assert judged(module, 400, mistake="moved_point", fpr=fpr, fnr=fnr) == pytest.approx(fpr, abs=0.08)


def row(index: int, *, right: float, says: float, good: bool, advantage: float = 0.0) -> StoredTrajectory:
    played = replace(answered(Task(prompt="a?"), "b"), id=f"g/{index}", group_id="g")
    grades = (
        Grade(grader="answer", version="1", score=right),
        Grade(grader="teacher", version="1", score=says, evidence={"good": good}),
    )
    return StoredTrajectory(
        trajectory=played, phase="rl", step=1, policy_version=0, grades=grades, advantage=advantage, fate=Fate.TRAINED
    )


def test_noise_in_groups_without_a_right_answer(load) -> None:
    module = load("benchmarks/teacher_noise_rl.py")
    fooled = [row(0, right=0, says=1, good=False), row(1, right=0, says=0, good=False)]
    assert module.wrong_noise(fooled) == 1.0
    told = [row(0, right=0, says=1, good=True), row(1, right=0, says=0, good=False)]
    assert module.wrong_noise(told) == 0.0
    assert module.wrong_noise([row(0, right=1, says=1, good=False), fooled[1]]) == 0.0


def test_a_gate_that_leaks_is_seen(load) -> None:
    module = load("benchmarks/teacher_noise_rl.py")
    shut = [row(index, right=0, says=index, good=False) for index in range(2)]
    assert module.gate_noise(shut) == 0.0
    leaky = [row(index, right=0, says=index, good=False, advantage=index - 0.5) for index in range(2)]
    assert module.gate_noise(leaky) == 0.5
