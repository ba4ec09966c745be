from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError
from scipy.stats import chisquare

from burnish.core.errors import TaskError
from burnish.core.task import Limits, Task
from burnish.loop.config import Recipe
from burnish.loop.policy import merged_limits
from burnish.loop.session import group_plans
from burnish.rollout.episode import effective_limits
from burnish.tasks.horizon import HorizonMix


def test_horizons_are_uniform_from_the_first_step_and_repeat():
    mix = HorizonMix()
    drawn = [mix.draw(100, step, group) for step in range(250) for group in range(8)]
    counts = Counter(drawn)
    assert set(counts) == {6, 10, 16, 25}
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert drawn == [mix.draw(100, step, group) for step in range(250) for group in range(8)]
    assert len({mix.draw(100, 0, group) for group in range(40)}) == 4


def test_weights_count():
    mix = HorizonMix(horizons=(6, 25), weights=(9.0, 1.0))
    counts = Counter(mix.draw(100, step, 0) for step in range(1000))
    assert chisquare([counts[6], counts[25]], [900, 100]).pvalue > 1e-3


def test_drawing_leaves_the_global_random_state_alone():
    random.seed(3)
    before = random.getstate()
    HorizonMix().draw(0, 0, 0)
    assert random.getstate() == before


def test_the_members_of_a_group_share_a_horizon_that_changes_turns_alone() -> None:
    recipe = Recipe.model_validate({"limits": {"max_turn_tokens": 7, "horizons": [6, 10, 16, 25]}})
    task = Task(prompt="?", id="t", limits=Limits(max_turns=4, max_turn_tokens=7))
    groups = [group_plans(recipe, task, 1, group, 3) for group in range(40)]
    assert all(len({one.max_turns for one in plans}) == 1 for plans in groups)
    assert {plans[0].max_turns for plans in groups} == {6, 10, 16, 25}
    limits = [effective_limits(plans[0], None, None) for plans in groups]
    assert {replace(found, max_turns=4) for found in limits} == {task.limits}
    assert [found.max_turns for found in limits] == [plans[0].max_turns for plans in groups]
    assert groups[0][0].task is task
    assert merged_limits(recipe, Limits()) == Limits(max_turn_tokens=7)


def test_without_horizons_the_limits_stay() -> None:
    plans = group_plans(Recipe(), Task(prompt="?"), 1, 0, 2)
    assert [one.max_turns for one in plans] == [0, 0]
    assert effective_limits(plans[0], None, Limits(max_turns=3)) == Limits(max_turns=3)


def test_bad_horizons_are_refused():
    with pytest.raises(TaskError, match="at least 1"):
        HorizonMix(horizons=())
    with pytest.raises(TaskError, match="at least 1"):
        HorizonMix(horizons=(0, 3))
    with pytest.raises(TaskError, match="one weight"):
        HorizonMix(horizons=(6, 10), weights=(1.0,))
    with pytest.raises(ValidationError):
        Recipe.model_validate({"limits": {"horizons": [0, 3]}})
