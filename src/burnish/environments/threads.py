"""Blocking functions on threads that neither stall other episodes nor hold up the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


class ThreadWork:
    """The functions that one call has on threads; they go on where the wait for them is cancelled.

    `count` is how many still run; `when_idle` is called on the event loop as the last of them ends.
    """

    __slots__ = ("count", "when_idle")

    def __init__(self) -> None:
        self.count = 0
        self.when_idle: Callable[[], None] | None = None

    def ended(self) -> None:
        """One function less."""
        self.count -= 1
        if self.count == 0 and self.when_idle is not None:
            self.when_idle()


thread_work: contextvars.ContextVar[ThreadWork | None] = contextvars.ContextVar("thread_work", default=None)
"""Where `run_in_thread` counts what it runs, for whoever must know that a cancelled call has really ended."""


@dataclass(frozen=True, slots=True)
class _Job:
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    work: ThreadWork | None


_idle: deque[SimpleQueue[_Job]] = deque()
os.register_at_fork(after_in_child=_idle.clear)


async def run_in_thread(function: Callable[[], Any]) -> Any:
    """Run a blocking function on a thread of its own and return its result, or raise what it raised.

    A cancelled wait returns at once and leaves the thread behind: threads cannot be killed.  They are daemons, so that
    a function which never returns does not keep the process alive (the pool of `asyncio.to_thread` would).  Threads
    are used again; there are as many as functions running at one time.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    try:
        jobs = _idle.pop()
    except IndexError:
        jobs = SimpleQueue()
        threading.Thread(target=_work, args=(jobs,), daemon=True, name="burnish-tool").start()
    work = thread_work.get()
    if work is not None:
        work.count += 1
    context = contextvars.copy_context()
    jobs.put(_Job(lambda: context.run(function), loop, future, work))
    return await future


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        _run(jobs.get())
        _idle.append(jobs)


def _run(job: _Job) -> None:
    """Its own frame, so that an idle thread keeps no environment alive."""
    result: Any = None
    error: BaseException | None = None
    try:
        result = job.function()
    except BaseException as raised:  # noqa: BLE001 - carried over to the waiting episode, whose boundary types it
        error = raised
    try:
        job.loop.call_soon_threadsafe(_settle, job.future, job.work, result, error)
    except RuntimeError:
        return  # The loop was closed while the function ran: nobody waits any more.


def _settle(future: asyncio.Future[Any], work: ThreadWork | None, result: Any, error: BaseException | None) -> None:
    if work is not None:
        work.ended()
    if future.done():
        return
    if isinstance(error, StopIteration):
        error = RuntimeError(f"a tool raised StopIteration: {error}")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
