"""Running W shards: one after another in this process, or each in a worker process.

Both give the same bits: groups are dealt to shards by index, every shard computes with the same number of threads, and
gradients are summed in shard order.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from burnish.algorithms.loss import LossSums
from burnish.core.learning import TrainingSample
from burnish.core.trajectory import Node, Trajectory
from burnish.loop.shard import DemonstrationOrder, GradientOrder, Rolled, RolloutOrder, Shard, Share, SyncEcho
from burnish.loop.shard_pool import GroupOrder, PoolSetting, RolledGroup
from burnish.loop.step_order import Gradient, Seen, StepOrder
from burnish.training.gradients import GradientBuffer, load_gradients, sum_in_order, zero_gradients

WATCH_S = 0.5


def _ignore() -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A group that shard `shard` has finished."""

    shard: int
    group: RolledGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardLost:
    """Shard `shard` died and was replaced by an empty one: the groups that it was running must be started again."""

    shard: int
    reason: str


ShardEvent = Arrived | ShardLost


class Executor(ABC):
    """What the conductor asks of its shards.  Lists have one entry for each shard, in shard order.

    events: what has happened in the shards' asynchronous pools and has not been taken by `poll`.  notices: what a user
    should be told, such as that a worker was replaced; the conductor takes them out.  on_progress: called while the
    conductor waits and the shards are seen to move.
    """

    size: int
    _model: nn.Module

    def __init__(self) -> None:
        self.events: deque[ShardEvent] = deque()
        self.notices: list[str] = []
        self.on_progress: Callable[[], None] = _ignore
        self._later: deque[Callable[[], object]] = deque()

    def rollout(self, orders: Sequence[RolloutOrder]) -> list[Rolled]:
        """Roll out and grade."""
        return self._each("rollout", [(order,) for order in orders])

    def demonstrate(self, orders: Sequence[DemonstrationOrder]) -> list[Rolled]:
        """Let the expert act."""
        return self._each("demonstrate", [(order,) for order in orders])

    def hold(self, parts: Sequence[Sequence[Trajectory]]) -> None:
        """Give every shard trajectories to train on, as if it had just rolled them out."""
        self._each("hold", [(part,) for part in parts])

    def begin_step(self, orders: Sequence[StepOrder]) -> list[Seen]:
        """Make training samples of held trajectories; what health sees where none of a shard's is trained on."""
        return self._each("begin_step", [(order,) for order in orders])

    def prepare(self, parts: Sequence[Sequence[str]]) -> tuple[float, list[array[float]]]:
        """Choose what the next `gradients` call trains on; the normaliser of the batch, and the loss's surveys."""
        shares: list[Share] = self._each("prepare", [(part,) for part in parts])
        return math.fsum(share.normaliser for share in shares), [share.survey for share in shares]

    def load_demonstrations(self, samples: Sequence[TrainingSample]) -> None:
        """Hand every shard the warm-start set."""
        self._each("load_demonstrations", [(samples,)] * self.size)

    def prepare_demonstrations(self, parts: Sequence[Sequence[int]]) -> float:
        """As `prepare`, for positions in the warm-start set; returns the normaliser alone."""
        shares: list[Share] = self._each("prepare_demonstrations", [(part,) for part in parts])
        return math.fsum(share.normaliser for share in shares)

    def gradients(self, order: GradientOrder) -> Gradient:
        """Back-propagate what was prepared; the sum over shards is in the model's .grad afterwards."""
        parts: list[Gradient] = self._each("gradients", [(order,)] * self.size)
        zero_gradients(self._model)
        load_gradients(self._model, sum_in_order(self._flat_gradients()))
        return Gradient(
            losses=LossSums.merge([part.losses for part in parts]),
            seen=tuple(one for part in parts for one in part.seen),
        )

    def check_micro_batches(self, order: GradientOrder, tolerance: float) -> float:
        """Largest relative difference of the prepared gradient between two ways to cut micro-batches."""
        return float(max(self._each("check_micro_batches", [(order, tolerance)] * self.size)))

    def freeze_reference(self) -> None:
        """Keep one copy of the present weights, which all shards share, as the reference of the KL term."""
        weights: list[Tensor] = []
        if not hasattr(self._model, "disable_adapter"):
            weights = [parameter.detach().clone() for parameter in self._model.parameters()]
            for weight in weights:
                if weight.device.type == "cpu":
                    weight.share_memory_()  # type: ignore[no-untyped-call]
        self._each("use_reference", [(weights,)] * self.size)

    def later(self, work: Callable[[], object]) -> None:
        """Do `work` of the conductor's own that nobody waits for: while the shards do what they are told next, at the
        latest in `settle`.  An error of it is raised from there, and the executor is of no use afterwards."""
        self._later.append(work)

    def settle(self) -> None:
        """Do now what was left for later."""
        while self._later:
            self._later.popleft()()

    # -- asynchronous pools --------------------------------------------------------------------------------------

    @abstractmethod
    def open_pools(self, setting: PoolSetting) -> None:
        """Let every shard take groups one by one from now on."""

    def start(self, shard: int, order: GroupOrder) -> None:
        """Begin one group on a shard."""
        self._one(shard, "start_group", (order,))

    def cancel(self, shard: int, group_ids: Sequence[str]) -> list[str]:
        """Give up groups; those that had not finished yet."""
        cancelled: list[str] = self._one(shard, "cancel_groups", (group_ids,))
        return cancelled

    def pause(self, *, drain: bool) -> None:
        """Stop sampling everywhere, so that the weights may change; `sync` lets it go on.  With `drain`, episodes that
        are under way run to their end first."""
        self._each("pause", [(drain,)] * self.size)

    def close_pools(self) -> None:
        """Cancel what is under way."""
        self._each("close_pool", [()] * self.size)

    @abstractmethod
    def poll(self, timeout_s: float) -> list[ShardEvent]:
        """What has happened since the last call, waiting up to `timeout_s` for the first event."""

    @abstractmethod
    def _one(self, shard: int, method: str, args: tuple[Any, ...]) -> Any:
        """Call a method of one shard."""

    def sync(self, version: int, canary: Sequence[Node]) -> list[SyncEcho]:
        """Announce new weights."""
        return self._each("sync", [(version, canary)] * self.size)

    @abstractmethod
    def close(self) -> None:
        """Release workers; safe to call twice."""

    @abstractmethod
    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every shard; raises the first shard's error."""

    @abstractmethod
    def _flat_gradients(self) -> list[Tensor]:
        """The shards' gradients after `gradients`."""


