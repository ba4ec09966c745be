"""Blocking functions on threads that neither stall other episodes nor hold up the end of the process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]
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
    context = contextvars.copy_context()
    jobs.put((lambda: context.run(function), loop, future))
    return await future


def _work(jobs: SimpleQueue[_Job]) -> None:
    while True:
        _run(jobs.get())
        _idle.append(jobs)


def _run(job: _Job) -> None:
    """Its own frame, so that an idle thread keeps no environment alive."""
    function, loop, future = job
    result: Any = None
    error: BaseException | None = None
    try:
        result = function()
    except BaseException as raised:  # noqa: BLE001 - carried over to the waiting episode, whose boundary types it
        error = raised
    try:
        loop.call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:
        return  # The loop was closed while the function ran: nobody waits any more.


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):
        error = RuntimeError(f"a tool raised StopIteration: {error}")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
