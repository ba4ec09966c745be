"""The recipe for watching a run: what it mixes, and that it is long and off-policy enough to see something."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path
from random import Random

import pytest

from burnish.core.errors import StoreError
from burnish.core.grade import Grade
from burnish.environments.shop import Shop
from burnish.graders.graph import aggregator_at, for_evaluation
from burnish.loop.config import Recipe
from burnish.loop.grading import open_world
from burnish.loop.manifest import check_unchanged, make_manifest, stored_recipe
from burnish.loop.recipes import load_recipe
from burnish.loop.worlds import load_world
from burnish.store.writer import RunWriter


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


def test_a_stored_run_has_the_tasks_that_it_began_with(tmp_path: Path) -> None:
    """Sources are drawn from in the order in which the recipe names them, so that a manifest must keep it."""
    recipe = load_recipe("long", ["environment.options.train=60"])
    assert list(recipe.environment.options["sources"]) != sorted(recipe.environment.options["sources"])
    with RunWriter.create(tmp_path / "run", make_manifest(recipe, open_world(recipe))):
        pass
    check_unchanged(tmp_path / "run", open_world(stored_recipe(tmp_path / "run")))
    data = recipe.model_dump(mode="json")
    data["environment"]["options"]["sources"] = dict(sorted(data["environment"]["options"]["sources"].items()))
    with pytest.raises(StoreError, match="tasks of split 'train' have changed"):
        check_unchanged(tmp_path / "run", open_world(Recipe.model_validate(data)))


def test_preferences_are_switched_on_as_the_recipe_says() -> None:
    text = (resources.files("burnish.recipes") / "long.toml").read_text(encoding="utf-8")
    words = [word for line in text.splitlines() if line.startswith("#   ") for word in line[4:].split() if "=" in word]
    recipe = load_recipe("long", [word for word in words if word.startswith(("environment.", "staged."))])
    world = open_world(recipe)
    taste = [Grade(grader=name, version="1", score=score) for name, score in (("shop", 0.0), ("preference", 1.0))]
    rewards = [aggregator_at(world.aggregator, share).rewards([taste])[0] for share in (0.3, 0.6, 1.0)]
    assert rewards == pytest.approx([0.0, 0.1, 0.1])
    assert for_evaluation(world.aggregator).rewards([taste]) == [0.0]
    assert load_recipe("long").evaluation.quick_mode == "sampled"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_quick_evaluations_have_the_right_mixture(split: str) -> None:
    recipe = load_recipe("long")
    tasks = list(Shop(**recipe.environment.options).tasks(split, Random(0)))[: recipe.evaluation.quick_tasks]
    shares = Shop(**recipe.environment.options).levels
    counts = Counter(int(task.tags["level"]) for task in tasks)
    assert all(abs(counts[level] - share * len(tasks)) <= 1 for level, share in shares.items())
