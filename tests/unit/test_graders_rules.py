"""Rules, aggregation and the registry."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.task import Task
from burnish.graders.aggregate import WeightedSum
from burnish.graders.registry import GRADERS, make_grader
from burnish.graders.rules import (
    ChoiceGrader,
    ExactGrader,
    NumericGrader,
    RewardGrader,
    RuleGrader,
    StateGrader,
    last_number,
    normalised,
    parse_number,
)
from burnish.testing.fakes import ScriptedJudge
from burnish.testing.grader import answered

MEMO = {"rubric": str(Path(__file__).parents[2] / "examples" / "memo_rubric.toml")}

TRUNCATED = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS)
MODEL_ERROR = Outcome(ending=Ending.ERROR, owner=Owner.MODEL, cause="malformed")


def score(grader: RuleGrader, reference: dict[str, Any], answer: str) -> float | None:
    task = Task(prompt="?", reference=reference)
    return grader.judge(task, answered(task, answer)).score


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("Paris", "paris", 1.0),
        (" new  york.\n", "New York", 1.0),
        ("Paris or Rome", "Paris", 0.0),
        ("<think>Rome?</think>Paris", "Paris", 1.0),
        ("", "Paris", 0.0),
        ("", "!", 0.0),
        (".", "", 0.0),
        ("?!", "?!", 1.0),
    ],
)
def test_exact(answer: str, reference: str, right: float) -> None:
    assert score(ExactGrader(), {"answer": reference}, answer) == right


def test_each_of_several_answers_is_right() -> None:
    reference = {"answer": "red", "answers": ["red", "rot"]}
    assert score(ExactGrader(), reference, "Rot") == 1.0
    assert score(ExactGrader(), reference, "red rot") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("$1,200.50", Fraction(2401, 2)),
        ("-$3", -3),
        ("$-3", -3),
        ("+7.", 7),
        ("\N{MINUS SIGN}5", -5),
        ("1e3", 1000),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        ("1e-300", Fraction(1, 10**300)),
        ("--3", None),
        ("-$-3", None),
        ("1,20", None),
        ("1e999", None),
        ("3/0", None),
        ("nan", None),
        ("inf", None),
        ("4 5", None),
        ("٣", None),
        ("9" * 65, None),
        ("0x10", None),
        ("", None),
    ],
)
def test_numbers(text: str, value: Any) -> None:
    assert parse_number(text) == value


@given(st.integers(-(10**15), 10**15))
def test_integers_are_read_as_python_writes_them(number: int) -> None:
    assert parse_number(str(number)) == parse_number(f"{number:,}") == parse_number(f" ${number}. ") == number


@given(st.text(max_size=200) | st.text(alphabet="0123456789,.eE+-/$ ", max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_quickly(text: str) -> None:
    parse_number(text)
    last_number(text)
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize("text", ["9" * 20_000, "1," * 10_000, "-" * 20_000, "1/" * 10_000, ".1e" * 7000])
def test_long_texts_are_read_quickly(text: str) -> None:
    started_s = time.perf_counter()
    last_number(text)
    parse_number(text)
    assert time.perf_counter() - started_s < 1.0


def test_numeric_compares_whole_answers_within_tolerance() -> None:
    assert score(NumericGrader(), {"answer": "1200.5"}, "$1,200.50") == 1.0
    assert score(NumericGrader(), {"answer": "1000000"}, "1000001") == 0.0
    assert score(NumericGrader(tolerance=0.01), {"answer": "3.1416"}, "3.14") == 1.0
    assert score(NumericGrader(), {"answer": "7"}, "3 + 4 = 7") == 0.0
    assert score(NumericGrader(take="last"), {"answer": "7"}, "3 + 4 = 7.") == 1.0
    assert score(NumericGrader(take="last"), {"answer": "7"}, "7 or 8") == 0.0
    assert score(NumericGrader(), {"answer": "seven"}, "7") is None


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", 1.0),
        ("(b)", 1.0),
        ("b.", 1.0),
        ("B) Paris", 1.0),
        ("paris", 1.0),
        ("A", 0.0),
        ("B) Rome", 0.0),
        ("A or B", 0.0),
        ("Z", 0.0),
        ("banana", 0.0),
        ("", 0.0),
    ],
)
def test_choice(answer: str, right: float) -> None:
    reference = {"choices": ["Rome", "Paris", "Oslo"], "answer": "Paris"}
    assert score(ChoiceGrader(), reference, answer) == right
    assert score(ChoiceGrader(), reference | {"answer": "B"}, answer) == right


def test_choice_prefers_texts_to_letters_and_refuses_unfit_references() -> None:
    assert score(ChoiceGrader(), {"choices": ["B", "A"], "answer": "B"}, "B") == 1.0
    assert score(ChoiceGrader(), {"choices": ["Rome"], "answer": "Paris"}, "A") is None
    assert score(ChoiceGrader(), {"answer": "Paris"}, "A") is None


def test_state() -> None:
    task = Task(prompt="?", reference={"state": {"rows": [[1, "x"]]}})
    judge = StateGrader().judge
    assert judge(task, answered(task, "done", final_state={"state": {"rows": [[1, "x"]]}})).score == 1.0
    assert judge(task, answered(task, "done", final_state={"state": {"rows": [[1, "y"]]}})).score == 0.0
    assert judge(task, answered(task, "done")).cause == "no_state_reported"
    cut = answered(task, "", outcome=TRUNCATED, final_state={"state": {"rows": [[1, "x"]]}})
    assert judge(task, cut).score == 0.0
    assert judge(Task(prompt="?"), answered(task, "")).score is None


def test_reward() -> None:
    task = Task(prompt="?")
    judge = RewardGrader().judge
    assert judge(task, answered(task, "", final_state={"get_reward": 0.25})).score == 0.25
    assert judge(task, answered(task, "", outcome=TRUNCATED, final_state={"get_reward": 0.5})).score == 0.5
    assert judge(task, answered(task, "", outcome=MODEL_ERROR)).score == 0.0
    assert judge(task, answered(task, "")).cause == "no_reward_reported"
    assert judge(task, answered(task, "", final_state={"get_reward": float("nan")})).score is None
    broken = {"get_reward": 0.0, "get_reward_cause": "raised_on_answer:ValueError"}
    assert judge(task, answered(task, "x", final_state=broken)).cause == "raised_on_answer:ValueError"


@pytest.mark.parametrize("outcome", [TRUNCATED, MODEL_ERROR])
def test_an_answer_cut_in_its_middle_never_passes(outcome: Outcome) -> None:
    task = Task(prompt="?", reference={"answer": "4"})
    for grader in (ExactGrader(), NumericGrader()):
        assert grader.judge(task, answered(task, "4", outcome=outcome)).score == 0.0


def test_an_endless_answer_is_wrong() -> None:
    task = Task(prompt="?", reference={"answer": "4"})
    assert ExactGrader().judge(task, answered(task, " " * 30_000 + "4")).cause == "answer_too_long"


def test_a_failed_episode_is_not_zero() -> None:
    task = Task(prompt="?", reference={"answer": "4"})
    outcome = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash")
    for grader in (ExactGrader(), RewardGrader(), StateGrader()):
        grade = grader.judge(task, answered(task, "4", outcome=outcome, final_state={"get_reward": 1.0}))
        assert (grade.score, grade.cause) == (None, "excluded:error:environment")


def grade(name: str, value: float | None) -> Grade:
    return Grade(grader=name, version="1", score=value, cause="" if value is not None else "broken")


def test_weights_add_up_and_missing_scores_leave_the_group() -> None:
    group = [[grade("a", 1.0), grade("b", 0.5)], [grade("a", 0.0), grade("b", None)], [grade("a", None), grade("b", 1)]]
    assert WeightedSum().rewards(group) == [0.75, None, None]
    assert WeightedSum({"a": 2.0, "b": -1.0}).rewards(group) == [1.5, None, None]
    assert WeightedSum({"a": 1.0, "b": 0.0}).rewards(group) == [1.0, 0.0, None]
    assert WeightedSum().rewards([[]]) == [None]


def test_wrong_weights_are_explained() -> None:
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        WeightedSum({"exakt": 1.0}).rewards([[grade("exact", 1.0)]])
    with pytest.raises(ConfigError, match="finite"):
        WeightedSum({"a": float("nan")})


def test_the_registry_knows_names_graders_and_functions() -> None:
    for name in GRADERS:
        options = {"rubric": MEMO, "constraint": {"value": "tool_s", "limit": 1.0}}.get(name, {})
        assert make_grader(name, options, resources={"sandbox": object(), "judge": ScriptedJudge()}).version
    grader = NumericGrader(tolerance=1.0)
    assert make_grader(grader) is grader

    async def half(task: Task, trajectory: Any) -> float:
        return 0.5

    made = make_grader(half)
    assert made.name == "half"
    assert asyncio.run(made.grade(Task(prompt="?"), answered(Task(prompt="?"), ""))).score == 0.5


@pytest.mark.parametrize(
    ("reference", "said"),
    [("exakt", "did you mean 'exact'"), (ExactGrader, "is a class"), (object(), "is no grader"), (3, "is no grader")],
)
def test_what_is_no_grader_is_refused(reference: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_grader(reference)


def test_completed_is_the_only_ending_with_a_judged_answer() -> None:
    task = Task(prompt="?", reference={"answer": "4"})
    assert ExactGrader().judge(task, answered(task, "4", outcome=COMPLETED)).evidence == {"answer": "4"}
