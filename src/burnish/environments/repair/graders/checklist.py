"""The base of graders that read the story of an episode and tick points of a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.core.grade import Grade, unanswered
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.story import Story


class ChecklistGrader:
    """Score: the share of points that hold; total, deterministic.  An episode that did not complete scores 0."""

    __slots__ = ()
    name = "checklist"
    version = "1"

    async def grade(self, task: Task, trajectory: Trajectory) -> Grade:
        """The verdict; the evidence names the points that do not hold."""
        if undone := unanswered(trajectory.outcome):
            return self.verdict(undone[0], cause=undone[1])
        points = self.points(task, trajectory, Story.of(trajectory))
        missed = [name for name, share in points.items() if share < 1.0]
        return self.verdict(sum(points.values()) / len(points), evidence={"missed": missed} if missed else {})

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """Share, in [0, 1], to which each point holds."""
        raise NotImplementedError

    def verdict(self, score: float | None, *, cause: str = "", evidence: Mapping[str, Any] | None = None) -> Grade:
        """A grade of this grader."""
        return Grade(grader=self.name, version=self.version, score=score, cause=cause, evidence=evidence or {})