class LocalExecutor(Executor):
    """All shards in this process, on the conductor's own model.

    Their episodes live on an event loop that runs whenever the conductor waits for a shard or for a finished group.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        super().__init__()
        self.size = len(shards)
        self._shards = shards
        self._model = shards[0].policy.model
        self._buffers = [GradientBuffer(self._model) for _ in shards]
        self._loop = asyncio.new_event_loop()
        self._arrived = asyncio.Event()
        self._errors: list[BaseException] = []

    def close(self) -> None:
        if not self._loop.is_closed():
            self.close_pools()
            for shard in self._shards:
                shard.close()
            self._loop.close()

    def open_pools(self, setting: PoolSetting) -> None:
        for index in range(self.size):
            self._one(index, "open_pool", (setting, partial(self._deliver, index)))

    def poll(self, timeout_s: float) -> list[ShardEvent]:
        if not self.events and not self._errors:
            self._arrived.clear()
            self._run(_wait(self._arrived, timeout_s))
        if self._errors:
            raise self._errors[0]
        found = list(self.events)
        self.events.clear()
        return found

    def _deliver(self, shard: int, found: RolledGroup | BaseException) -> None:
        if isinstance(found, BaseException):
            self._errors.append(found)
        else:
            self.events.append(Arrived(shard=shard, group=found))
        self._arrived.set()

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        self.settle()
        results = []
        for index, (buffer, args) in enumerate(zip(self._buffers, arguments, strict=True)):
            if method == "gradients":
                zero_gradients(self._model)
            results.append(self._one(index, method, args))
            if method == "gradients":
                buffer.take(self._model)
        return results

    def _one(self, shard: int, method: str, args: tuple[Any, ...]) -> Any:
        async def call() -> Any:
            result = getattr(self._shards[shard], method)(*args)
            return await result if inspect.isawaitable(result) else result

        self.on_progress()
        return self._run(call())

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(self._watched(work))

    async def _watched(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Let `on_progress` know whenever a shard has moved."""
        watching = asyncio.ensure_future(self._watch())
        try:
            return await work
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        seen: list[int] = []
        while True:
            now = [shard.progress for shard in self._shards]
            if now != seen or not any(shard.busy for shard in self._shards):
                seen = now
                self.on_progress()
            await asyncio.sleep(WATCH_S)

    def _flat_gradients(self) -> list[Tensor]:
        return [buffer.flat for buffer in self._buffers]


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def deal(count: int, size: int) -> list[list[int]]:
    """Deal `count` group indices to `size` shards like cards.

    >>> deal(5, 2)
    [[0, 2, 4], [1, 3]]
    """
    return [list(range(shard, count, size)) for shard in range(size)]
