"""The patch itself: where it is, how large, and whether it is tidy."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping

from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.repair.graders.checklist import ChecklistGrader
from burnish.environments.repair.grading import is_artefact
from burnish.environments.repair.repository import broken_tree, load_repository
from burnish.environments.repair.story import Story

MAX_LINES = 30
"""Lines that may come or go; the largest of our own repairs has 5."""


class PatchFormatGrader(ChecklistGrader):
    """Source files changed, nothing else left behind or removed, few lines, Python that parses, no loose space."""

    __slots__ = ()
    name = "patch"

    def points(self, task: Task, trajectory: Trajectory, story: Story) -> Mapping[str, float]:
        """See the class."""
        repository = load_repository(task.reference["repository"])
        before = broken_tree(repository, repository.bugs[task.reference["bug"]])
        state = trajectory.final_state
        files: Mapping[str, str] = state.get("files", {})
        sources = {path: text for path, text in files.items() if is_artefact(repository, path)}
        others = [path for path in files if path not in sources and not path.startswith("tests/test_")]
        lines = [line for path, text in sources.items() for line in changed_lines(before.get(path, ""), text)]
        if not sources:
            return {"a source file is changed": 0.0}
        return {
            "a source file is changed": 1.0,
            "nothing else is left behind": float(not others),
            "no file is removed": float(not state.get("removed")),
            f"at most {MAX_LINES} lines change": float(len(lines) <= MAX_LINES),
            "the files parse": float(all(map(parses, sources.values()))),
            "no space at line ends, no tabs, one line feed at the end": float(
                all(text.endswith("\n") and not text.endswith("\n\n") for text in sources.values())
                and not any(line.startswith("+") and (line != line.rstrip() or "\t" in line) for line in lines)
            ),
        }


def changed_lines(old: str, new: str) -> list[str]:
    """Lines that go ("-...") or come ("+...").

    >>> changed_lines("a\\nb\\n", "a\\nc\\n")
    ['-b', '+c']
    """
    diff = difflib.unified_diff(old.split("\n"), new.split("\n"), n=0, lineterm="")
    return [line for line in list(diff)[2:] if line[:1] in "+-"]


def parses(text: str) -> bool:
    """Whether a text is Python."""
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
