"""Progress: 1 for the expert, less and less for those who stop earlier, and never a part of the score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from burnish.core.grade import Grade
from burnish.core.message import ToolCall
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Trajectory
from burnish.environments.base import expert_policy
from burnish.environments.shop import Shop, ShopGrader
from burnish.environments.shop.catalogue import BY_NAME, LEVELS
from burnish.environments.shop.progress import established_facts, needed_facts, read_progress, write_progress
from burnish.environments.shop.world import build_world
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted

TASKS = [
    task
    for level in LEVELS
    for split in ("train", "unseen")
    for task in Shop(level=level, train=40, unseen=40).tasks(split, Random(5))
]
BY_TEMPLATE = {task.tags["template"]: task for task in TASKS}

Policy = Callable[[Any, Task, Random], Any]


def played(tasks: list[Task], policy: Policy = expert_policy, limits: Limits | None = None) -> list[Trajectory]:
    plans = [
        EpisodePlan(id=f"{index}", group_id=f"{index}", task=task, sample_index=0, seed=index)
        for index, task in enumerate(tasks)
    ]
    options = {} if limits is None else {"limits": limits}
    return asyncio.run(run_scripted(plans, make_environment=lambda task: Shop(level=3), policy=policy, **options))


def grades(tasks: list[Task], policy: Policy = expert_policy, limits: Limits | None = None) -> list[Grade]:
    found = played(tasks, policy, limits)
    return [ShopGrader().judge(task, trajectory) for task, trajectory in zip(tasks, found, strict=True)]


def stopping_after(n_calls: int) -> Policy:
    def policy(environment: Any, task: Task, rng: Random) -> Any:
        script = expert_policy(environment, task, rng)
        text: str | None = None
        for _ in range(n_calls):
            try:
                call = next(script) if text is None else script.send(text)
            except StopIteration as end:
                return end.value
            text = yield call
        return "no idea"

    return policy


def mistaken(name: str) -> Policy:
    return lambda environment, task, rng: expert_policy(environment, task, rng, name)


def test_the_needed_facts_are_those_of_the_experts_real_episode() -> None:
    """They are worked out from the world's values; the episode has them from the database through the tools."""
    assert {task.tags["template"] for task in TASKS} == set(BY_NAME)
    for task, trajectory in zip(TASKS, played(TASKS), strict=True):
        assert needed_facts(task) == established_facts(trajectory.messages), task.tags["template"]


def test_the_expert_has_progress_one() -> None:
    assert {(grade.score, grade.evidence["progress"]) for grade in grades(TASKS)} == {(1.0, 1.0)}


def test_progress_grows_with_every_call_while_the_score_is_zero() -> None:
    tasks = [BY_TEMPLATE[name] for name in ("order_total", "relocate", "close_latest", "top_up_both", "latest_net")]
    curves = [[grade.evidence["progress"] for grade in grades(tasks, stopping_after(n))] for n in range(3)]
    assert curves[0] == [0.0] * len(tasks)
    assert all(low < high < 1 for one, two in pairwise(curves) for low, high in zip(one, two, strict=True))
    assert {grade.score for grade in grades(tasks, stopping_after(2))} == {0.0}


def test_a_guess_has_no_progress_and_a_wrong_column_has_some() -> None:
    assert {grade.evidence["progress"] for grade in grades(TASKS, mistaken("guess"))} == {0.0}
    wrong = grades(TASKS, mistaken("wrong_column"))
    assert {grade.score for grade in wrong} == {0.0}
    assert sum(0 < grade.evidence["progress"] < 1 for grade in wrong) > 0.6 * len(wrong)


def test_rows_that_should_not_have_changed_are_taken_off() -> None:
    task = BY_TEMPLATE["raise_both"]
    product = task.reference["slots"]["product"]
    other = next(name for name in build_world(task.setup["seed"]).products if name not in str(task.reference))

    def vandal(environment: Any, task: Task, rng: Random) -> Any:
        _ = yield ToolCall(id="call_0", name="set_price", arguments={"product": other, "price": 1})
        return (yield from expert_policy(environment, task, rng))

    def twice(environment: Any, task: Task, rng: Random) -> Any:
        answer = yield from expert_policy(environment, task, rng)
        _ = yield ToolCall(id="call_0", name="set_price", arguments={"product": product, "price": 1})
        return answer

    # Six facts: two prices, two sums, two rows.
    for policy, progress in ((vandal, 5 / 6), (twice, 4 / 6)):
        (grade,) = grades([task], policy)
        assert (grade.score, grade.evidence["progress"]) == (0.0, pytest.approx(progress))


def test_a_right_answer_without_a_lookup_has_progress_one() -> None:
    task = BY_TEMPLATE["price"]
    (grade,) = grades([task], lambda environment, task, rng: iter_answer(task.reference["answer"]))
    assert (grade.score, grade.evidence["progress"]) == (1.0, 1.0)


def iter_answer(answer: str) -> Any:
    return answer
    yield


def test_an_episode_that_is_cut_off_has_progress_and_no_score() -> None:
    task = BY_TEMPLATE["order_gap"]
    (grade,) = grades([task], limits=Limits(max_turns=2))
    assert grade.score == 0.0
    assert 0 < grade.evidence["progress"] < 1


def test_a_lookup_that_was_refused_is_no_fact() -> None:
    def policy(environment: Any, task: Task, rng: Random) -> Any:
        _ = yield ToolCall(id="call_0", name="get_product", arguments={"product": "unicorn"})
        return "no idea"

    (trajectory,) = played([BY_TEMPLATE["price"]], policy)
    assert established_facts(trajectory.messages) == frozenset()


def test_tasks_that_the_shop_did_not_make_have_none() -> None:
    assert needed_facts(Task(prompt="?", reference={"answer": "1"})) is None
    (trajectory,) = played([BY_TEMPLATE["price"]])
    grade = ShopGrader().judge(Task(prompt="?", reference={"answer": "1"}), trajectory)
    assert "progress" not in grade.evidence


def test_the_formula() -> None:
    needed = frozenset({"a", "b", "c"})
    assert read_progress(needed, frozenset({"a", "x"}), right=False, n_extra=0) == 0.25
    assert read_progress(needed, frozenset(), right=False, n_extra=2) == 0.0
    assert read_progress(needed, needed, right=True, n_extra=1) == 0.75
    assert write_progress(needed, frozenset({"a"}), n_rows=2, n_missing=1, n_extra=1) == 0.2
    assert write_progress(frozenset(), frozenset(), n_rows=1, n_missing=1, n_extra=0) == 0.0


def test_skills_say_whether_the_expert_calculates() -> None:
    for task, trajectory in zip(TASKS, played(TASKS), strict=True):
        called = {call.name for message in trajectory.messages for call in message.tool_calls}
        assert ("calculat" in task.tags["skill"]) == ("calculator" in called), task.tags["template"]
        assert ("change" in task.tags["skill"]) == (task.tags["kind"] == "write")
