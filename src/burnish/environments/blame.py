"""Which tasks were running when a host process ended by itself, and which of them are convicted of ending it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

DEATHS_ALONE = 2
"""Ending the only process that one runs in may be the machine's fault once (out of memory); twice is the task's."""


class Blame:
    """Deaths by task id.

    Where several tasks had calls running, each is a suspect, to be run alone; only the death of a host where it was
    alone counts against a task.

    >>> blame = Blame()
    >>> blame.died(["a", "b"]), blame.is_suspect("a"), blame.died(["a"]), blame.died(["a"])
    (frozenset(), True, frozenset(), frozenset({'a'}))
    """

    def __init__(self) -> None:
        self._suspects: set[str] = set()
        self._alone: Counter[str] = Counter()

    def died(self, task_ids: Sequence[str]) -> frozenset[str]:
        """A host ended by itself while these had calls running in it; returns those convicted."""
        self._suspects.update(task_ids)
        if len(task_ids) != 1:
            return frozenset()
        self._alone[task_ids[0]] += 1
        return frozenset(task_ids if self._alone[task_ids[0]] >= DEATHS_ALONE else ())

    def is_suspect(self, task_id: str) -> bool:
        """Whether the task should have a host to itself."""
        return task_id in self._suspects

    def cleared(self, task_id: str) -> None:
        """The task ended well where it was alone."""
        self._suspects.discard(task_id)
