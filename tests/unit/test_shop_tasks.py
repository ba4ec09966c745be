"""The shop's tasksets: seeded, spread out, split by pairs of template and entity."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from random import Random

import pytest

from burnish.core.errors import ConfigError, TaskError
from burnish.core.hashing import canonical_json
from burnish.core.task import Task
from burnish.environments.shop import Shop
from burnish.environments.shop.catalogue import BY_NAME, LEVELS
from burnish.environments.shop.world import ORDER_IDS, PRODUCTS, build_world

LEVEL = pytest.mark.parametrize("level", [1, 2, 3])
SPLITS = ("train", "heldout", "unseen")


@lru_cache(maxsize=16)
def tasks_of(level: int, split: str, seed: int = 1) -> list[Task]:
    return list(Shop(level=level).tasks(split, Random(seed)))


def words(tasks: Iterable[Task]) -> set[str]:
    return {word for task in tasks for word in re.findall(r"\w+", task.prompt_text)}


def pair(task: Task) -> tuple[str, ...]:
    """Template and entities of a task."""
    template = BY_NAME[task.tags["template"]]
    return (template.name, *(str(task.reference["slots"][slot]) for slot in template.entity))


def entities(tasks: Iterable[Task], kind: str) -> set[str]:
    """Every product, customer or order that these tasks are about; `other` is a second one of the same kind."""
    found = [task.reference["slots"] for task in tasks if kind in task.reference["slots"]]
    return {str(slots[slot]) for slots in found for slot in (kind, "other") if slot in slots}


@LEVEL
def test_sizes_and_levels(level: int) -> None:
    assert [len(tasks_of(level, split)) for split in SPLITS] == [2000, 300, 200]
    assert {task.tags["level"] for split in SPLITS for task in tasks_of(level, split)} == {str(level)}


@LEVEL
@pytest.mark.parametrize("split", SPLITS)
def test_the_seed_decides(level: int, split: str) -> None:
    shop = Shop(level=level, train=50, heldout=50, unseen=50)
    hashes = [[task.content_hash for task in shop.tasks(split, Random(seed))] for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1]
    assert not set(hashes[0]) & set(hashes[2])


@LEVEL
def test_tasks_are_distinct_and_plain(level: int) -> None:
    every = [task for split in SPLITS for task in tasks_of(level, split)]
    assert len({task.content_hash for task in every}) == len(every)
    assert all(canonical_json(task.reference) and canonical_json(task.setup) for task in every)


@LEVEL
@pytest.mark.parametrize("split", SPLITS)
def test_reads_and_writes_at_every_level(level: int, split: str) -> None:
    kinds = Counter(task.tags["kind"] for task in tasks_of(level, split))
    assert min(kinds["read"], kinds["write"]) >= 0.4 * kinds.total()


@LEVEL
def test_heldout_pairs_never_occur_in_train(level: int) -> None:
    train = {pair(task) for task in tasks_of(level, "train")}
    heldout = {pair(task) for seed in (1, 2) for task in tasks_of(level, "heldout", seed)}
    assert not train & heldout
    assert len(heldout) > 50


@LEVEL
def test_every_template_and_entity_occurs_in_train(level: int) -> None:
    names = {template.name for template in LEVELS[level] if not template.unseen}
    train, heldout = tasks_of(level, "train"), tasks_of(level, "heldout")
    assert {task.tags["template"] for task in train} == names
    assert {task.tags["template"] for task in heldout} == names
    assert {str(word) for word in (*PRODUCTS, *ORDER_IDS)} <= words(train)
    for kind in ("product", "customer", "order"):
        assert entities(heldout, kind) <= entities(train, kind)


@LEVEL
def test_every_word_of_heldout_prompts_occurs_in_train(level: int) -> None:
    assert words(tasks_of(level, "heldout")) <= words(tasks_of(level, "train"))
    # The unseen split has wordings of its own, so the same comparison fails there.
    assert not words(tasks_of(level, "unseen")) <= words(tasks_of(level, "train"))


@LEVEL
def test_unseen_templates_stay_out_of_the_other_splits(level: int) -> None:
    unseen = {task.tags["template"] for task in tasks_of(level, "unseen")}
    assert len(unseen) >= 2
    assert not unseen & {task.tags["template"] for split in ("train", "heldout") for task in tasks_of(level, split)}


@LEVEL
@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_spread_and_not_in_the_prompt(level: int, split: str) -> None:
    reads = [task for task in tasks_of(level, split) if task.tags["kind"] == "read"]
    answers = Counter(task.reference["answer"] for task in reads)
    assert answers.most_common(1)[0][1] <= 0.05 * len(reads)
    for task in reads:
        assert task.reference["answer"] not in re.findall(r"\w+", task.prompt_text)


@LEVEL
def test_a_template_has_no_common_answer(level: int) -> None:
    by_template: dict[str, Counter[str]] = {}
    for split in SPLITS:
        for task in tasks_of(level, split):
            if "answer" in task.reference:
                by_template.setdefault(task.tags["template"], Counter())[task.reference["answer"]] += 1
    for name, answers in by_template.items():
        assert answers.most_common(1)[0][1] <= 0.1 * answers.total(), name


@LEVEL
def test_jobs_expect_a_change(level: int) -> None:
    for split in SPLITS:
        for task in tasks_of(level, split):
            if task.tags["kind"] == "write":
                changes = task.reference["changes"]
                assert changes
                assert all(change["before"] != change["after"] for change in changes)


def test_the_same_question_has_other_answers_in_other_worlds() -> None:
    answers: dict[str, set[str]] = {}
    for task in tasks_of(1, "train"):
        if task.tags["template"] == "price":
            answers.setdefault(task.prompt_text, set()).add(task.reference["answer"])
    assert sum(len(found) > 1 for found in answers.values()) > 0.8 * len(answers)


def test_setup_names_a_world_with_the_entities() -> None:
    for task in tasks_of(1, "heldout")[:50]:
        world, slots = build_world(task.setup["seed"]), task.reference["slots"]
        assert slots.get("product", next(iter(world.products))) in world.products
        assert slots.get("order", next(iter(world.orders))) in world.orders


def test_instructions_become_the_system_text() -> None:
    (task,) = Shop(train=1, instructions="Be brief.").tasks("train", Random(1))
    assert task.system == "Be brief."


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="level is 1, 2 or 3, or weights by level, got 4"):
        Shop(level=4)
    with pytest.raises(ConfigError, match="size of heldout"):
        Shop(heldout=-1)
    with pytest.raises(TaskError, match="no split 'test'"):
        list(Shop().tasks("test", Random(1)))
