from __future__ import annotations

import random
from collections import Counter

import pytest
from scipy.stats import chisquare

from burnish.core.errors import TaskError
from burnish.core.task import Limits, Task
from burnish.tasks.horizon import HorizonMix, with_horizon


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


def test_a_horizon_changes_the_turns_alone():
    task = Task(prompt="?", id="t", limits=Limits(max_turns=4, max_turn_tokens=7))
    longer = with_horizon(task, 16)
    assert longer.limits == Limits(max_turns=16, max_turn_tokens=7)
    assert longer.id == "t"
    assert longer.content_hash != task.content_hash
    assert with_horizon(Task(prompt="?"), 6, Limits(max_turn_tokens=9)).limits == Limits(max_turns=6, max_turn_tokens=9)


def test_bad_horizons_are_refused():
    with pytest.raises(TaskError, match="at least 1"):
        HorizonMix(horizons=())
    with pytest.raises(TaskError, match="at least 1"):
        HorizonMix(horizons=(0, 3))
    with pytest.raises(TaskError, match="one weight"):
        HorizonMix(horizons=(6, 10), weights=(1.0,))
    with pytest.raises(TaskError, match="at least 1"):
        with_horizon(Task(prompt="?"), 0)
