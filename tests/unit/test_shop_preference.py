"""The noisy scorer of preferences: seeded noise by source, a quality that is not success, apart from the verifier."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade
from burnish.core.message import ToolCall
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.base import expert_policy
from burnish.environments.shop import PreferenceGrader, Shop, ShopGrader
from burnish.graders.wire import grader_from_reference, grader_reference
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted

SOURCES = {"counter": 1.0, "phone": 1.0, "mail": 1.0}
NOISE = {"counter": 0.02, "phone": 0.06, "mail": 0.2}
TASKS = list(Shop(level={"1": 1, "2": 1}, sources=SOURCES, train=600).tasks("train", Random(7)))


def played(tasks: list[Task], policy: Any = expert_policy) -> list[Trajectory]:
    plans = [
        EpisodePlan(id=f"{index}", group_id=f"{index}", task=task, sample_index=0, seed=index)
        for index, task in enumerate(tasks)
    ]
    return asyncio.run(run_scripted(plans, make_environment=lambda task: Shop(level=2), policy=policy))


def mistaken(name: str) -> Any:
    return lambda environment, task, rng: expert_policy(environment, task, rng, name)


def judged(grader: PreferenceGrader, tasks: list[Task], trajectories: list[Trajectory]) -> list[Grade]:
    return [grader.judge(task, trajectory) for task, trajectory in zip(tasks, trajectories, strict=True)]


def mean_quality(policy: Any) -> float:
    tasks = TASKS[:120]
    return statistics.fmean(grade.score or 0.0 for grade in judged(PreferenceGrader(), tasks, played(tasks, policy)))


def test_each_source_has_its_own_noise() -> None:
    grades = judged(PreferenceGrader(seed=3, noise=NOISE), TASKS, played(TASKS))
    for source, sd in NOISE.items():
        drawn = [
            grade.evidence["noise"] for task, grade in zip(TASKS, grades, strict=True) if task.tags["source"] == source
        ]
        assert statistics.fmean(drawn) == pytest.approx(0.0, abs=4 * sd / len(drawn) ** 0.5)
        assert statistics.stdev(drawn) == pytest.approx(sd, rel=0.2)


def test_the_noise_is_a_function_of_seed_conversation_and_source() -> None:
    grader = PreferenceGrader(seed=3, noise=dict.fromkeys(SOURCES, 0.1))
    task = TASKS[0]
    (trajectory,) = played([task])
    again = replace(trajectory, id="another", group_id="another", sample_index=5, seed=99, total_s=3.0)
    noise = grader.judge(task, trajectory).evidence["noise"]
    assert grader.judge(task, again).evidence["noise"] == noise
    other_seed = replace(grader, seed=4).judge(task, trajectory)
    moved = replace(task, tags={**task.tags, "source": "mail" if task.tags["source"] != "mail" else "phone"}, id="")
    (longer,) = played([task], longer_by_a_look)
    others = [other_seed, grader.judge(moved, trajectory), grader.judge(task, longer)]
    assert noise not in [grade.evidence["noise"] for grade in others]


def longer_by_a_look(environment: Any, task: Task, rng: Random) -> Any:
    _ = yield ToolCall(id="call_0", name="calculator", arguments={"expression": "1+1"})
    return (yield from expert_policy(environment, task, rng))


def test_quality_goes_along_with_being_right_and_can_be_fooled() -> None:
    right, wrong, guess = (
        mean_quality(policy) for policy in (expert_policy, mistaken("wrong_column"), mistaken("guess"))
    )
    assert right > guess + 0.2
    # A wrong row is grounded as well as a right one: a verifier sees the difference, this scorer hardly does.
    assert abs(right - wrong) < 0.2


def test_brevity_is_liked_and_refused_calls_are_not() -> None:
    def clumsy(environment: Any, task: Task, rng: Random) -> Any:
        _ = yield ToolCall(id="call_0", name="get_product", arguments={"product": "unicorn"})
        return (yield from expert_policy(environment, task, rng))

    plain, longer, refused = (mean_quality(policy) for policy in (expert_policy, longer_by_a_look, clumsy))
    assert plain > longer > refused + 0.1


def test_an_unfinished_episode_has_no_quality_and_a_broken_one_no_score() -> None:
    task = TASKS[0]
    (trajectory,) = played([task])
    cut = replace(trajectory, outcome=Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS))
    assert PreferenceGrader().judge(task, cut).score == 0.0
    broken = replace(trajectory, outcome=Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash"))
    assert PreferenceGrader().judge(task, broken).score is None


def test_scores_stay_in_range_under_heavy_noise() -> None:
    tasks = TASKS[:100]
    grades = judged(PreferenceGrader(noise=dict.fromkeys(SOURCES, 5.0)), tasks, played(tasks))
    assert {grade.score for grade in grades} >= {0.0, 1.0}
    assert all(0.0 <= (grade.score or 0.0) <= 1.0 for grade in grades)


def test_a_shop_has_it_where_asked_for_beside_the_verifier() -> None:
    assert [grader.name for grader in Shop().graders] == ["shop"]  # type: ignore[union-attr]
    shop = Shop(sources={name: {"noise": sd} for name, sd in NOISE.items()}, preference_seed=2)
    assert [grader.name for grader in shop.graders] == ["shop", "preference"]  # type: ignore[union-attr]
    assert shop.graders[1] == PreferenceGrader(seed=2, noise=NOISE)


def test_what_it_thinks_does_not_reach_the_verifier() -> None:
    task = TASKS[0]
    (trajectory,) = played([task])
    assert set(ShopGrader().judge(task, trajectory).evidence) & {"quality", "noise"} == set()


def test_another_process_can_make_it() -> None:
    grader = PreferenceGrader(seed=2, noise=NOISE)
    reference = grader_reference(grader)
    assert reference is not None
    assert grader_from_reference(reference) == grader


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": {"phone": {"nose": 0.1}}}, "weight and noise, got 'nose' for 'phone'"),
        ({"sources": {"phone": {"noise": -0.1}}, "preference_seed": 0}, "from 0 on, got -0.1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Shop(**options)
