"""Evaluation as values: plans, summaries, intervals, exclusions, storage and pooling."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import ConfigError, RunStopped
from burnish.core.grade import Grade
from burnish.core.outcome import COMPLETED, Ending, Outcome, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.evaluation.heldout import (
    EvalResult,
    EvalSpec,
    Mode,
    TaskScore,
    by_tag,
    evaluate,
    evaluation_plans,
    from_row,
    pool,
    success_rate,
    to_row,
)
from burnish.rollout.episode import EpisodePlan

TASKS = [
    Task(prompt=f"What is {i} + 1?", reference={"answer": str(i + 1)}, tags={"odd": str(i % 2)}) for i in range(10)
]
CRASHED = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="tool_raised", detail="KeyError: 'A'")


class FirstGrade:
    """The score of the first grade is the reward."""

    def rewards(self, grades_G: Sequence[Sequence[Grade]]) -> Sequence[float | None]:
        return [grades[0].score for grades in grades_G]


class World:
    """Rollout and grading of a policy that knows some of the answers; some episodes crash."""

    def __init__(self, *, right: set[int], crashed: set[int] = frozenset(), ungraded: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.right, self.crashed, self.ungraded = right, crashed, ungraded
        self.params: SamplingParams | None = None

    async def rollout(self, plans: Sequence[EpisodePlan], params: SamplingParams) -> list[Trajectory]:
        self.params = params
        return [
            Trajectory(
                id=plan.id,
                task_id=plan.task.id,
                task_hash=plan.task.content_hash,
                group_id=plan.group_id,
                sample_index=plan.sample_index,
                seed=plan.seed,
                nodes=(),
                outcome=CRASHED if index in self.crashed else COMPLETED,
                tags=dict(plan.task.tags),
            )
            for index, plan in enumerate(plans)
        ]

    async def grade(self, tasks: Sequence[Task], trajectories: Sequence[Trajectory]) -> list[tuple[Grade, ...]]:
        return [
            (Grade(grader="g", version="1", score=None, cause="grader_error:timeout"),)
            if index in self.ungraded
            # A careless grader scores a crashed episode 0; it must not count.
            else (Grade(grader="g", version="1", score=float(index in self.right)),)
            for index in range(len(trajectories))
        ]


def run(world: World, spec: EvalSpec, tasks: Sequence[Task] = TASKS) -> EvalResult:
    return asyncio.run(evaluate(tasks, spec, rollout=world.rollout, grade=world.grade, aggregator=FirstGrade()))


def test_success_outcomes_and_a_wilson_interval() -> None:
    result = run(World(right={0, 1, 2, 3, 4, 5, 6, 7}), EvalSpec(label="after_rl", mode=Mode.GREEDY))
    assert (result.rate.n, result.rate.successes, result.rate.share) == (10, 8, 0.8)
    assert result.rate.method == "wilson"
    assert (round(result.rate.low, 4), round(result.rate.high, 4)) == (0.4902, 0.9433)
    assert result.mean_score == 0.8
    assert result.outcomes == {"completed": 10}
    assert len(result.trajectories) == len(result.grades) == len(result.rewards) == 10


def test_excluded_episodes_are_in_no_average() -> None:
    world = World(right={0, 1, 2, 3}, crashed={8}, ungraded={9})
    result = run(world, EvalSpec(label="a"))
    assert result.excluded == 2
    assert (result.rate.n, result.rate.successes) == (8, 4)
    assert result.outcomes == {"completed": 9, "error:environment": 1}
    assert result.rewards[8] is None
    assert result.rewards[9] is None


def test_too_many_exclusions_stop_with_the_causes() -> None:
    world = World(right={0}, crashed={1, 2, 3}, ungraded={4})
    with pytest.raises(RunStopped, match="3 x error:environment tool_raised") as caught:
        run(world, EvalSpec(label="a"))
    assert caught.value.cause == "excluded"
    assert "1 x no grade: grader_error:timeout" in str(caught.value)
    assert run(world, EvalSpec(label="a", max_excluded_share=0.5)).excluded == 4


def test_modes_set_the_sampling_parameters() -> None:
    world = World(right=set())
    run(world, EvalSpec(label="a", mode=Mode.GREEDY, temperature=0.7))
    assert world.params == SamplingParams(temperature=0.0)
    run(world, EvalSpec(label="a", temperature=0.7, top_p=0.9))
    assert world.params == SamplingParams(temperature=0.7, top_p=0.9)


def test_plans_pair_across_labels_and_modes() -> None:
    one = evaluation_plans(TASKS, EvalSpec(label="sft", samples=3, seed=4))
    two = evaluation_plans(TASKS, EvalSpec(label="rl", mode=Mode.GREEDY, samples=3, seed=4))
    other = evaluation_plans(TASKS, EvalSpec(label="sft", samples=3, seed=5))
    assert [plan.seed for plan in one] == [plan.seed for plan in two]
    assert not {plan.seed for plan in one} & {plan.seed for plan in other}
    assert len({plan.seed for plan in one}) == len({plan.id for plan in one}) == 30
    assert one[4].id == "eval/sft/heldout/sampled/00001/01"
    assert one[4].group_id == "eval/sft/heldout/sampled/00001"


@pytest.mark.parametrize("bad", [{"label": ""}, {"label": "a/b"}, {"label": "a", "samples": 0}])
def test_wrong_specs_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        EvalSpec(**bad)  # type: ignore[arg-type]


def test_no_tasks_and_repeated_tasks_are_refused() -> None:
    with pytest.raises(ConfigError, match="no tasks"):
        evaluation_plans([], EvalSpec(label="a"))
    with pytest.raises(ConfigError, match="more than once"):
        evaluation_plans([TASKS[0], TASKS[0]], EvalSpec(label="a"))


def test_a_rollout_that_loses_or_reorders_episodes_is_caught() -> None:
    world = World(right=set())

    async def shuffled(plans: Sequence[EpisodePlan], params: SamplingParams) -> list[Trajectory]:
        return (await world.rollout(plans, params))[::-1]

    with pytest.raises(ValueError, match="in the order of the plans"):
        asyncio.run(evaluate(TASKS, EvalSpec(label="a"), rollout=shuffled, grade=world.grade, aggregator=FirstGrade()))


def score(task_id: str, *scores: float | None) -> TaskScore:
    return TaskScore(task_id=task_id, task_hash=task_id, scores=scores, seeds=tuple(range(len(scores))))


def test_samples_of_one_task_do_not_count_as_independent() -> None:
    """Ten tasks, always or never solved: 160 episodes know no more than ten."""
    wide = success_rate([score(str(i), *[float(i < 5)] * 16) for i in range(10)])
    alone = success_rate([score(str(i), float(i < 5)) for i in range(10)])
    assert wide.method == "cluster_bootstrap"
    assert wide.share == 0.5
    assert wide.high - wide.low > 0.8 * (alone.high - alone.low)
    naive = success_rate([score(str(i), float(i < 80)) for i in range(160)])
    assert wide.high - wide.low > 2 * (naive.high - naive.low)


def test_all_alike_never_gives_an_interval_of_width_zero() -> None:
    rate = success_rate([score(str(i), 1.0, 1.0) for i in range(20)])
    assert (rate.method, rate.high) == ("wilson_by_task", 1.0)
    assert 0.8 < rate.low < 0.9


def test_partial_credit_is_no_success_but_counts_in_the_mean() -> None:
    rate = success_rate([score("a", 0.9), score("b", 1.0)])
    assert rate.successes == 1
    nothing = success_rate([score("a", None)])
    assert nothing.n == 0
    assert math.isnan(nothing.share)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=1, max_size=4), min_size=1, max_size=12))
def test_a_rate_lies_in_its_interval(scores: list[list[float | None]]) -> None:
    rate = success_rate([score(str(i), *values) for i, values in enumerate(scores)])
    assert 0.0 <= rate.low <= rate.high <= 1.0
    if rate.n:
        assert rate.low - 1e-9 <= rate.share <= rate.high + 1e-9


def test_a_result_survives_storage() -> None:
    result = run(World(right={1, 2}, crashed={3}), EvalSpec(label="a"))
    row = to_row(result, phase="rl", step=12)
    json.dumps(row.details, allow_nan=False)
    assert (row.phase, row.step, row.n, row.successes, row.mean) == ("rl", 12, 9, 2, result.rate.share)
    back = from_row(replace(row, details=json.loads(json.dumps(row.details))))
    assert back == replace(result, trajectories=(), rewards=(), grades=())
    assert back.taskset_hash == result.taskset_hash


def test_a_row_without_task_scores_says_what_to_do() -> None:
    row = to_row(run(World(right={1}), EvalSpec(label="a")), phase="eval", step=0)
    with pytest.raises(ConfigError, match="burnish eval"):
        from_row(replace(row, details={}))


def test_breakdown_by_tag() -> None:
    rates = by_tag(run(World(right={0, 2, 4}), EvalSpec(label="a")), "odd")
    assert {value: (rate.successes, rate.n) for value, rate in rates.items()} == {"0": (3, 5), "1": (0, 5)}


def test_pooling_keeps_tasks_and_adds_samples() -> None:
    one = run(World(right={0, 1, 2}), EvalSpec(label="a", seed=0))
    two = run(World(right={0}, crashed={9}), EvalSpec(label="a", seed=1))
    both = pool([one, two])
    assert (both.rate.n, both.rate.successes, both.excluded) == (19, 4, 1)
    assert both.tasks[0].scores == (1.0, 1.0)
    assert both.outcomes == {"completed": 19, "error:environment": 1}
    with pytest.raises(ConfigError, match="cannot be pooled"):
        pool([one, run(World(right=set()), EvalSpec(label="b"), TASKS[:5])])
    with pytest.raises(ConfigError, match="no evaluations"):
        pool([])
