"""The laws of environments and graders for `repair`, judged by its own graph."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.support.repair_runs import make

from burnish.core.environment import ScriptedPolicy
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import GraderGraph, graph_from
from burnish.testing.environment import EnvironmentConformance


class TestRepair(EnvironmentConformance):
    make_environment = staticmethod(make)
    n_tasks = 4

    def _graph(self) -> GraderGraph:
        return graph_from(make().grader_graph or {})

    def _graded(self, tasks: Sequence[Task], played: Sequence[Trajectory]) -> list[tuple[Grade, ...]]:
        graders = self._graph().graders
        grades = asyncio.run(grade_trajectories(tasks, played, graders, timeout_s=self.timeout_s))
        # Behind a closed gate is judged too: it counts as nothing.
        return [tuple(grade for grade in row if not grade.is_skipped) for row in grades]

    def _rewarded(self, policy: ScriptedPolicy) -> list[tuple[Task, Trajectory, float | None]]:
        tasks = self._tasks()
        played = self._play(tasks, policy)
        graph = self._graph()
        grades = asyncio.run(grade_trajectories(tasks, played, graph.graders, timeout_s=self.timeout_s))
        rewards = [None if reward is None else round(reward, 9) for reward in graph.aggregator.rewards(grades)]
        return list(zip(tasks, played, rewards, strict=True))

    def test_the_graph_and_the_list_name_the_same_graders(self) -> None:
        """Recipes may use either."""
        assert {grader.name for grader in self._graph().graders} == {
            grader if isinstance(grader, str) else grader.name for grader in make().graders
        }
        total = sum(schedule.at(1.0) for schedule in self._graph().aggregator.weights.values())
        assert round(total, 9) == 1.0
