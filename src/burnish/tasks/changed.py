"""A taskset whose tasks are those of another one with something added to each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from burnish.core.task import Task, Taskset


class ChangedTaskset:
    """`ChangedTaskset(taskset, with_file)`: the tasks of another taskset, in its order, each changed by a function."""

    def __init__(self, inner: Taskset, change: Callable[[Task], Task]) -> None:
        self.name, self.chance = inner.name, inner.chance
        self._inner, self._change = inner, change
        self._tasks: dict[str, tuple[Task, ...]] = {}

    @property
    def splits(self) -> Sequence[str]:
        """Those of the other taskset."""
        return self._inner.splits

    def tasks(self, split: str) -> Sequence[Task]:
        """The changed tasks; raises as the other taskset does."""
        if split not in self._tasks:
            self._tasks[split] = tuple(self._change(task) for task in self._inner.tasks(split))
        return self._tasks[split]
