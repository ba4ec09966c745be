"""Which groups may be rolled out, and which the next step trains on: the pacing of an asynchronous run.

A pure state machine without processes or clocks, so that its promises can be tested by themselves:

* pacing: before step k (counted from 0) at most (k + 1 + max_staleness) * B groups have been started, those that were
  lost or dropped not counted (the capacity rule of AReaL, arXiv 2505.24298, section 5.1);
* a step takes the oldest groups that have come in, and waits for an older one where going on without it would leave
  more groups than the steps before their deadlines can use: long episodes are not thrown away for being long.

(That a group is not too old is checked again on its tokens, when it is used; see `staleness_steps`.)

Within that bound no more is under way than the learner needs: `depth` steps of groups, one more after each step that
the learner had to wait for, one less where the next step lay ready in full.  A pipeline that is always filled to its
bound makes every sample as old as the bound allows, for nothing.

With max_staleness 0 a step starts exactly its own B groups and waits for all of them: the synchronous loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One group in the order of dispatch.

    number: from 0, counted over the whole run.  task: index of its task.  step: steps that had been completed when it
    was (first) started.  shard: where it runs.

    `Place(number=70, task=12, step=2, shard=1)`
    """

    number: int
    task: int
    step: int
    shard: int


@dataclass(slots=True, kw_only=True)
class Dispatcher:
    """The groups of a run that are under way.

    groups: B, groups in a step.  steps: of the run; no group is started that no step will need.

    >>> dispatcher = Dispatcher(groups=2, steps=3, shards=1, max_staleness=0)
    >>> dispatcher.room(), [dispatcher.start(task).number for task in (5, 6)], dispatcher.room()
    (2, [0, 1], 0)
    >>> dispatcher.finish(1), dispatcher.ready
    (None, False)
    >>> dispatcher.finish(0), dispatcher.ready, [place.task for place in dispatcher.take()]
    (None, True, [5, 6])
    >>> dispatcher.room(), dispatcher.advance(), dispatcher.room()
    (0, None, 2)
    """

    groups: int
    steps: int
    shards: int
    max_staleness: int
    step: int = 0
    next_number: int = 0
    accepted: int = 0
    depth: int = 0
    running: dict[int, Place] = field(default_factory=dict)
    finished: dict[int, Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.depth = self.depth or min(2, self.max_staleness + 1)

    def room(self) -> int:
        """How many groups may be started now."""
        under_way = len(self.running) + len(self.finished)
        allowed = min((self.step + 1 + self.max_staleness) * self.groups, self.steps * self.groups)
        return max(0, min(allowed - self.accepted, self.depth * self.groups) - under_way)

    def start(self, task: int) -> Place:
        """Put the next group on the shard with the fewest running.  Raises ValueError where there is no room."""
        if self.room() < 1:
            raise ValueError(f"no group may be started before step {self.step + 1} is taken; ask room() first")
        place = Place(number=self.next_number, task=task, step=self.step, shard=self._freest())
        self.next_number += 1
        self.running[place.number] = place
        return place

    def restart(self, number: int, shard: int | None = None) -> Place:
        """Start a group again whose shard was lost; it keeps its number, and with it its seeds."""
        old = self.running.pop(number, None) or self.finished.pop(number)
        place = Place(number=number, task=old.task, step=self.step, shard=self._freest() if shard is None else shard)
        self.running[number] = place
        return place

    def adopt(self, pending: Sequence[tuple[int, int]]) -> list[Place]:
        """Start the groups that were under way when a run was saved: (number, task) of each."""
        places = []
        for number, task in sorted(pending):
            place = Place(number=number, task=task, step=self.step, shard=self._freest())
            self.running[number] = place
            places.append(place)
        return places

    def finish(self, number: int) -> None:
        """All members of a group have come in."""
        self.finished[number] = self.running.pop(number)

    @property
    def pending(self) -> list[tuple[int, int]]:
        """(number, task) of every group that has been started and not been taken, for a checkpoint."""
        return sorted((place.number, place.task) for place in [*self.running.values(), *self.finished.values()])

    def oldest_running(self) -> list[Place]:
        """The running groups that were started first: what a step that is not ready waits for."""
        oldest = min((place.step for place in self.running.values()), default=0)
        return [place for place in self.running.values() if place.step == oldest]

    @property
    def ready(self) -> bool:
        """Whether the next step can be taken: enough groups have come in, and those that would be left, running ones
        included, can all still be used in time, B in each of the steps that follow."""
        chosen = self._choice()
        if len(chosen) < self.groups:
            return False
        left = [*self.running.values(), *(place for place in self.finished.values() if place not in chosen)]
        left.sort(key=lambda place: place.step)
        return all(
            self.step + 1 + position // self.groups <= place.step + self.max_staleness
            for position, place in enumerate(left)
        )

    def take(self) -> list[Place]:
        """Choose the groups of the next step, oldest first; in order of dispatch.

        Their places are not free before `advance`, which is called once the new weights have arrived.  Raises
        ValueError where the step is not ready.
        """
        if not self.ready:
            raise ValueError(f"step {self.step + 1} has {len(self.finished)} of {self.groups} groups")
        chosen = self._choice()
        for place in chosen:
            del self.finished[place.number]
        self.accepted += len(chosen)
        return sorted(chosen, key=lambda place: place.number)

    def _choice(self) -> list[Place]:
        return sorted(self.finished.values(), key=lambda place: (place.step, place.number))[: self.groups]

    def advance(self, *, waited: bool = False) -> None:
        """The step has been taken.  waited: the learner had to wait for it, so that more should be under way."""
        self.step += 1
        if waited:
            self.depth = min(self.depth + 1, self.max_staleness + 1)
        elif len(self.finished) >= self.groups:
            self.depth = max(self.depth - 1, min(2, self.max_staleness + 1))

    def discard(self, number: int) -> Place:
        """Forget a finished group that is too stale to be used; another may be started in its stead."""
        return self.finished.pop(number)

    def give_up(self, numbers: Iterable[int]) -> list[Place]:
        """Forget groups that will not be waited for; others may be started in their stead."""
        return [self.running.pop(number) for number in numbers if number in self.running]

    def _freest(self) -> int:
        load = [0] * self.shards
        for place in self.running.values():
            load[place.shard] += 1
        return load.index(min(load))


def staleness_steps(versions: Iterable[int], learner_version: int, updates: int) -> int:
    """How many steps lie between the oldest token and the learner; every step makes `updates` versions.

    >>> staleness_steps([10, 11, 12], 14, 1), staleness_steps([10, 12], 14, 2), staleness_steps([], 14, 1)
    (4, 2, 0)
    """
    oldest = min(versions, default=learner_version)
    return -(-(learner_version - oldest) // updates)
