"""Worker processes, one shard each: weights and gradients in shared memory, commands over a pipe.

A worker dies with its parent, also when the parent is killed.  A worker that dies, or that has work and does not move
for longer than `stall_s`, is replaced: the new one is told what the old one knew, does the command that was under way
again, and the conductor hears which episodes were lost.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch

from burnish.core.errors import BurnishError, RunStopped
from burnish.loop import fork_server, worker_process
from burnish.loop.executor import Arrived, Executor, ShardEvent, ShardLost
from burnish.loop.shard import Shard
from burnish.loop.shard_pool import GroupOrder, PoolSetting
from burnish.loop.shared import SharedWeights
from burnish.loop.worker_process import Answer, Delivery, Failure, WorkerPlace, worker_main
from burnish.training.gradients import gradient_size

START_TIMEOUT_S = 300.0
MAX_REPLACEMENTS = 3
"""Of a run: a worker that dies again and again has a reason, mostly memory, that another one would meet as well."""

POLL_S = 1.0
LATER_S = 0.5
"""What was left for later waits so long for the first worker to end a rollout: until then, with a worker on every core,
it would take its core from one of them, and all wait for the slowest."""
DUMP_S = 0.5
REMEMBERED = (
    "load_demonstrations",
    "use_reference",
    "sync",
    "open_pool",
    "hold",
    "begin_step",
    "prepare",
    "prepare_demonstrations",
)
"""Commands whose newest arguments a new worker must be given, in this order."""

OUTDATES = {
    "hold": ("begin_step", "prepare", "prepare_demonstrations"),
    "begin_step": ("prepare", "prepare_demonstrations"),
    "prepare": ("prepare_demonstrations",),
    "prepare_demonstrations": ("hold", "begin_step", "prepare"),
}
"""What a command leaves without meaning."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    """One place for a process.

    known: the newest arguments of each remembered command.  lives: how many processes have had this place.
    """

    process: Any
    pipe: Connection
    known: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    lives: int = 1


class ProcessExecutor(Executor):
    """W shards in W processes; `make_shard` is an importable function called with `setup` in each of them.

    stall_s: how long a worker that has work may stand still (a long gradient, a tool that all its episodes wait for)
    before it counts as hung.  logs: folder for the stacks of hung workers (None: nowhere).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        make_shard: Callable[[Any], Shard],
        setup: Any,
        size: int,
        *,
        stall_s: float = 600.0,
        logs: Path | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self._model = model
        self._make_shard, self._setup = make_shard, setup
        self._stall_s, self._logs = stall_s, logs
        self._weights = SharedWeights.create(model)
        self._gradients = torch.zeros(size, gradient_size(model))
        self._gradients.share_memory_()  # type: ignore[no-untyped-call]
        self._beats = torch.full((size,), time.monotonic(), dtype=torch.float64)
        self._beats.share_memory_()  # type: ignore[no-untyped-call]
        self._replaced = 0
        self._workers: list[_Worker] = []
        try:
            for index in range(size):
                process, pipe = self._spawn(index)
                self._workers.append(_Worker(process=process, pipe=pipe))
            for worker in self._workers:
                _await_start(worker)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers; safe to call twice."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.pipe.send(None)
            worker.pipe.close()
        for worker in self._workers:
            # Closed already where no other process could be started in its place.
            with contextlib.suppress(ValueError):
                worker.process.join(timeout=2.0)
                _end(worker)
        self._workers = []

    def open_pools(self, setting: PoolSetting) -> None:
        self._each("open_pool", [(setting,)] * self.size)

    def start(self, shard: int, order: GroupOrder) -> None:
        # Told, not asked: a worker that is gone is noticed by `poll`, which says that all its groups are lost.
        with contextlib.suppress(OSError):
            self._workers[shard].pipe.send((worker_process.TELL, "start_group", (order,)))

    def poll(self, timeout_s: float) -> list[ShardEvent]:
        end_s = time.monotonic() + timeout_s
        everyone = range(self.size)
        while True:
            for index in self._readable(
                everyone, 0.0 if self.events else min(POLL_S, max(0.0, end_s - time.monotonic()))
            ):
                self._take(index)
            if self.events or time.monotonic() >= end_s:
                break
        found = list(self.events)
        self.events.clear()
        return found

    def _flat_gradients(self) -> list[torch.Tensor]:
        return list(self._gradients)

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._call(method, dict(enumerate(arguments)))

    def _one(self, shard: int, method: str, args: tuple[Any, ...]) -> Any:
        return self._call(method, {shard: args})[0]

    # -- commands ------------------------------------------------------------------------------------------------

    def _call(self, method: str, arguments: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """One answer from each worker named; raises the first failure after all have answered.

        A worker that is replaced meanwhile is asked again: every command can be repeated on a shard that knows what
        the old one knew.
        """
        asked: dict[int, int] = {}
        answers: dict[int, Any] = {}
        settle_at_s = time.monotonic() + (LATER_S if method == "rollout" else 0.0)
        while waiting := [index for index in arguments if index not in answers]:
            for index in waiting:
                if asked.get(index) != self._workers[index].lives:
                    asked[index] = self._workers[index].lives
                    with contextlib.suppress(OSError):
                        self._workers[index].pipe.send((worker_process.ASK, method, arguments[index]))
            left_s = 0.0 if answers else settle_at_s - time.monotonic()
            if left_s <= 0:
                self.settle()
            for index in self._readable(waiting, POLL_S if left_s <= 0 else left_s):
                answer = self._take(index)
                if answer is not None:
                    answers[index] = answer
        self.settle()
        for index in arguments:
            _raise_failure(answers[index], index)
        for index, args in arguments.items():
            self._remember(self._workers[index], method, args, answers[index].value)
        return [answers[index].value for index in arguments]

    def _readable(self, indices: Sequence[int], timeout_s: float) -> list[int]:
        """Workers among `indices` that have sent something or have ended; a hung one is ended first."""
        by_item = {self._workers[index].pipe: index for index in indices}
        by_item |= {self._workers[index].process.sentinel: index for index in indices}
        ready = sorted({by_item[item] for item in wait(list(by_item), timeout_s)})  # type: ignore[index]
        if not ready:
            for index in indices:
                self._end_if_hung(index)
        # A worker that stands still is ended after stall_s, so that whoever waits for one is not hung.
        self.on_progress()
        return ready

    def _take(self, index: int) -> Answer | Failure | None:
        """Read one message: an answer, or None where it was a delivery or the end of the process."""
        worker = self._workers[index]
        try:
            if not worker.pipe.poll():
                raise EOFError
            message = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self._replace(index)
            return None
        if isinstance(message, Delivery):
            if isinstance(message.value, Failure):
                raise _raised(message.value, index)
            self.events.append(Arrived(shard=index, group=message.value))
            return None
        return message  # type: ignore[no-any-return]

    def _remember(self, worker: _Worker, method: str, args: tuple[Any, ...], value: Any) -> None:
        if method == "rollout":
            if args[0].hold:
                self._remember(worker, "hold", (value.trajectories,), None)
        elif method == "close_pool":
            worker.known.pop("open_pool", None)
        elif method in REMEMBERED:
            for outdated in OUTDATES.get(method, ()):
                worker.known.pop(outdated, None)
            worker.known[method] = args

    # -- processes -----------------------------------------------------------------------------------------------

    def _spawn(self, index: int) -> tuple[Any, Connection]:
        ours, theirs = Pipe()
        place = WorkerPlace(
            index=index,
            weights=self._weights,
            gradients=self._gradients,
            beats=self._beats,
            stacks=None if self._logs is None else self._logs / f"worker-{index}.stacks.txt",
            environment=dict(os.environ),
        )
        name = f"burnish-shard-{index}"
        try:
            process = fork_server.start_process(worker_main, (theirs, self._make_shard, self._setup, place), name)
        except (OSError, EOFError) as error:
            raise RunStopped(
                "worker_died",
                f"{name} could not be started ({type(error).__name__}: {error}), mostly for want of memory: "
                "`burnish fork` does with fewer run.workers",
            ) from error
        theirs.close()
        return process, ours

    def _end_if_hung(self, index: int) -> None:
        worker, still_s = self._workers[index], time.monotonic() - float(self._beats[index])
        if still_s <= self._stall_s or worker.process.exitcode is not None:
            return
        if self._logs is not None:
            with contextlib.suppress(OSError):
                os.kill(worker.process.pid, signal.SIGUSR1)
            time.sleep(DUMP_S)
        self.notices.append(f"worker {index} stood still for {still_s:.0f} s and was ended")
        worker.process.kill()

    def _replace(self, index: int) -> None:
        """Start a new process in the place of one that has ended, and tell it what the old one knew."""
        worker = self._workers[index]
        worker.process.join(timeout=2.0)
        reason = f"worker process {worker.process.name} (exit code {worker.process.exitcode}) died"
        self._replaced += 1
        if self._replaced > MAX_REPLACEMENTS:
            raise RunStopped(
                "worker_died",
                f"{reason}, after {MAX_REPLACEMENTS} others had been replaced (a negative code is the signal; -9 often "
                "means out of memory). What was acknowledged is stored: `burnish resume` goes on, `burnish fork` does "
                "with fewer run.workers",
            )
        self.notices.append(f"{reason} and was replaced")
        worker.pipe.close()
        _end(worker)
        self._beats[index] = time.monotonic()
        worker.process, worker.pipe = self._spawn(index)
        worker.lives += 1
        lives = worker.lives
        _await_start(worker)
        if "open_pool" in worker.known:
            self.events.append(ShardLost(shard=index, reason=reason))
        for method in REMEMBERED:
            args = worker.known.get(method)
            if args is not None and worker.lives == lives:
                worker.pipe.send((worker_process.ASK, method, args))
                answer = None
                while worker.lives == lives and answer is None:
                    if self._readable([index], POLL_S):
                        answer = self._take(index)
                _raise_failure(answer, index)


def _end(worker: _Worker) -> None:
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
    # Ends it also where it outlived the fork server, which alone knew whether it lives.
    worker.process.close()


def _await_start(worker: _Worker) -> None:
    if not wait([worker.pipe, worker.process.sentinel], START_TIMEOUT_S):
        raise RunStopped("worker_timeout", f"{worker.process.name} did not start within {START_TIMEOUT_S:.0f} s")
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError) as error:
        worker.process.join(timeout=2.0)
        raise RunStopped(
            "worker_died",
            f"worker process {worker.process.name} (exit code {worker.process.exitcode}) died while it started; -9 "
            "often means out of memory: `burnish fork` does with fewer run.workers",
        ) from error
    _raise_failure(message, worker.process.name)


def _raise_failure(message: Any, worker: int | str) -> None:
    if isinstance(message, Failure):
        raise _raised(message, worker)


def _raised(failure: Failure, worker: int | str) -> BurnishError:
    return failure.error or RunStopped("worker_error", f"worker {worker} failed:\n{failure.text}")
