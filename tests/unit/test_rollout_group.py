"""Groups: who shares a baseline, who is left out of it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from burnish.core.errors import InvariantViolation
from burnish.core.grade import Grade
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome, Owner
from burnish.core.trajectory import Trajectory
from burnish.rollout.group import assemble_groups

CRASH = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="tool_raised")
MISTAKE = Outcome(ending=Ending.ERROR, owner=Owner.MODEL, cause="malformed_calls")
CUT = Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS)


def member(group: str, index: int, outcome: Outcome = COMPLETED) -> Trajectory:
    return Trajectory(
        id=f"{group}/{index}",
        task_id=group,
        task_hash=group,
        group_id=group,
        sample_index=index,
        seed=0,
        nodes=(),
        outcome=outcome,
    )


def grade(score: float | None) -> tuple[Grade, ...]:
    return (Grade(grader="exact", version="1", score=score, cause="" if score is not None else "broken"),)


class FirstGrade:
    """The first grade's score, even for members that may not have one."""

    def rewards(self, grades_G):
        return [grades[0].score for grades in grades_G]


class Fixed:
    def __init__(self, rewards):
        self._rewards = rewards

    def rewards(self, grades_G):
        return self._rewards


def test_groups_keep_their_order_and_members_theirs():
    trajectories = [member("b", 1), member("a", 0), member("b", 0)]
    groups = assemble_groups(trajectories, [grade(1.0), grade(0.5), grade(0.0)], FirstGrade())
    assert [group.group_id for group in groups] == ["b", "a"]
    assert [one.sample_index for one in groups[0].trajectories] == [0, 1]
    assert groups[0].rewards_G == (0.0, 1.0)
    assert groups[0].signal
    assert not groups[1].signal
    assert groups[0].grades_G == (grade(0.0), grade(1.0))


def test_failed_is_not_zero():
    outcomes = [COMPLETED, CRASH, MISTAKE, CUT]
    trajectories = [member("g", index, outcome) for index, outcome in enumerate(outcomes)]
    (group,) = assemble_groups(trajectories, [grade(1.0), grade(1.0), grade(0.0), grade(0.0)], FirstGrade())
    assert group.rewards_G == (1.0, None, 0.0, 0.0)
    assert group.included == (0, 2, 3)


def test_grade_without_score_is_left_out():
    (group,) = assemble_groups([member("g", 0), member("g", 1)], [grade(None), grade(1.0)], FirstGrade())
    assert group.rewards_G == (None, 1.0)
    assert not group.signal


def test_any_real_reward_counts():
    (group,) = assemble_groups([member("g", 0), member("g", 1)], [grade(1.0)] * 2, Fixed([-3.0, 7]))
    assert group.rewards_G == (-3.0, 7.0)
    assert group.signal


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reward_must_be_finite(value):
    with pytest.raises(InvariantViolation, match="finite_rewards"):
        assemble_groups([member("g", 0)], [grade(1.0)], Fixed([value]))


def test_members_must_belong_together():
    other = dataclasses.replace(member("g", 1), task_hash="other")
    with pytest.raises(ValueError, match="mixes tasks"):
        assemble_groups([member("g", 0), other], [grade(1.0)] * 2, FirstGrade())
    with pytest.raises(ValueError, match="sample indices"):
        assemble_groups([member("g", 0)] * 2, [grade(1.0)] * 2, FirstGrade())
    with pytest.raises(ValueError, match="1 rewards for the 2"):
        assemble_groups([member("g", 0), member("g", 1)], [grade(1.0)] * 2, Fixed([1.0]))
    with pytest.raises(ValueError, match="shorter"):
        assemble_groups([member("g", 0), member("g", 1)], [grade(1.0)], FirstGrade())
