"""Objectives that change over training, and penalties near a boundary."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.graders.annealed import AnnealedWeight
from burnish.graders.constraints import ConstraintPenalty, Shape
from burnish.graders.graph import ScheduledAggregator, for_evaluation
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


@given(st.integers(0, 2000))
def test_an_auxiliary_reward_halves_and_ends(step):
    weight = AnnealedWeight(start=0.8, half_life_steps=50, off_below=0.01)
    assert weight.at(step + 50) in (0.0, pytest.approx(weight.at(step) / 2))
    assert weight.at(332) > 0.0
    assert weight.at(333) == 0.0
    assert AnnealedWeight(start=0.8, half_life_steps=50, off_below=0.0).at(333) > 0.0


def test_bad_annealing_is_refused():
    with pytest.raises(ValueError, match="half_life_steps"):
        AnnealedWeight(start=1.0, half_life_steps=0)
    with pytest.raises(ValueError, match="start"):
        AnnealedWeight(start=math.inf, half_life_steps=1)
    with pytest.raises(ValueError, match="count from 0"):
        AnnealedWeight(start=1.0, half_life_steps=1).at(-1)


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
