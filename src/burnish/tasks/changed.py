"""A taskset whose tasks are those of another one with something added to each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from burnish.core.task import Task, Taskset


class ChangedTaskset:
    """The tasks of another taskset, in its order, changed by a function of a split's name and tasks.

    `ChangedTaskset(taskset, lambda split, tasks: map(with_file, tasks))`
    """

    def __init__(self, inner: Taskset, change: Callable[[str, Sequence[Task]], Iterable[Task]]) -> None:
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
            self._tasks[split] = tuple(self._change(split, self._inner.tasks(split)))
        return self._tasks[split]
