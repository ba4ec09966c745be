"""Objectives that change over training, and penalties near a boundary."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.outcome import COMPLETED
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.annealed import AnnealedWeight
from burnish.graders.boundary import grade_trajectories
from burnish.graders.constraints import ConstraintGrader, ConstraintPenalty, Shape
from burnish.graders.graph import ScheduledAggregator, for_evaluation, graph_from
from burnish.graders.staged import StagedWeights


def staged(**options):
    return StagedWeights(**{"weights": {"tests": 1.0, "taste": 0.5}, "preference": ("taste",), "end": 0.6, **options})


@given(st.floats(-1, 2), st.floats(-1, 2))
def test_preference_waits_and_only_grows(first, second):
    schedule = staged()
    low, high = sorted((first, second))
    assert schedule.at(low)["taste"] <= schedule.at(high)["taste"] <= 0.5
    assert schedule.at(low)["tests"] == 1.0
    assert (schedule.at(low)["taste"] == 0.0) or low > 0.3
    assert (schedule.at(high)["taste"] == 0.5) or high < 0.6


def test_a_scorer_that_fails_in_the_first_stage_leaves_nobody_out():
    grades = [
        Grade(grader="tests", version="1", score=1.0),
        Grade(grader="taste", version="1", score=None, cause="judge is down"),
    ]
    assert staged().scheduled.at(0.2).rewards([grades]) == [1.0]
    assert staged().scheduled.at(0.5).rewards([grades]) == [None]


def test_held_out_success_is_that_of_verifiable_graders_alone():
    grades = [Grade(grader="tests", version="1", score=1.0), Grade(grader="taste", version="1", score=0.0)]
    scheduled = staged().scheduled
    assert for_evaluation(scheduled).rewards([grades]) == [1.0]
    counted = ScheduledAggregator(kind=scheduled.kind, weights=scheduled.weights)
    assert for_evaluation(counted).rewards([grades]) == [pytest.approx(2 / 3)], "it is the mark that leaves it out"


def test_stages_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match="end"):
        StagedWeights(weights={"a": 1.0}, preference=())  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="start"):
        staged(end=0.3)
    with pytest.raises(ConfigError, match="no weight"):
        staged(preference=("test",))
    with pytest.raises(ConfigError, match="first stage"):
        staged(preference=("tests", "taste"))
    with pytest.raises(ValueError, match="share"):
        staged().at(math.nan)


@given(st.floats(0.0, 1.0))
def test_an_auxiliary_reward_halves_and_ends(share):
    weight = AnnealedWeight(start=0.8, half_life=0.1, off_below=0.01)
    later = weight.at(min(1.0, share + 0.1))
    assert share > 0.9 or later == 0.0 or later == pytest.approx(weight.at(share) / 2)
    assert weight.at(0.66) > 0.0
    assert weight.at(0.67) == 0.0
    assert AnnealedWeight(start=0.8, half_life=0.1, off_below=0.0).at(0.67) > 0.0


def test_bad_annealing_is_refused():
    for changes in ({"half_life": 0.0}, {"start": math.inf}, {"off_below": 1.0}):
        with pytest.raises(ConfigError, match="fades"):
            AnnealedWeight(**({"start": 1.0, "half_life": 1.0} | changes))
    with pytest.raises(ValueError, match="share"):
        AnnealedWeight(start=1.0, half_life=1.0).at(math.nan)


def test_a_graph_shapes_a_constraint_with_a_weight_that_fades():
    graph = graph_from(
        {
            "graders": {
                "answer": {"use": "exact"},
                "calls": {
                    "use": "constraint",
                    "options": {"value": "counters.tool_calls", "limit": 4.0, "k": 0.25, "shape": "hinge"},
                    "weight": {"start": 0.5, "half_life": 0.25},
                    "preference": True,
                },
            }
        }
    )
    scores = []
    for calls in (2, 6, 40):
        trajectory = scripted_answer("4", counters={"tool_calls": calls})
        grades = asyncio.run(
            grade_trajectories(
                [Task(prompt="?", reference={"answer": "4"})], [trajectory], graph.graders, timeout_s=5.0
            )
        )
        scores.append([graph.aggregator.at(share).rewards(grades)[0] for share in (0.0, 0.25, 1.0)])
        assert graph.aggregator.evaluation.rewards(grades) == [1.0]
    assert scores[0] == pytest.approx([1.5, 1.25, 1.0 + 0.5 / 16])
    assert scores[1] == pytest.approx([1.25, 1.125, 1.0 + 0.25 / 16])
    assert scores[2] == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="fades"):
        graph_from({"graders": {"answer": {"use": "exact", "weight": {"start": 1.0, "half_life": 0.0}}}})


def test_a_number_that_is_not_there_is_no_score():
    grader = ConstraintGrader(value="counters.calls_to_mars", limit=1.0)
    grade = asyncio.run(grader.grade(Task(prompt="?"), scripted_answer("4")))
    assert (grade.score, grade.cause) == (None, "no_such_number")
    with pytest.raises(ValueError, match="finite"):
        ConstraintGrader(value="tool_s", limit=math.inf)


def scripted_answer(answer, **changes):
    return Trajectory(
        id="t",
        task_id="q",
        task_hash="h",
        group_id="g",
        sample_index=0,
        seed=0,
        nodes=(),
        outcome=COMPLETED,
        answer=answer,
        **changes,
    )


distances = st.floats(-1e3, 1e3)


@given(distances, distances, st.floats(0.01, 10), st.floats(0.01, 10))
def test_penalties_are_never_positive_and_fall_with_distance(first, second, k, tau):
    near, far = sorted((first, second))
    for shape in Shape:
        penalty = ConstraintPenalty(k=k, tau=tau, shape=shape)
        assert penalty.reward(far) <= penalty.reward(near) <= 0.0


@given(distances, st.floats(0.01, 10))
def test_softplus_lies_below_hinge_by_at_most_tau_ln_2(distance, tau):
    gap = ConstraintPenalty(k=1.0, shape="hinge").reward(distance) - ConstraintPenalty(k=1.0, tau=tau).reward(distance)
    assert -1e-9 <= gap <= tau * math.log(2) + 1e-9


def test_shaping_gives_contrast_where_a_hard_constraint_has_none():
    """A group of which all are outside learns nothing from all-or-nothing; near the boundary hinge is blind too."""
    outside, inside = (0.5, 1.0, 2.0), (-0.5, -0.25, -0.1)

    def distinct(shape, group):
        return len({ConstraintPenalty(k=1.0, tau=0.5, shape=shape).reward(d) for d in group})

    assert [distinct(shape, outside) for shape in ("softplus", "hinge", "hard")] == [3, 3, 1]
    assert [distinct(shape, inside) for shape in ("softplus", "hinge", "hard")] == [3, 1, 1]


def test_large_distances_do_not_overflow_and_bad_ones_are_refused():
    assert ConstraintPenalty(k=1.0, tau=1e-3).reward(1e6) == pytest.approx(-1e6)
    assert ConstraintPenalty(k=1.0, tau=1e-3).reward(-1e6) == 0.0
    with pytest.raises(ValueError, match="finite"):
        ConstraintPenalty(k=1.0).reward(math.inf)
    with pytest.raises(ValueError, match="tau"):
        ConstraintPenalty(k=1.0, tau=0.0)
    with pytest.raises(ValueError, match="cliff"):
        ConstraintPenalty(k=1.0, shape="cliff")
