"""The process that environments live in; `hosted` is its other side."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import faulthandler
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from burnish.core.environment import Environment
from burnish.core.hashing import canonical_json
from burnish.core.message import Message
from burnish.core.task import Task
from burnish.core.tool import ShownResult, Tool
from burnish.environments.base import EnvironmentFault
from burnish.environments.lifeline import tie_life
from burnish.environments.threads import ThreadWork, thread_work
from burnish.environments.wire import (
    Channel,
    HostSettings,
    carried_text,
    error_to_json,
    message_out,
    result_out,
    to_frame,
    tools_to_json,
)

NOTE_BYTES = mmap.PAGESIZE
"""The first page of the note file holds the id of the last call that was begun; what a crash prints comes after it."""

_OOM_SCORE = "500"


@dataclass(slots=True)
class _Call:
    id: int
    work: ThreadWork = field(default_factory=ThreadWork)
    task: asyncio.Task[bytes] | None = None
    cancelled: bool = False


@dataclass(slots=True)
class _World:
    environment: Environment
    tools: Sequence[Tool] = ()


class _Host:
    """Environments by id, and the calls into them; an async call is awaited on the loop, a sync tool has a thread."""

    def __init__(self, sock: socket.socket, note_fd: int) -> None:
        self._channel = Channel(sock, on_frame=self._take, on_end=_die, max_bytes=2**32 - 1)
        self._note = mmap.mmap(note_fd, NOTE_BYTES)
        self._settings: HostSettings | None = None
        self._make: Callable[[], Environment] | None = None
        self._worlds: dict[int, _World] = {}
        self._images: set[str] = set()
        self._calls: dict[int, _Call] = {}

    async def run(self) -> None:
        """Serve until the parent goes away."""
        self._channel.attach(asyncio.get_running_loop())
        await asyncio.Event().wait()

    def _take(self, frame: bytes) -> None:
        if self._settings is None:
            self._open(pickle.loads(frame))
            return
        call_id, environment_id, method, argument = pickle.loads(frame)
        if method == "cancel":
            self._cancel(call_id)
            return
        call = self._calls[call_id] = _Call(call_id)
        context = contextvars.copy_context()
        context.run(thread_work.set, call.work)
        serve = self._serve(call, environment_id, method, argument)
        call.task = asyncio.get_running_loop().create_task(serve, context=context)
        call.task.add_done_callback(partial(self._served, call))

    def _open(self, settings: HostSettings) -> None:
        self._settings = settings
        if settings.memory_bytes:
            resource.setrlimit(resource.RLIMIT_AS, (settings.memory_bytes, settings.memory_bytes))
        try:
            self._make = settings.source.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the boundary to the user's file: the parent reports it
            self._answer([0, "failed", error_to_json(error)])
        else:
            self._answer([0, "ready", None])

    def _cancel(self, call_id: int) -> None:
        call = self._calls.get(call_id)
        if call is None:
            return
        self._answer([call_id, "ack", None])
        call.cancelled = True
        if call.task is not None:
            call.task.cancel()

    async def _serve(self, call: _Call, environment_id: int, method: str, argument: Any) -> bytes:
        self._note[:8] = call.id.to_bytes(8, "little")
        limit = self._settings.max_frame_bytes if self._settings else 0
        try:
            what, value = await getattr(self, f"_{method}")(environment_id, argument)
            return to_frame([call.id, "ok", value], what, limit)
        except asyncio.CancelledError:
            return to_frame([call.id, "cancelled", None], method, limit)
        except BaseException as error:  # noqa: BLE001 - the boundary of this process: the episode's own types it
            return self._error_frame(call.id, error, limit)

    def _error_frame(self, call_id: int, error: BaseException, limit: int) -> bytes:
        data = error_to_json(error)
        data["text"] = carried_text(data["text"], limit)
        return to_frame([call_id, "error", data], "error", limit)

    def _served(self, call: _Call, task: asyncio.Task[bytes]) -> None:
        """Answer; a call that was cancelled has ended only when nothing of it is left on a thread."""
        frame = to_frame([call.id, "cancelled", None], "", 64) if task.cancelled() else task.result()
        if call.cancelled and call.work.count:
            call.work.when_idle = partial(self._end, call, frame)
        else:
            self._end(call, frame)

    def _end(self, call: _Call, frame: bytes) -> None:
        del self._calls[call.id]
        self._channel.send(frame)

    def _answer(self, value: list[Any]) -> None:
        self._channel.send(to_frame(value, "answer", 2**20))

    # -- the methods of an environment: each gives a name for errors and a JSON value ----------------------------------

    async def _ping(self, environment_id: int, argument: None) -> tuple[str, Any]:
        return "ping", None

    async def _start(self, environment_id: int, task: Task) -> tuple[str, Any]:
        world = self._worlds.get(environment_id)
        if world is None:
            try:
                world = self._worlds[environment_id] = _World(self._make())  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - the constructor is the user's; told apart from `start`
                return "constructor", {"unmade": error_to_json(error)}
        shown = _messages(await world.environment.start(task), "start", self._images)
        return "what start shows", {"messages": shown} | _tools_of(world)

    async def _reply(self, environment_id: int, message: Message) -> tuple[str, Any]:
        shown = await self._world(environment_id).reply(message)
        return "the reply", None if shown is None else _messages(shown, "reply", self._images)

    async def _tool(self, environment_id: int, argument: tuple[int, dict[str, Any]]) -> tuple[str, Any]:
        index, arguments = argument
        chosen = self._worlds[environment_id].tools[index]
        text: Any = await chosen.call(arguments)
        if isinstance(text, str) and self._settings is not None:
            images = text.images if isinstance(text, ShownResult) else ()
            text = ShownResult(carried_text(text, self._settings.max_frame_bytes), images)
            return f"result of tool {chosen.spec.name}", result_out(text, self._images)
        return f"result of tool {chosen.spec.name}", text

    async def _finish(self, environment_id: int, answer: str) -> tuple[str, Any]:
        state = await self._world(environment_id).finish(answer)
        try:
            return "the final state", canonical_json(state)
        except (TypeError, ValueError, RecursionError) as error:
            raise EnvironmentFault(f"the final state has no JSON form: {error}") from None

    async def _close(self, environment_id: int, argument: None) -> tuple[str, Any]:
        world = self._worlds.pop(environment_id, None)
        if world is not None:
            await world.environment.close()
        return "close", None

    def _world(self, environment_id: int) -> Environment:
        return self._worlds[environment_id].environment


def _messages(shown: Any, phase: str, sent: set[str]) -> list[dict[str, Any]]:
    if not isinstance(shown, (list, tuple)) or not all(isinstance(item, Message) for item in shown):
        raise EnvironmentFault(f"{phase} gave {type(shown).__name__} {shown!r:.80}; it gives a list of messages")
    return [message_out(message, sent) for message in shown]


def _tools_of(world: _World) -> dict[str, Any]:
    """The tools are asked for once, right after the start; an error is raised where the parent asks for them."""
    try:
        world.tools = tuple(world.environment.tools())
        return {"tools": tools_to_json(world.tools)}
    except Exception as error:  # noqa: BLE001 - code of the environment; the parent types it as its own phase
        return {"tools_error": error_to_json(error)}


def _die(why: str = "") -> None:
    """The parent is gone: end, and with this process what its tools have started."""
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """`host SOCKET_FD LIFELINE_FD NOTE_FD`: serve one parent; started by `process`, in a session of its own."""
    socket_fd, lifeline_fd, note_fd = (int(text) for text in sys.argv[-3:])
    for fd in (socket_fd, lifeline_fd, note_fd):
        os.set_inheritable(fd, False)
    tie_life(lifeline_fd, -os.getpgrp())
    os.lseek(note_fd, NOTE_BYTES, os.SEEK_SET)
    faulthandler.enable(note_fd, all_threads=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)  # Where memory runs out, a host goes before the process that trains.
    asyncio.run(_Host(socket.socket(fileno=socket_fd), note_fd).run())


if __name__ == "__main__":
    main()
