from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.grade import Grade
from burnish.core.outcome import Ending, Outcome
from burnish.core.trajectory import Trajectory
from burnish.graders.staged import StagedWeights
from burnish.loop.verified import agreement, verified
from burnish.rollout.group import GroupResult, assemble_groups

STAGED = StagedWeights(weights={"tests": 2.0, "taste": 1.0}, preference=("taste",), start=0.0, end=0.5).scheduled


def graded(score: float | None, grader: str) -> Grade:
    return Grade(grader=grader, version="1", score=score, cause="" if score is not None else "down")


def group_of(members: Sequence[tuple[float | None, float]], name: str = "g") -> GroupResult:
    """A group of which every member has a score of the tests and one of taste, with the rewards of the end."""
    trajectories = [
        Trajectory(
            id=f"{name}/{index}",
            task_id=name,
            task_hash=name,
            group_id=name,
            sample_index=index,
            seed=0,
            nodes=(),
            outcome=Outcome(ending=Ending.COMPLETED),
        )
        for index in range(len(members))
    ]
    grades = [(graded(tests, "tests"), graded(taste, "taste")) for tests, taste in members]
    return assemble_groups(trajectories, grades, STAGED)[0]


def test_rewards_that_rank_as_the_tests_do_agree_and_those_that_pay_for_taste_do_not() -> None:
    same = group_of([(1.0, 0.5), (0.0, 0.5), (1.0, 0.5)])
    against = group_of([(1.0, 0.0), (1.0, 1.0), (1.0, 0.5)], "h")
    assert agreement([same], STAGED) == pytest.approx(1.0)
    assert math.isnan(agreement([against], STAGED)), "the tests tell its members not apart"
    # rewards 2 tests + taste: (2, 1, 2.5) less their mean of 11/6, against tests (1, 0, 1) less 2/3
    mixed = group_of([(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)])
    assert agreement([mixed], STAGED) == pytest.approx(0.94491, abs=1e-5)
    assert agreement([mixed, against], STAGED) < agreement([mixed], STAGED), "its spread counts all the same"


def test_who_has_no_reward_takes_no_part() -> None:
    failed = group_of([(1.0, 0.5), (None, 0.5), (0.0, 0.5)])
    assert agreement([failed], STAGED) == pytest.approx(1.0)
    assert math.isnan(agreement([group_of([(1.0, 0.5), (None, 0.5)])], STAGED))
    assert math.isnan(agreement([], STAGED))


def test_a_group_judged_by_the_tests_alone() -> None:
    group = group_of([(1.0, 0.0), (0.0, 1.0), (None, 1.0)])
    found = verified(group, STAGED)
    assert group.rewards_G == (2.0, 1.0, None)
    assert found.rewards_G == (1.0, 0.0, None)
    assert (found.signal, found.charges_G, found.grades_G) == (True, (0.0, 0.0, 0.0), group.grades_G)
    taste = verified(group_of([(1.0, 0.0), (1.0, 1.0)]), STAGED)
    assert not taste.signal, "what only taste told apart teaches nothing"


scores = st.sampled_from([0.0, 0.25, 1.0])


@given(st.lists(st.lists(st.tuples(scores, scores), min_size=2, max_size=5), min_size=1, max_size=4))
def test_it_is_a_cosine_and_exactly_one_for_the_verified_rewards_themselves(members: list[list[tuple]]) -> None:
    groups = [group_of(rows, str(index)) for index, rows in enumerate(members)]
    found = agreement(groups, STAGED)
    assert math.isnan(found) or -1.0 - 1e-9 <= found <= 1.0 + 1e-9
    again = agreement([verified(group, STAGED) for group in groups], STAGED)
    assert math.isnan(again) or again == pytest.approx(1.0)
    assert agreement(groups[::-1], STAGED) == pytest.approx(found, nan_ok=True)
