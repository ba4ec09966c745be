"""How it is to work with the agent: instructions are followed step by step, progress is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping

from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.graders.checklist import ChecklistGrader
from burnish.environments.repair.story import LOOKS, Story

_STEP = re.compile(r"^\W*step\s+([1-4])\b", re.IGNORECASE | re.MULTILINE)
_MAX_SAID_CHARS = 400


class ExperienceGrader(ChecklistGrader):
    """The four steps are announced in order, each with what belongs to it; turns say briefly what they do."""

    __slots__ = ()
    name = "experience"

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """See the class."""
        texts = [*story.said, story.answer]
        announced = [int(number) for text in texts for number in _STEP.findall(text)]
        step_of_turn: dict[int, int] = {}
        current = 0
        for turn, text in enumerate(story.said):
            numbers = _STEP.findall(text)
            current = int(numbers[-1]) if numbers else current
            step_of_turn[turn] = current
        fitting = [_fits(step_of_turn.get(step.turn, 0), step.name, step.is_test) for step in story.steps]
        spoken = [text for text in story.said if text]
        return {
            "the four steps are announced": len({1, 2, 3, 4} & set(announced)) / 4,
            "in order": float(bool(announced) and announced == sorted(announced)),
            "what is done belongs to the step": sum(fitting) / len(fitting) if fitting else 0.0,
            "reports are short": float(bool(spoken) and max(map(len, spoken)) <= _MAX_SAID_CHARS),
        }


def _fits(step: int, name: str, is_test: bool) -> bool:
    """Whether a call belongs to a step: looking and running to each, editing to the second (a repair that failed its
    tests is edited in the third), running tests not before it is announced that they are."""
    if name in LOOKS:
        return step >= 1
    if name == "run":
        return step >= 1 if not is_test else step in (1, 2, 3)
    return step in (2, 3)
