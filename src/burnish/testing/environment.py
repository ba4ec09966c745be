"""Conformance of an environment: inherit `EnvironmentConformance` in a test file, name the class, and run pytest."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

from burnish.core.environment import ScriptedPolicy
from burnish.core.grade import Grade
from burnish.core.hashing import canonical_json, derive_seed
from burnish.core.message import message_to_json
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.base import Environment, expert_policy, has_expert
from burnish.graders.aggregate import WeightedSum
from burnish.graders.boundary import grade_trajectories
from burnish.graders.registry import make_grader
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.rollout.scripts import constant, no_op, random_valid
from burnish.tasks.taskset import GeneratedTaskset, check_serialisable
from burnish.testing.grader import HOSTILE_ANSWERS

SLACK = 0.05


class EnvironmentConformance:
    """The laws of environments, as tests.

    ```python
    class TestWarehouse(EnvironmentConformance):
        make_environment = Warehouse
    ```

    make_environment makes a fresh environment without arguments.  n_tasks of each split are played.  An
    environment whose tasks come from elsewhere overrides `all_tasks`.
    """

    make_environment: Any
    n_tasks: int = 30
    seed: int = 0
    timeout_s: float = 30.0
    _made_tasks: list[Task] | None = None

    def all_tasks(self) -> dict[str, Sequence[Task]]:
        """The tasks by split, from two splits on checked for leaks."""
        sample = self._made()
        taskset = GeneratedTaskset(
            sample.name, sample.chance, sample.splits, lambda split, rng: self._made().tasks(split, rng), self.seed
        )
        return {split: taskset.tasks(split) for split in sample.splits}

    def test_every_split_has_tasks_that_survive_json(self) -> None:
        """Tasks are stored and sent to other processes; none stands in train and in another split."""
        for split, tasks in self.all_tasks().items():
            assert tasks, f"split {split!r} is empty"
            for task in tasks:
                check_serialisable(task)

    def test_tasks_are_a_function_of_split_and_seed(self) -> None:
        """Resuming a run makes the tasks anew."""
        one, two = self.all_tasks(), self.all_tasks()
        for split in one:
            assert [task.id for task in one[split]] == [task.id for task in two[split]], f"split {split!r} changes"

    def test_tool_schemas_are_valid(self) -> None:
        """Each tool has a name of its own, a description and a JSON Schema of type object."""
        specs = [tool.spec for tool in self._made().tools()]
        assert len({spec.name for spec in specs}) == len(specs), "two tools share a name"
        for spec in specs:
            jsonschema.Draft202012Validator.check_schema(dict(spec.parameters))
            assert spec.parameters["type"] == "object", f"{spec.name}: parameters are an object"
            assert spec.description, f"{spec.name} has no description; write a docstring"

    def test_oracle_scores_one_on_every_task(self) -> None:
        """The expert, judged by the environment's own graders."""
        if not has_expert(self._made()):
            pytest.skip("no expert; write solve to have it checked")
        for task, played, reward in self._rewarded(expert_policy):
            assert reward == 1.0, f"expert gets {reward} for {task.prompt_text!r}; {_story(played)}"

    def test_idle_policies_stay_at_chance(self) -> None:
        """Doing nothing, or valid things at random, earns at most the declared chance."""
        chance = self._made().chance
        for name, policy in (("no-op", no_op), ("random", random_valid)):
            rewards = [reward for _, _, reward in self._rewarded(policy)]
            mean = sum(reward or 0.0 for reward in rewards) / len(rewards)
            assert mean <= chance + SLACK, f"{name} gets {mean:.3f}, more than the chance {chance} + {SLACK}"

    def test_equal_episodes_are_equal(self) -> None:
        """The same script on the same task sees the same messages and leaves the same final state."""
        policy = self._busy_policy()
        one, two = self._played(policy), self._played(policy)
        for (task, first), (_, second) in zip(one, two, strict=True):
            assert _record(first) == _record(second), f"{task.prompt_text!r} played twice differs: {_story(first)}"

    def test_instances_share_no_state(self) -> None:
        """What other episodes do, also on the same task, changes nothing in this one."""
        policy = self._busy_policy()
        alone = [_record(self._play([task], policy)[0]) for task in self._tasks()[:5]]
        self._played(random_valid)
        among_others = self._play([task for task in self._tasks()[:5] for _ in range(3)], policy)
        for index, record in enumerate(alone):
            for played in among_others[3 * index : 3 * index + 3]:
                assert _record(played) == record, f"an episode saw another one: {_story(played)}"

    def test_tasks_are_left_as_they_were(self) -> None:
        """Members of a group share their task."""
        tasks = self._tasks()
        before = [canonical_json((task.setup, task.reference)) for task in tasks]
        self._play(tasks, self._busy_policy())
        self._play(tasks, random_valid)
        assert before == [canonical_json((task.setup, task.reference)) for task in tasks], "an episode changed its task"

    def test_hostile_answers_are_judged(self) -> None:
        """Every answer gets a reward: one that breaks the environment would escape judgement."""
        task = self._tasks()[0]
        for answer in HOSTILE_ANSWERS:
            played = self._play([task], constant(answer))
            assert played[0].outcome.may_carry_reward, f"{answer[:60]!r} breaks the environment: {_story(played[0])}"
            for grade in self._graded([task], played)[0]:
                assert grade.score is not None, f"{answer[:60]!r} gets no score: {grade.cause} {dict(grade.evidence)}"

    def _made(self) -> Environment:
        environment: Environment = self.make_environment()
        return environment

    def _busy_policy(self) -> ScriptedPolicy:
        return expert_policy if has_expert(self._made()) else random_valid

    def _tasks(self) -> list[Task]:
        """The first tasks of each split, made once for a test."""
        if self._made_tasks is None:
            self._made_tasks = [task for tasks in self.all_tasks().values() for task in tasks[: self.n_tasks]]
        return self._made_tasks

    def _played(self, policy: ScriptedPolicy) -> list[tuple[Task, Trajectory]]:
        tasks = self._tasks()
        return list(zip(tasks, self._play(tasks, policy), strict=True))

    def _play(self, tasks: Sequence[Task], policy: ScriptedPolicy) -> list[Trajectory]:
        plans = [
            EpisodePlan(
                id=f"conformance/{index}",
                group_id=task.id,
                task=task,
                sample_index=index,
                seed=derive_seed(self.seed, task.id),
            )
            for index, task in enumerate(tasks)
        ]
        return asyncio.run(run_scripted(plans, make_environment=lambda task: self._made(), policy=policy))

    def _graded(self, tasks: Sequence[Task], played: Sequence[Trajectory]) -> list[tuple[Grade, ...]]:
        graders = [make_grader(reference) for reference in self._made().graders]
        return asyncio.run(grade_trajectories(tasks, played, graders, timeout_s=self.timeout_s))

    def _rewarded(self, policy: ScriptedPolicy) -> list[tuple[Task, Trajectory, float | None]]:
        tasks = self._tasks()
        played = self._play(tasks, policy)
        return list(zip(tasks, played, WeightedSum().rewards(self._graded(tasks, played)), strict=True))


def _record(played: Trajectory) -> str:
    """What must be equal between equal episodes; never times."""
    messages = [message_to_json(message) for message in played.messages]
    return canonical_json((messages, played.outcome, played.answer, played.final_state))


def _story(played: Trajectory) -> str:
    """The end of an episode in a line, for messages of failed tests."""
    last = [f"{message.role}: {message.text[:120]}" for message in played.messages[-3:]]
    return f"{played.outcome.label} {played.outcome.cause} {played.outcome.detail} | {' | '.join(last)}"
