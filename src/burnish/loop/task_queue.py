"""Which tasks a step takes: shuffled epochs, by kind where the recipe has a curriculum, by source where control turned
that knob; never quarantined ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.loop.knobs import Knobs
from burnish.rollout.streams import source_of
from burnish.tasks.cursor import TaskCursor


class TaskQueue:
    """`TaskQueue(tasks, seed, tag="skill").next(8, step=12, knobs=knobs)` gives indices of tasks.

    While nothing is weighed this is a `TaskCursor` over all tasks, with quarantined ones passed over.  Else each
    place of a step first draws a source or a kind (the value of `tag`), then its next task; what is drawn is a function
    of the seed and of how many were drawn before, so that a resumed run draws the same.
    """

    def __init__(self, tasks: Sequence[Task], seed: int, tag: str = "") -> None:
        self._tasks = tasks
        self._cursor = TaskCursor(len(tasks), seed)
        self._sources = _Parts(tasks, seed, "source", lambda task: source_of(task.tags))
        self._kinds = _Parts(tasks, seed, "kind", lambda task: task.tags.get(tag, ""))

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source among the tasks."""
        return self._sources.shares

    def next(self, count: int, *, step: int, knobs: Knobs, kind_shares: Mapping[str, float] | None = None) -> list[int]:
        """Indices of the next `count` tasks, for step `step`.

        kind_shares: probabilities by kind; where control weighs sources, that comes first.
        """
        barred = knobs.quarantined(step)
        return [self._one(knobs.source_shares, kind_shares or {}, barred) for _ in range(count)]

    def _one(self, sources: Mapping[str, float], kinds: Mapping[str, float], barred: frozenset[str]) -> int:
        drawn = self._sources.draw(sources) or self._kinds.draw(kinds)
        cursor, indices = drawn if drawn is not None else (self._cursor, range(len(self._tasks)))
        # Where every task that could be taken is in quarantine, the next one is taken all the same.
        for _ in range(len(indices)):
            (place,) = cursor.next(1)
            index = indices[place]
            if self._tasks[index].id not in barred:
                break
        return index

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able; without "kinds" while none was drawn."""
        drawn, cursors = self._sources.state()
        found = {**self._cursor.state(), "drawn": drawn, "sources": cursors}
        drawn, cursors = self._kinds.state()
        return {**found, "kinds": {"drawn": drawn, "cursors": cursors}} if drawn else found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; raises TaskError where it belongs to other tasks or another seed."""
        self._cursor.restore(state)
        self._sources.restore(state["drawn"], state["sources"])
        kinds = state.get("kinds", {"drawn": 0, "cursors": {}})
        self._kinds.restore(kinds["drawn"], kinds["cursors"])


class _Parts:
    """The tasks in parts by name, each with an order of its own."""

    def __init__(self, tasks: Sequence[Task], seed: int, label: str, name_of: Callable[[Task], str]) -> None:
        self._seed, self._label = seed, label
        self._indices: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            self._indices.setdefault(name_of(task), []).append(index)
        self._total = len(tasks)
        self._drawn = 0
        self._cursors = {name: self._fresh(name) for name in self._indices}

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part."""
        return {name: len(indices) / self._total for name, indices in self._indices.items()}

    def draw(self, shares: Mapping[str, float]) -> tuple[TaskCursor, Sequence[int]] | None:
        """A part and the indices of its tasks; None where no part is named in the shares."""
        known = {name: share for name, share in shares.items() if name in self._cursors}
        if not known:
            return None
        rng = Random(derive_seed(self._seed, f"draw of a {self._label}", self._drawn))
        (name,) = rng.choices(list(known), weights=list(known.values()))
        self._drawn += 1
        return self._cursors[name], self._indices[name]

    def state(self) -> tuple[int, dict[str, Any]]:
        """How many were drawn, and where each part is; {} while none was drawn."""
        return self._drawn, {name: cursor.state() for name, cursor in self._cursors.items()} if self._drawn else {}

    def restore(self, drawn: int, cursors: Mapping[str, Any]) -> None:
        """Inverse of `state`; parts that it does not name begin anew."""
        self._drawn = drawn
        for name in self._cursors:
            self._cursors[name] = self._fresh(name)
            if name in cursors:
                self._cursors[name].restore(cursors[name])

    def _fresh(self, name: str) -> TaskCursor:
        return TaskCursor(len(self._indices[name]), derive_seed(self._seed, self._label, name))
