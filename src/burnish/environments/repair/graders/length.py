"""Length: a summary that is neither a word nor an essay, and no more turns than a repair takes."""

from __future__ import annotations

from collections.abc import Mapping

from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.graders.checklist import ChecklistGrader
from burnish.environments.repair.story import Story

WORDS = (15, 150)
CALLS = 20
"""Calls that cost nothing; the expert needs 6."""


class LengthGrader(ChecklistGrader):
    """Full score for a summary of 15 to 150 words and up to 20 calls, down to 0 at none, at twice the words and at
    three times the calls."""

    __slots__ = ()
    name = "length"

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """See the class."""
        words = len(story.answer.split())
        low, high = WORDS
        return {
            f"a summary of at least {low} words": min(1.0, words / low),
            f"a summary of at most {high} words": min(1.0, max(0.0, 2.0 - words / high)),
            f"at most {CALLS} calls": min(1.0, max(0.0, 1.5 - len(story.steps) / (2 * CALLS))),
        }
