"""Accurate use of the tools."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.graders.checklist import ChecklistGrader
from burnish.environments.repair.story import Story


class ToolUseGrader(ChecklistGrader):
    """Calls that work, no call twice in a row without a change between, files read before they are edited, edits by
    edit_file rather than by writing a whole file anew."""

    __slots__ = ()
    name = "tools"

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """See the class."""
        steps = story.steps
        if not steps:
            return {"tools are used": 0.0}
        repeated = sum(one.name == other.name and one.arguments == other.arguments for one, other in pairwise(steps))
        seen: set[str] = set()
        blind = rewritten = 0
        for step in steps:
            path = step.arguments.get("path", "")
            if step.name == "read_file" and not step.is_error:
                seen.add(path)
            blind += step.is_edit and step.name == "edit_file" and path not in seen
            rewritten += step.is_edit and step.name == "write_file" and path in seen
        edits = sum(step.is_edit for step in steps)
        return {
            "calls work": 1.0 - sum(step.is_error for step in steps) / len(steps),
            "no call is repeated": 1.0 - repeated / len(steps),
            "files are read before they are edited": 1.0 - blind / max(1, edits),
            "files are edited, not written anew": 1.0 - rewritten / max(1, edits),
        }
