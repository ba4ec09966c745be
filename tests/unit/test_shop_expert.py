"""The expert solves every task, each of its mistakes fails, and policies without skill earn nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

import pytest

from burnish.core.environment import ScriptedPolicy
from burnish.core.errors import ToolError
from burnish.core.task import Task
from burnish.environments.base import expert_policy
from burnish.environments.shop import Shop, ShopGrader
from burnish.environments.shop.catalogue import BY_NAME
from burnish.environments.shop.level1 import Price
from burnish.environments.shop.mistakes import plausible
from burnish.environments.shop.templates import Slots, Steps, look
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.rollout.scripts import best_constant, constant, no_op, random_valid
from burnish.testing.grader import answered

LEVEL = pytest.mark.parametrize("level", [1, 2, 3])
SPLIT = pytest.mark.parametrize("split", ["train", "heldout", "unseen"])


async def play(task: Task, policy: ScriptedPolicy = expert_policy, **options: Any) -> tuple[float | None, int]:
    """Score and number of calls of one scripted episode."""
    shop = Shop()
    await shop.start(task)
    tools = {tool.spec.name: tool for tool in shop.tools()}
    script = policy(shop, task, Random(4), **options)
    n_calls, text = 0, None
    try:
        while True:
            call: Any = next(script) if text is None else script.send(text)
            n_calls += 1
            try:
                text = await tools[call.name].call(call.arguments)
            except ToolError as error:
                text = str(error)
    except StopIteration as end:
        answer = end.value
    state = await shop.finish(answer)
    await shop.close()
    return ShopGrader().judge(task, answered(task, answer, final_state=state)).score, n_calls


def play_all(tasks: list[Task], **options: Any) -> list[tuple[float | None, int]]:
    async def run() -> list[tuple[float | None, int]]:
        return [await play(task, **options) for task in tasks]

    return asyncio.run(run())


def sample(level: int, split: str, n: int) -> list[Task]:
    return list(Shop(level=level, train=n, heldout=n, unseen=n).tasks(split, Random(9)))


@LEVEL
@SPLIT
def test_the_expert_solves_every_task(level: int, split: str) -> None:
    results = play_all(list(Shop(level=level).tasks(split, Random(1))))
    assert Counter(score for score, _ in results) == {1.0: len(results)}
    calls = {n_calls for _, n_calls in results}
    assert calls == {1: {1, 2}, 2: {3, 4}, 3: {5, 6}}[level]


@LEVEL
@SPLIT
@pytest.mark.parametrize("mistake", Shop.mistakes)
def test_every_mistake_fails_the_task(level: int, split: str, mistake: str) -> None:
    results = play_all(sample(level, split, 60), mistake=mistake)
    assert Counter(score for score, _ in results) == {0.0: len(results)}
    assert (mistake == "guess") == all(n_calls == 0 for _, n_calls in results)


def test_an_expert_that_reads_the_wrong_column_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference does not come from the script, so a wrong script shows."""

    def script(self: Price, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        return str(found["weight"])

    tasks = [task for task in sample(1, "train", 60) if task.tags["template"] == "price"]
    assert all(score == 1.0 for score, _ in play_all(tasks))
    monkeypatch.setattr(type(BY_NAME["price"]), "script", script)
    assert all(score == 0.0 for score, _ in play_all(tasks))


@pytest.mark.parametrize("answer", ["7", "141", "1602", "Oslo"])
def test_plausible_answers_differ_and_keep_their_shape(answer: str) -> None:
    rng = Random(0)
    guesses = [plausible(answer, rng) for _ in range(200)]
    assert answer not in guesses
    assert all(len(guess.split()) == len(answer.split()) for guess in guesses)
    assert len(set(guesses)) > 5


def score_of(level: int, split: str, policy: ScriptedPolicy, n: int = 300) -> float:
    tasks = sample(level, split, n)
    plans = [
        EpisodePlan(id=f"{index}", group_id=f"{index}", task=task, sample_index=0, seed=index)
        for index, task in enumerate(tasks)
    ]
    trajectories = asyncio.run(run_scripted(plans, make_environment=lambda task: Shop(level=level), policy=policy))
    grades = [ShopGrader().judge(task, found) for task, found in zip(tasks, trajectories, strict=True)]
    assert all(grade.score is not None for grade in grades)
    return sum(grade.score or 0.0 for grade in grades) / n


@pytest.mark.parametrize(("level", "split"), [(1, "heldout"), (1, "unseen"), (2, "heldout"), (3, "heldout")])
def test_policies_without_skill_earn_at_most_chance(level: int, split: str) -> None:
    bar = Shop.chance + 0.05
    assert score_of(level, split, no_op) == 0.0
    assert score_of(level, split, random_valid) <= bar
    assert score_of(level, split, constant(best_constant(sample(level, split, 300)))) <= bar
    assert score_of(level, split, constant("done")) == 0.0


def test_the_runner_scores_the_expert_like_the_direct_drive() -> None:
    assert score_of(2, "heldout", expert_policy, n=60) == 1.0
