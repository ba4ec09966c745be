"""What runs inside a worker process: one shard that answers commands while its episodes go on."""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from burnish.core.errors import BurnishError
from burnish.environments.lifeline import tie_life
from burnish.loop.heap import settle_heap
from burnish.loop.shard import Shard
from burnish.loop.shard_pool import RolledGroup
from burnish.loop.shared import SharedWeights
from burnish.training.gradients import GradientBuffer, zero_gradients

ASK, TELL = "ask", "tell"
"""Commands that are answered, and commands that are not (a failure of theirs is delivered)."""

BEAT_S = 0.25
MAX_FAILURE_CHARS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception in a worker: the exception itself where it is Burnish's own, else its text."""

    error: BurnishError | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The result of a command."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What came out of the asynchronous pool, unasked."""

    value: RolledGroup | Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """What a worker shares with the conductor.

    beats: float64 by worker, the monotonic clock when it was last seen to move (or had nothing to do).  stacks: the
    file that its stacks are written to on SIGUSR1.  environment: the variables of the conductor.
    """

    index: int
    weights: SharedWeights
    gradients: torch.Tensor
    beats: torch.Tensor
    stacks: Path | None
    environment: Mapping[str, str]


def worker_main(pipe: Connection, make_shard: Callable[[Any], Shard], setup: Any, place: WorkerPlace) -> None:
    """Build the shard and serve it until the conductor closes the pipe."""
    _settle_in(place.environment)
    if place.stacks is not None:
        faulthandler.register(signal.SIGUSR1, file=place.stacks.open("w"), all_threads=True)
    try:
        shard = make_shard(setup)
        place.weights.attach(shard.policy.model)
        buffer = GradientBuffer(shard.policy.model, storage=place.gradients[place.index])
    except Exception as error:  # noqa: BLE001 - the process boundary: every error travels to the conductor
        pipe.send(_failure(error))
        return
    settle_heap()
    asyncio.run(_Server(pipe, shard, buffer, place).run())


class _Server:
    """Commands come in over the pipe and are carried out one after another; deliveries go out between them."""

    def __init__(self, pipe: Connection, shard: Shard, buffer: GradientBuffer, place: WorkerPlace) -> None:
        self._pipe, self._shard, self._buffer, self._place = pipe, shard, buffer, place
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._commands = 0
        self._working = False

    async def run(self) -> None:
        # Sent by a thread: with both sides sending more than a pipe holds, neither would ever read.
        threading.Thread(target=self._write, daemon=True, name="burnish-outbox").start()
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._read)
        beating = asyncio.ensure_future(self._beat())
        self._send(Answer(value="ready"))
        while (command := await self._inbox.get()) is not None:
            kind, method, args = command
            self._commands += 1
            self._working = True
            try:
                value = await self._call(method, args)
                if kind == ASK:
                    self._send(Answer(value=value))
            except Exception as error:  # noqa: BLE001 - the process boundary: every error travels to the conductor
                self._send(_failure(error) if kind == ASK else Delivery(value=_failure(error)))
            self._working = False
        beating.cancel()
        # Neither a hung tool's thread nor an episode that swallows its cancellation may keep the process alive.
        os._exit(0)

    async def _call(self, method: str, args: tuple[Any, ...]) -> Any:
        if method == "open_pool":
            args = (*args, self._deliver)
        if method == "gradients":
            zero_gradients(self._shard.policy.model)
        result = getattr(self._shard, method)(*args)
        if inspect.isawaitable(result):
            result = await result
        if method == "gradients":
            self._buffer.take(self._shard.policy.model)
        return result

    def _deliver(self, found: RolledGroup | BaseException) -> None:
        self._send(Delivery(value=_failure(found) if isinstance(found, BaseException) else found))

    def _send(self, message: Any) -> None:
        # Pickled here: what is sent is what stood there when it was sent.
        self._outbox.put(bytes(ForkingPickler.dumps(message)))

    def _write(self) -> None:
        while True:
            try:
                self._pipe.send_bytes(self._outbox.get())
            except OSError:
                return

    def _read(self) -> None:
        try:
            while self._pipe.poll():
                self._inbox.put_nowait(self._pipe.recv())
        except (EOFError, OSError, pickle.UnpicklingError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._inbox.put_nowait(None)

    async def _beat(self) -> None:
        seen = (-1, -1)
        while True:
            now = (self._commands, self._shard.progress)
            if now != seen or not (self._working or self._shard.busy):
                seen = now
                self._place.beats[self._place.index] = time.monotonic()
            await asyncio.sleep(BEAT_S)


def _failure(error: BaseException) -> Failure:
    own = error if isinstance(error, BurnishError) else None
    return Failure(error=own, text="".join(traceback.format_exception(error))[-MAX_FAILURE_CHARS:])


def _settle_in(environment: Mapping[str, str]) -> None:
    """Become what a freshly started process would be, whoever has forked this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"
    tie_life(parent.sentinel, os.getpid())
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ctrl-C reaches the whole foreground group; the conductor decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Forked workers would all draw the same; Python's own generator takes care of that itself.
    np.random.seed()
