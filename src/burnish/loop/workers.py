"""Worker processes, one shard each: weights and gradients in shared memory, commands over a pipe.

A worker dies with its parent, also when the parent is killed.  A worker that dies stops the run with an error that says
which; nothing acknowledged is lost and the run can be resumed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from burnish.core.errors import BurnishError, RunStopped
from burnish.loop.executor import Executor
from burnish.loop.shard import Shard
from burnish.loop.shared import SharedWeights
from burnish.training.gradients import GradientBuffer, gradient_size, zero_gradients

PR_SET_PDEATHSIG = 1
START_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception in a worker: the exception itself where it is Burnish's own, else its text."""

    error: BurnishError | None
    text: str


class ProcessExecutor(Executor):
    """W shards in W processes; `make_shard` is an importable function called with `setup` in each of them."""

    def __init__(self, model: torch.nn.Module, make_shard: Callable[[Any], Shard], setup: Any, size: int) -> None:
        self.size = size
        self._model = model
        self._weights = SharedWeights.create(model)
        self._gradients = torch.zeros(size, gradient_size(model))
        self._gradients.share_memory_()  # type: ignore[no-untyped-call]
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        try:
            with _interrupts_held():
                for index in range(size):
                    self._start(index, make_shard, setup)
            self._collect(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def _start(self, index: int, make_shard: Callable[[Any], Shard], setup: Any) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_worker_main,
            args=(theirs, make_shard, setup, self._weights, self._gradients, index, os.getpid()),
            name=f"burnish-shard-{index}",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def close(self) -> None:
        """End all workers; safe to call twice."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
            pipe.close()
        for process in self._processes:
            process.join(timeout=2.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def _flat_gradients(self) -> list[torch.Tensor]:
        return list(self._gradients)

    def _each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for pipe, args in zip(self._pipes, arguments, strict=True):
            try:
                pipe.send((method, args))
            except OSError as error:
                raise self._died() from error
        return self._collect(None)

    def _collect(self, timeout_s: float | None) -> list[Any]:
        """One answer from each worker; raises the first failure after all have answered or one has died."""
        answers: dict[int, Any] = {}
        while len(answers) < self.size:
            open_pipes = {self._pipes[i]: i for i in range(self.size) if i not in answers}
            ready = wait([*open_pipes, *(p.sentinel for p in self._processes)], timeout_s)
            if not ready:
                raise RunStopped("worker_timeout", f"workers did not start within {timeout_s:.0f} s")
            received = [item for item in ready if item in open_pipes]
            if not received:
                raise self._died()
            for pipe in received:
                try:
                    answers[open_pipes[pipe]] = pipe.recv()
                except (EOFError, OSError) as error:
                    raise self._died() from error
        for index in range(self.size):
            if isinstance(answers[index], Failure):
                failure = answers[index]
                raise failure.error or RunStopped("worker_error", f"worker {index} failed:\n{failure.text}")
        return [answers[index] for index in range(self.size)]

    def _died(self) -> RunStopped:
        for process in self._processes:
            process.join(timeout=0.5)
        dead = [(p.name, p.exitcode) for p in self._processes if p.exitcode is not None]
        listed = ", ".join(f"{name} (exit code {code})" for name, code in dead) or "unknown"
        return RunStopped(
            "worker_died",
            f"worker process {listed} died (a negative code is the signal; -9 often means out of memory). "
            "What was acknowledged is stored: `burnish resume` goes on, `burnish fork` does with fewer run.workers",
        )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started in here begin with Ctrl-C held back: it must not end them while they still import."""
    # Started by the first process otherwise, and it would let go of the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _worker_main(
    pipe: Connection,
    make_shard: Callable[[Any], Shard],
    setup: Any,
    weights: SharedWeights,
    gradients: torch.Tensor,
    index: int,
    parent: int,
) -> None:
    _die_with_parent(parent)
    # Ctrl-C reaches the whole foreground group; the conductor decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        shard = make_shard(setup)
        weights.attach(shard.policy.model)
        buffer = GradientBuffer(shard.policy.model, storage=gradients[index])
    except Exception as error:  # noqa: BLE001 - the process boundary: every error travels to the conductor
        pipe.send(_failure(error))
        return
    pipe.send("ready")
    while True:
        try:
            command = pipe.recv()
        except (EOFError, OSError):
            break
        if command is None:
            break
        method, args = command
        try:
            if method == "gradients":
                zero_gradients(shard.policy.model)
            answer = getattr(shard, method)(*args)
            if method == "gradients":
                buffer.take(shard.policy.model)
        except Exception as error:  # noqa: BLE001 - the process boundary: every error travels to the conductor
            answer = _failure(error)
        pipe.send(answer)
    # A hung tool thread must not keep the process alive.
    os._exit(0)


def _failure(error: Exception) -> Failure:
    own = error if isinstance(error, BurnishError) else None
    return Failure(error=own, text="".join(traceback.format_exception(error))[-4000:])
