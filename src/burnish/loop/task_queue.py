"""Which tasks a step takes: shuffled epochs, or by source where control turned that knob; never quarantined ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from burnish.core.hashing import derive_seed
from burnish.core.task import Task
from burnish.loop.knobs import Knobs
from burnish.rollout.streams import source_of
from burnish.tasks.cursor import TaskCursor


class TaskQueue:
    """`TaskQueue(tasks, seed, knobs).next(8, step=12)` gives indices of tasks.

    While no source is weighed this is a `TaskCursor` over all tasks, with quarantined ones passed over.  Else each
    place of a step first draws a source, then that source's next task; the source drawn is a function of the seed and
    of how many were drawn before, so that a resumed run draws the same.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        self._tasks = tasks
        self._seed = seed
        self._cursor = TaskCursor(len(tasks), seed)
        self._by_source: dict[str, list[int]] = {}
        for index, task in enumerate(tasks):
            self._by_source.setdefault(source_of(task.tags), []).append(index)
        self._cursors = {
            source: TaskCursor(len(indices), derive_seed(seed, "source", source))
            for source, indices in self._by_source.items()
        }
        self._drawn = 0

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source among the tasks."""
        return {source: len(indices) / len(self._tasks) for source, indices in self._by_source.items()}

    def next(self, count: int, *, step: int, knobs: Knobs) -> list[int]:
        """Indices of the next `count` tasks, for step `step`."""
        barred = knobs.quarantined(step)
        return [self._one(knobs.source_shares, barred) for _ in range(count)]

    def _one(self, shares: Mapping[str, float], barred: frozenset[str]) -> int:
        cursor, indices = self._cursor, None
        known = {source: share for source, share in shares.items() if source in self._cursors}
        if known:
            rng = Random(derive_seed(self._seed, "draw of a source", self._drawn))
            (source,) = rng.choices(list(known), weights=list(known.values()))
            cursor, indices = self._cursors[source], self._by_source[source]
            self._drawn += 1
        # Where every task of the source is in quarantine, the next one is taken all the same.
        for _ in range(len(indices or self._tasks)):
            (place,) = cursor.next(1)
            index = place if indices is None else indices[place]
            if self._tasks[index].id not in barred:
                break
        return index

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {
            **self._cursor.state(),
            "drawn": self._drawn,
            "sources": {source: cursor.state() for source, cursor in self._cursors.items()} if self._drawn else {},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; raises TaskError where it belongs to other tasks or another seed."""
        self._cursor.restore(state)
        self._drawn = int(state["drawn"])
        for source, cursor in self._cursors.items():
            if source in state["sources"]:
                cursor.restore(state["sources"][source])
            else:
                self._cursors[source] = TaskCursor(
                    len(self._by_source[source]), derive_seed(self._seed, "source", source)
                )
