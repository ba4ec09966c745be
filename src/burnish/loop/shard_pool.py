"""A shard's asynchronous pool: groups are started one by one and delivered, graded, in the order they finish."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from burnish.core.grade import Grade
from burnish.core.sampling import SamplingParams
from burnish.core.trajectory import Trajectory
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.pool import EpisodePool, FinishedGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSetting:
    """How a pool samples, and how many episodes it runs at a time (0: as many as it is given)."""

    params: SamplingParams
    max_running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOrder:
    """Roll out one group.  number: of its dispatch.  need: members that must finish, the others are cancelled then."""

    number: int
    plans: tuple[EpisodePlan, ...]
    need: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledGroup:
    """A finished group with its grades, members in sample order; see `FinishedGroup` for the counts."""

    number: int
    trajectories: tuple[Trajectory, ...]
    grades: tuple[tuple[Grade, ...], ...]
    cancelled: int
    requeued: int


Deliver = Callable[[RolledGroup | BaseException], None]
"""Takes what comes out of a pool: a group, or the error that ended it."""

GradeGroup = Callable[[GroupOrder, FinishedGroup, int], Awaitable[RolledGroup]]
"""Grades a group that was started under a policy version."""


class ShardPool:
    """`pool.start(order, version=3)`; every group started is delivered once, unless it is cancelled."""

    def __init__(self, pool: EpisodePool, grade: GradeGroup, deliver: Deliver) -> None:
        self._pool = pool
        self._grade = grade
        self._deliver = deliver
        self._orders: dict[str, tuple[GroupOrder, int]] = {}
        self._grading: set[asyncio.Task[None]] = set()
        self._pump = asyncio.ensure_future(self._pump_groups())

    @property
    def running(self) -> int:
        """Episodes under way."""
        return self._pool.running

    def start(self, order: GroupOrder, *, version: int) -> None:
        """Begin one group under policy `version`."""
        self._pool.start(order.plans, need=order.need)
        self._orders[order.plans[0].group_id] = (order, version)

    async def cancel(self, group_id: str) -> bool:
        """Give up a group; False where it has finished already."""
        cancelled = await self._pool.cancel(group_id)
        if cancelled:
            del self._orders[group_id]
        return cancelled

    async def drain(self) -> None:
        """Run what is under way to its end, start nothing new before `resume`."""
        await self._pool.drain()

    def resume(self) -> None:
        """Let episodes start again."""
        self._pool.resume()

    async def close(self) -> None:
        """Cancel everything that is under way."""
        for task in [self._pump, *self._grading]:
            task.cancel()
        await self._pool.close()

    async def _pump_groups(self) -> None:
        while True:
            try:
                group = await self._pool.next()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - no boundary: handed on to the conductor, who raises it
                self._deliver(error)
                return
            # Graded beside each other: a slow grader must not hold up the groups behind it.
            task = asyncio.ensure_future(self._finish(group))
            self._grading.add(task)
            task.add_done_callback(self._grading.discard)

    async def _finish(self, group: FinishedGroup) -> None:
        order, version = self._orders.pop(group.group_id)
        try:
            self._deliver(await self._grade(order, group, version))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - no boundary: handed on to the conductor, who raises it
            self._deliver(error)
