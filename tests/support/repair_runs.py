"""Episodes of the environment `repair`, played by a script and judged by its graph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair import Repair
from burnish.environments.repair.rooms import is_isolated
from burnish.graders.boundary import grade_trajectories
from burnish.graders.graph import graph_from
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from burnish.sandbox.ladder import SandboxSpec
from burnish.tasks.taskset import GeneratedTaskset


@lru_cache(maxsize=1)
def options() -> Mapping[str, Any]:
    """Those of this machine: isolation by the best rung, or none where no rung holds."""
    return {} if is_isolated(SandboxSpec()) else {"unsafe": True}


def make(**more: Any) -> Repair:
    """A fresh environment."""
    return Repair(**options(), **more)


def tasks(*splits: str) -> list[Task]:
    """Tasks of splits."""
    taskset = GeneratedTaskset("repair", 0.0, Repair.splits, lambda split, rng: make().tasks(split, rng), 0)
    return [task for split in splits for task in taskset.tasks(split)]


def task_of(repository: str, bug: str) -> Task:
    """The task of a bug."""
    return next(task for task in tasks(*Repair.splits) if task.id == f"repair/{repository}/{bug}")


def one_each() -> list[Task]:
    """A task of each repository."""
    found: dict[str, Task] = {}
    for task in tasks("train"):
        found.setdefault(task.tags["source"], task)
    return list(found.values())


def play(chosen: Sequence[Task], policy: Callable[[Any], Script], **more: Any) -> list[Trajectory]:
    """One episode of each task."""

    def script(environment: Any, task: Task, rng: Random) -> Script:
        return policy(environment)

    plans = [
        EpisodePlan(id=f"repair/{index}", group_id=task.id, task=task, sample_index=0, seed=index)
        for index, task in enumerate(chosen)
    ]
    return asyncio.run(run_scripted(plans, make_environment=lambda task: make(**more), policy=script))


def judged(
    chosen: Sequence[Task], played: Sequence[Trajectory], **more: Any
) -> tuple[list[float | None], list[dict[str, Grade]]]:
    """Rewards, and grades by name."""
    graph = graph_from(make(**more).grader_graph or {})
    grades = asyncio.run(grade_trajectories(chosen, played, graph.graders, timeout_s=60.0))
    return graph.aggregator.rewards(grades), [{grade.grader: grade for grade in row} for row in grades]
