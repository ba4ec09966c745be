"""Running W shards: one after another in this process, or each in a worker process.

Both give the same bits: groups are dealt to shards by index, every shard computes with the same number of threads, and
gradients are summed in shard order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from burnish.algorithms.loss import LossSums
from burnish.core.learning import TrainingSample
from burnish.core.trajectory import Trajectory
from burnish.loop.shard import DemonstrationOrder, Rolled, RolloutOrder, Shard, SyncEcho
from burnish.training.gradients import GradientBuffer, load_gradients, sum_in_order, zero_gradients


class Executor(ABC):
    """What the conductor asks of its shards.  Lists have one entry for each shard, in shard order."""

    size: int
    _model: nn.Module

    def rollout(self, orders: Sequence[RolloutOrder]) -> list[Rolled]:
        """Roll out and grade."""
        return self._each("rollout", [(order,) for order in orders])

    def demonstrate(self, orders: Sequence[DemonstrationOrder]) -> list[Rolled]:
        """Let the expert act."""
        return self._each("demonstrate", [(order,) for order in orders])

    def hold(self, parts: Sequence[Sequence[Trajectory]]) -> None:
        """Give every shard stored trajectories as if it had just rolled them out."""
        self._each("hold", [(part,) for part in parts])

    def prepare(self, phase: str, parts: Sequence[Mapping[str, float]]) -> float:
        """Choose what the next `gradients` call trains on; returns the normaliser of the whole batch."""
        return math.fsum(self._each("prepare", [(phase, part) for part in parts]))

    def load_demonstrations(self, samples: Sequence[TrainingSample]) -> None:
        """Hand every shard the warm-start set."""
        self._each("load_demonstrations", [(samples,)] * self.size)

    def prepare_demonstrations(self, parts: Sequence[Sequence[int]]) -> float:
        """As `prepare`, for positions in the warm-start set."""
        return math.fsum(self._each("prepare_demonstrations", [(part,) for part in parts]))

    def gradients(self, phase: str, normaliser: float) -> LossSums:
        """Back-propagate what was prepared; the sum over shards is in the model's .grad afterwards."""
        sums: list[LossSums] = self._each("gradients", [(phase, normaliser)] * self.size)
        zero_gradients(self._model)
        load_gradients(self._model, sum_in_order(self._flat_gradients()))
        return LossSums.merge(sums)

    def check_micro_batches(self, phase: str, tolerance: float) -> float:
        """Largest relative difference of the prepared gradient between two ways to cut micro-batches."""
        return float(max(self._each("check_micro_batches", [(phase, tolerance)] * self.size)))

    def freeze_reference(self) -> None:
        """Keep a copy of the present weights as the reference of the KL term."""
        self._each("freeze_reference", [()] * self.size)

    def sync(self, version: int, canary: Sequence[array[int]]) -> list[SyncEcho]:
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
    """All shards in this process, on the conductor's own model."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.size = len(shards)
        self._shards = shards
        self._model = shards[0].policy.model
        self._buffers = [GradientBuffer(self._model) for _ in shards]

    def close(self) -> None:
        pass

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        results = []
        for shard, buffer, args in zip(self._shards, self._buffers, arguments, strict=True):
            if method == "gradients":
                zero_gradients(self._model)
            results.append(getattr(shard, method)(*args))
            if method == "gradients":
                buffer.take(self._model)
        return results

    def _flat_gradients(self) -> list[Tensor]:
        return [buffer.flat for buffer in self._buffers]


def deal(count: int, size: int) -> list[list[int]]:
    """Deal `count` group indices to `size` shards like cards.

    >>> deal(5, 2)
    [[0, 2, 4], [1, 3]]
    """
    return [list(range(shard, count, size)) for shard in range(size)]
