"""The conformance of graders: ours pass it, and each law is seen to fail where it is broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.shop.grader import ShopGrader
from burnish.graders.rules import ChoiceGrader, ExactGrader, NumericGrader, RewardGrader, StateGrader
from burnish.testing.grader import GraderConformance, answered

SUM = Task(prompt="2 + 2?", reference={"answer": "4"})
CITY = Task(prompt="Where?", reference={"answer": "Paris", "choices": ["Rome", "Paris"]})


class TestExact(GraderConformance):
    make_grader = ExactGrader
    right = ((CITY, "Paris"), (CITY, "paris."))
    wrong = ((CITY, "Rome"), (CITY, "Paris or Rome"), (SUM, "5"))


class TestNumeric(GraderConformance):
    make_grader = NumericGrader
    right = ((SUM, "4"), (SUM, "$4.00"), (SUM, "8/2"))
    wrong = ((SUM, "5"), (SUM, "4 5"), (SUM, "four"))


class TestLastNumber(GraderConformance):
    make_grader = staticmethod(lambda: NumericGrader(take="last"))
    right = ((SUM, "4"), (SUM, "2 + 2 = 4"))
    wrong = ((SUM, "4, no, 5"),)


class TestChoice(GraderConformance):
    make_grader = ChoiceGrader
    right = ((CITY, "B"), (CITY, "Paris"))
    wrong = ((CITY, "A"), (CITY, "B) Rome"))


class TestState(GraderConformance):
    make_grader = StateGrader
    right = ((Task(prompt="Do it", reference={"state": {"rows": ["done"]}}), "done"),)
    wrong = ((Task(prompt="Do it", reference={"state": {"rows": ["done"]}}), "else"),)

    def trajectory(self, task: Task, answer: str) -> Trajectory:
        return answered(task, answer, final_state={"state": {"rows": [answer.strip()]}})


class TestReward(GraderConformance):
    make_grader = RewardGrader
    right = ((Task(prompt="Do it"), "done"),)
    wrong = ((Task(prompt="Do it"), "else"),)

    def trajectory(self, task: Task, answer: str) -> Trajectory:
        return answered(task, answer, final_state={"get_reward": float(answer.strip() == "done")})


class TestShopRead(GraderConformance):
    make_grader = ShopGrader
    right = ((Task(prompt="?", reference={"answer": "1410"}), "$1,410.00"),)
    wrong = ((Task(prompt="?", reference={"answer": "1410"}), "1410 or 1411"),)

    def trajectory(self, task: Task, answer: str) -> Trajectory:
        return answered(task, answer, final_state={"changes": []})


Judge = Callable[[Task, str], "float | None"]


def _grader(judge: Judge, name: str = "odd") -> Any:
    class Odd:
        version = "1"

        def __init__(self) -> None:
            self.name = name

        async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
            score = judge(task, trajectory.answer)
            return Grade(grader="odd", version="1", score=score, cause="" if score is not None else "odd")

    return Odd


def _exactly(task: Task, answer: str) -> float:
    return float(answer == task.reference["answer"])


def _slow(task: Task, answer: str) -> float:
    time.sleep(0.01 if len(answer) > 100 else 0)
    return _exactly(task, answer.strip())


_COUNTER = count()

BROKEN: list[tuple[str, Judge, str]] = [
    ("refuses", lambda task, answer: 0.0, "test_right_answers_score_one"),
    ("generous", lambda task, answer: 1.0, "test_wrong_answers_score_less"),
    ("fooled", lambda task, answer: float("correct" in answer), "test_hostile_answers_are_judged_and_gain_nothing"),
    ("escapes", lambda task, answer: 0.0 if answer else None, "test_hostile_answers_are_judged_and_gain_nothing"),
    ("slow", _slow, "test_hostile_answers_are_judged_and_gain_nothing"),
    ("moody", lambda task, answer: float(next(_COUNTER) % 2), "test_equal_inputs_get_equal_grades"),
    ("spaces", _exactly, "test_white_space_around_an_answer_does_not_count"),
    ("counts_failures", _exactly, "test_what_may_not_carry_reward_gets_no_score"),
    ("rewards_silence", lambda task, answer: 1.0, "test_a_cut_episode_without_an_answer_gains_nothing"),
    ("nameless", _exactly, "test_grades_name_their_grader"),
]


@pytest.mark.parametrize(("name", "judge", "law"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_each_law_is_seen_to_fail(name: str, judge: Judge, law: str) -> None:
    conformance = GraderConformance()
    conformance.make_grader = _grader(judge, name)
    conformance.right = [(SUM, "4")]
    conformance.wrong = [(SUM, "5")]
    conformance.deadline_s = 0.005 if name == "slow" else 5.0
    with pytest.raises(AssertionError):
        getattr(conformance, law)()
