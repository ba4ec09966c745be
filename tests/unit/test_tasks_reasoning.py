"""Datasets of reasoning-gym as tasksets, and their own scorers as a grader."""

from __future__ import annotations

import ast
import asyncio
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.graders.boundary import grade_trajectories
from burnish.graders.reasoning import ReasoningGymGrader, may_be_scored, score_entry
from burnish.tasks import reasoning
from burnish.tasks.reasoning import ReasoningGymTaskset
from burnish.tasks.reasoning_source import literal, make_entries
from burnish.tasks.taskset import check_serialisable
from burnish.testing.grader import HOSTILE_ANSWERS, answered

pytest.importorskip("reasoning_gym")
SOURCE = reasoning._source


@pytest.fixture(scope="module")
def grader() -> ReasoningGymGrader:
    return ReasoningGymGrader()


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[pytest.MonkeyPatch]:
    """Entries made in this process, which imports the package once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("burnish.tasks.reasoning._source", make_entries)
        yield patch


@pytest.fixture
def in_own_process(quick: pytest.MonkeyPatch) -> Iterator[None]:
    """Entries made as in use."""
    quick.setattr("burnish.tasks.reasoning._source", SOURCE)
    yield
    quick.setattr("burnish.tasks.reasoning._source", make_entries)


@pytest.fixture(scope="module")
def sums() -> ReasoningGymTaskset:
    """The 182 sums and differences of two digits."""
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    return ReasoningGymTaskset("chain_sum", size=900, seed=0, **options)


def grades(grader: ReasoningGymGrader, task: Task, answers: list[str]) -> list[Grade]:
    cases = [answered(task, answer) for answer in answers]
    rows = asyncio.run(grade_trajectories([task] * len(cases), cases, [grader], timeout_s=30))
    return [row[0] for row in rows]


def test_gold_scores_one_and_others_little(grader: ReasoningGymGrader) -> None:
    taskset = ReasoningGymTaskset("knights_knaves", size=20, heldout_size=5, seed=0)
    tasks = [*taskset.tasks("train"), *taskset.tasks("heldout")]
    assert taskset.oracle_available
    assert len({task.prompt for task in tasks}) == len(tasks)
    assert 0.0 <= taskset.chance <= 0.5
    for task in tasks:
        check_serialisable(task)
        assert ast.literal_eval(task.setup["entry"])["question"] == task.prompt
    for task in tasks[:8]:
        gold, wrong = grades(grader, task, [task.reference["answer"], "no idea"])
        assert (gold.score, gold.cause) == (1.0, "")
        assert wrong.score is not None
        assert wrong.score < 0.5


def test_tasks_do_not_depend_on_the_hash_seed_of_the_process(
    in_own_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        hashes.add(ReasoningGymTaskset("isomorphic_strings", size=10, heldout_size=5, seed=0).content_hash("train"))
    assert len(hashes) == 1


def test_a_small_dataset_is_divided_in_proportion(sums: ReasoningGymTaskset) -> None:
    train, heldout = (len(sums.tasks(split)) for split in ("train", "heldout"))
    assert train + heldout < 250
    assert heldout == round((train + heldout) * 90 / 990)


def test_a_dataset_without_gold_says_so(grader: ReasoningGymGrader) -> None:
    taskset = ReasoningGymTaskset("graph_color", size=5, heldout_size=2, seed=0)
    assert not taskset.oracle_available
    assert "answer" not in taskset.tasks("train")[0].reference
    assert grades(grader, taskset.tasks("train")[0], ["nonsense"])[0].score is not None


@pytest.mark.parametrize(
    ("dataset", "options", "said"),
    [
        ("chain_summ", {}, "did you mean 'chain_sum'"),
        ("chain_sum", {"min_terms": 0}, "min_terms must be positive"),
        ("chain_sum", {"size": 0}, "at least 1"),
        ("chain_sum", {"max_terms": 1, "min_terms": 5}, "refuses"),
    ],
)
def test_wrong_names_and_options_are_explained(dataset: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ReasoningGymTaskset(dataset, seed=0, **options)  # type: ignore[arg-type]


def test_a_missing_package_is_explained(in_own_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reasoning_gym.py").write_text("raise ImportError('absent')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(ConfigError, match=r'pip install "burnish\[gym\]"'):
        ReasoningGymTaskset("chain_sum", size=5)


@pytest.fixture(scope="module")
def evaluated() -> Task:
    """A task of a dataset whose scorer evaluates the answer as Python."""
    return ReasoningGymTaskset("string_insertion", size=2, heldout_size=1, seed=0).tasks("train")[0]


def test_answers_are_not_run_as_code(grader: ReasoningGymGrader, evaluated: Task, tmp_path: Path) -> None:
    target = tmp_path / "written"
    attacks = [
        f"open('{target}', 'w')",
        f"['a', open('{target}', 'w')]",
        f"[open][0]('{target}', 'w')",
        f"__import__('pathlib').Path('{target}').touch()",
        f"(lambda: open('{target}', 'w'))()",
    ]
    assert all(grade.score == 0.0 for grade in grades(grader, evaluated, attacks))
    assert not target.exists()


def test_the_attack_works_without_the_guard(evaluated: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "written"
    monkeypatch.setattr("burnish.graders.reasoning.may_be_scored", lambda answer: True)
    score_entry("string_insertion", "{}", evaluated.setup["entry"], f"open('{target}', 'w').name")
    assert target.exists()


def test_an_answer_that_hangs_its_scorer_is_the_models_fault(evaluated: Task) -> None:
    hang = grades(ReasoningGymGrader(timeout_s=0.5), evaluated, ["9**9**9**9", evaluated.reference["answer"]])
    assert (hang[0].score, hang[0].cause, hang[0].evidence["arbitrated"]) == (0.0, "model:grader_timeout", "repeated")
    assert hang[1].score == 1.0


def test_a_scorer_that_raises_on_an_answer_has_judged_it(grader: ReasoningGymGrader) -> None:
    task = ReasoningGymTaskset("prime_factorization", size=2, heldout_size=1, seed=0).tasks("train")[0]
    assert [grade.score for grade in grades(grader, task, ["not a number", task.reference["answer"]])] == [0.0, 1.0]


def test_hostile_answers_are_judged(grader: ReasoningGymGrader, sums: ReasoningGymTaskset) -> None:
    for grade in grades(grader, sums.tasks("train")[0], list(HOSTILE_ANSWERS)):
        assert grade.score is not None
        assert grade.score < 1.0


def test_a_task_from_elsewhere_cannot_be_judged(grader: ReasoningGymGrader) -> None:
    grade = grades(grader, Task(prompt="?"), ["x"])[0]
    assert (grade.score, grade.cause) == (None, "task_cannot_be_judged")


@pytest.mark.parametrize("answer", ["x**2 + sin(x)", "3*(4+5)", "no brackets at all", "(P ∧ Q)", "E**(2*t)"])
def test_mathematics_may_be_scored(answer: str) -> None:
    assert may_be_scored(answer)


def test_entries_are_literals_that_keep_their_types() -> None:
    entry = {"a": (np.str_("x"), np.float64(0.5), np.int64(2)), 1: [True, None], "f": Fraction(1, 2), "s": {2, 1}}
    plain = literal(entry)
    assert ast.literal_eval(repr(plain)) == {"a": ("x", 0.5, 2), 1: [True, None], "f": "1/2", "s": {1, 2}}


def test_options_that_json_cannot_hold_are_refused(in_own_process: None) -> None:
    with pytest.raises(ConfigError, match="JSON-able"):
        ReasoningGymTaskset("chain_sum", size=2, max_terms=object())
