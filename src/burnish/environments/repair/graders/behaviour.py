"""What a careful engineer does: look, repair, test, say what was done."""

from __future__ import annotations

from collections.abc import Mapping

from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.graders.checklist import ChecklistGrader
from burnish.environments.repair.story import LOOKS, Story


class BehaviourGrader(ChecklistGrader):
    """Looked before the first edit, ran tests after the last one, saw them pass, named the files in the summary."""

    __slots__ = ()
    name = "behaviour"

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """See the class."""
        if story.last_edit < 0:
            return {"something is repaired": 0.0}
        first_edit = next(index for index, step in enumerate(story.steps) if step.is_edit)
        looked = any(step.name in LOOKS and not step.is_error for step in story.steps[:first_edit])
        files = [path for path in trajectory.final_state.get("files", {}) if path.endswith(".py")]
        named = [path for path in files if path in story.answer or path.rpartition("/")[2] in story.answer]
        return {
            "looked before editing": float(looked),
            "tested after the last edit": float(bool(story.final_tests)),
            "the last tests passed": float(bool(story.final_tests) and story.final_tests[-1].passed),
            "the summary names the files": len(named) / len(files) if files else 0.0,
        }
