"""The recipe for watching a run: what it mixes, and that it is long and off-policy enough to see something."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from burnish.environments.shop import Shop
from burnish.loop.recipes import load_recipe
from burnish.loop.worlds import load_world


def test_it_mixes_levels_sources_and_skills() -> None:
    recipe = load_recipe("long")
    tasks = list(Shop(**recipe.environment.options).tasks("train", Random(0)))
    tags = {name: Counter(task.tags[name] for task in tasks) for name in ("level", "source", "skill")}
    assert {"2", "3"} <= set(tags["level"])
    assert len(tags["source"]) >= 3
    assert len(tags["skill"]) == 4
    assert all(count >= 0.05 * len(tasks) for counts in tags.values() for count in counts.values())


def test_each_source_has_its_own_noise() -> None:
    noise = {name: source["noise"] for name, source in load_recipe("long").environment.options["sources"].items()}
    assert len(set(noise.values())) == len(noise) >= 3
    assert max(noise.values()) >= 8 * min(noise.values()) > 0


def test_steps_are_many_and_more_than_one_update_each() -> None:
    rl = load_recipe("long").rl
    assert rl.steps >= 300
    assert rl.updates >= 2
    assert rl.groups % rl.updates == 0


def test_preferences_and_other_noise_leave_the_tasks_as_they_are() -> None:
    plain = load_world("shop", load_recipe("long").environment.options, seed=0)
    keys = ["environment.options.preference_seed=3", "environment.options.sources.mail.noise=0.9"]
    rated = load_world("shop", load_recipe("long", keys).environment.options, seed=0)
    assert [grader.name for grader in plain.graders] == ["shop"]
    assert [grader.name for grader in rated.graders] == ["shop", "preference"]
    hashes = [[task.content_hash for task in world.tasks("train", 40)] for world in (plain, rated)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_quick_evaluations_have_the_right_mixture(split: str) -> None:
    recipe = load_recipe("long")
    tasks = list(Shop(**recipe.environment.options).tasks(split, Random(0)))[: recipe.evaluation.quick_tasks]
    shares = Shop(**recipe.environment.options).levels
    counts = Counter(int(task.tags["level"]) for task in tasks)
    assert all(abs(counts[level] - share * len(tasks)) <= 1 for level, share in shares.items())
