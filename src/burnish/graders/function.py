"""A plain function as a grader."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory


class FunctionGrader:
    """Grades with `function(task, trajectory)`, sync or async, which returns a score in [0, 1].

    Its name is the function's.  What the function raises, or returns out of range, is a grader failure for the
    boundary.  It runs on the event loop: one that may run long goes into an `IsolatedGrader`.
    """

    def __init__(self, function: Callable[[Task, Trajectory], Any], *, version: str = "1") -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", "function")
        self.version = version

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict, with the function's score."""
        score = self.function(task, trajectory)
        if inspect.isawaitable(score):
            score = await score
        return Grade(grader=self.name, version=self.version, score=float(score))
