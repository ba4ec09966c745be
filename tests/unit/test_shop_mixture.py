"""Mixtures of levels and sources: shares, skills, and what stays as it is without them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from random import Random
from typing import Any

import pytest

from burnish.core.errors import ConfigError
from burnish.core.task import Task
from burnish.environments.shop import Shop
from burnish.environments.shop.catalogue import LEVELS, level_shares, templates_in_turn

MIXED: dict[str, Any] = {"level": {"1": 3, "2": 9, "3": 8}, "sources": {"counter": 2, "phone": 1, "mail": 1}}


def tags(tasks: list[Task], name: str) -> Counter[str]:
    return Counter(task.tags[name] for task in tasks)


def mixed(split: str, n: int, seed: int = 1) -> list[Task]:
    return list(Shop(train=n, heldout=n, unseen=n, **MIXED).tasks(split, Random(seed)))


@pytest.mark.parametrize("split", ["train", "heldout", "unseen"])
@pytest.mark.parametrize("n", [4, 50, 200])
def test_any_beginning_of_a_split_has_the_shares_of_levels(split: str, n: int) -> None:
    counts = tags(mixed(split, 200)[:n], "level")
    assert all(abs(counts[level] - share * n) <= 1 for level, share in (("1", 0.15), ("2", 0.45), ("3", 0.4)))


def test_sources_have_their_shares_and_belong_to_no_template() -> None:
    tasks = mixed("train", 2000)
    counts = tags(tasks, "source")
    assert abs(counts["counter"] / 2000 - 0.5) < 0.04
    assert abs(counts["phone"] / 2000 - 0.25) < 0.04
    for template in tags(tasks, "template"):
        of = tags([task for task in tasks if task.tags["template"] == template], "source")
        assert set(of) == {"counter", "phone", "mail"}, template


def test_the_templates_of_each_level_come_in_turn() -> None:
    taken = list(islice(templates_in_turn({1: 0.5, 3: 0.5}, unseen=False), 40))
    for level in (1, 3):
        names = [template.name for template in taken if template.level == level]
        own = [template.name for template in LEVELS[level] if not template.unseen]
        assert names == (own * 3)[: len(names)]


def test_one_level_is_a_mixture_of_one() -> None:
    """Without sources nothing more is drawn, so the tasks of one level do not depend on how it is written."""
    alone, weighted = (Shop(level=level, train=60) for level in (2, {"2": 0.3, "3": 0.0}))
    assert [one.content_hash for one in alone.tasks("train", Random(3))] == [
        one.content_hash for one in weighted.tasks("train", Random(3))
    ]
    assert alone.limits == weighted.limits
    assert {task.tags["source"] for task in alone.tasks("train", Random(3))} == {"shop"}


def test_the_highest_level_sets_the_limits() -> None:
    assert Shop(level={"1": 0.9, "3": 0.1}).limits == Shop(level=3).limits
    assert Shop(level={"1": 0.9, "3": 0.0}).limits == Shop(level=1).limits


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_needs_several_skills(level: int) -> None:
    skills = {template.skill for template in LEVELS[level]}
    assert skills <= {"lookup", "calculation", "change", "calculated_change"}
    assert len(skills) >= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": {"4": 1.0}}, "level is 1, 2 or 3, got '4'"),
        ({"level": {"1": -1.0}}, "numbers from 0 on, got -1.0 for '1'"),
        ({"level": {"1": 0.0}}, "need one above 0"),
        ({"level": {}}, "need one above 0"),
        ({"sources": {"phone": "many"}}, "weights of sources are numbers"),
        ({"sources": {"phone": float("nan")}}, "weights of sources are numbers"),
    ],
)
def test_bad_mixtures_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shop(**options)


def test_toml_and_python_keys_mean_the_same() -> None:
    assert level_shares({"1": 1, "3": 3}) == level_shares({1: 1, 3: 3}) == {1: 0.25, 3: 0.75}  # type: ignore[dict-item]
