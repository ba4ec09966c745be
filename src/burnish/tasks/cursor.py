"""Which task comes next: shuffled epochs that can be resumed exactly."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from burnish.core.errors import TaskError
from burnish.core.hashing import derive_seed


class TaskCursor:
    """Walks over n_tasks tasks, each once in an epoch, in an order that is a function of (seed, epoch).

    >>> cursor = TaskCursor(3, seed=0)
    >>> sorted(cursor.next(3)), cursor.state()
    ([0, 1, 2], {'n_tasks': 3, 'seed': 0, 'epoch': 1, 'position': 0})
    """

    def __init__(self, n_tasks: int, seed: int) -> None:
        if n_tasks < 1:
            raise TaskError(f"a cursor needs at least one task, got {n_tasks}")
        self._n_tasks = n_tasks
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    def next(self, k: int) -> list[int]:
        """Indices of the next k tasks, going over into the next epoch where this one ends."""
        indices: list[int] = []
        while len(indices) < k:
            taken = self._order[self._position : self._position + k - len(indices)]
            indices += taken
            self._position += len(taken)
            if self._position == self._n_tasks:
                self._epoch += 1
                self._position = 0
                self._order = self._shuffled()
        return indices

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self._epoch

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly, JSON-able."""
        return {"n_tasks": self._n_tasks, "seed": self._seed, "epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.  Raises TaskError where it belongs to another number of tasks or another seed."""
        for key, mine in (("n_tasks", self._n_tasks), ("seed", self._seed)):
            if state[key] != mine:
                raise TaskError(
                    f"the stored cursor has {key} {state[key]}, this run has {mine}: the tasks have changed"
                )
        if not (state["epoch"] >= 0 and 0 <= state["position"] < self._n_tasks):
            raise TaskError(f"the stored cursor points outside of its tasks: {dict(state)}")
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(self._n_tasks))
        Random(derive_seed(self._seed, "epoch", self._epoch)).shuffle(order)
        return order
