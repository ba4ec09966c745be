"""Any grader, in a process that can be killed."""

from __future__ import annotations

import asyncio

from burnish.core.errors import ConfigError
from burnish.core.grade import Grade, Grader
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.isolation import Worker
from burnish.graders.wire import grade_from_json, grader_reference, task_to_json, trajectory_to_json


class IsolatedGrader:
    """Lets another process run `grader`, so that code which hangs or eats memory ends with its process.

    `IsolatedGrader(MyGrader(), timeout_s=2.0)`; the inner grader must be made of importable code: a function or
    class at module level, with JSON-able dataclass fields or none.  Raises ConfigError where it is not.
    """

    keeps_deadline = True

    def __init__(self, grader: Grader, *, timeout_s: float = 10.0) -> None:
        reference = grader_reference(grader)
        if reference is None:
            raise ConfigError(
                f"grader {grader.name} cannot be made in another process; define its class or function at module "
                "level, and let it hold nothing but JSON-able dataclass fields"
            )
        self.name = grader.name
        self.version = grader.version
        self.reference = reference
        self._timeout_s = timeout_s
        self._worker = Worker()

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The inner grader's verdict.  Raises WorkerFailure where there is none."""
        return await asyncio.to_thread(self._grade, task, trajectory)

    @property
    def arbitration_s(self) -> float:
        """What a fresh process may take for one verdict."""
        return self._timeout_s

    def close(self) -> None:
        """End the worker process."""
        self._worker.close()

    def _grade(self, task: Task, trajectory: Trajectory) -> Grade:
        arguments = {
            "grader": self.reference,
            "task": task_to_json(task),
            "trajectory": trajectory_to_json(trajectory),
        }
        value = self._worker.call("burnish.graders.worker:grade_once", arguments, timeout_s=self._timeout_s)
        return grade_from_json(value)
