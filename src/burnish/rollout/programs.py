"""Programs as policies' bodies: agent programs written against an OpenAI client, run and recorded as trajectories.

`await run_programs(plans, program=agent, renderer=..., sampler=..., params=...)` has the contract of `run_episodes`.  A
program is an async or sync callable that takes a `TaskView` and returns its answer, or a command line.  It holds its
own loop and its own tools; all that it shares with training is the address it talks to.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.message import ImagePart, Message, Role
from burnish.core.outcome import COMPLETED, Limit, Outcome, Owner
from burnish.core.sampling import Renderer, Sampler, SamplingParams
from burnish.core.task import Limits
from burnish.core.text import cap_text, clean_text
from burnish.core.trajectory import Trajectory
from burnish.rollout.boundary import EpisodeStop, failure, in_world
from burnish.rollout.capture import MAX_REFUSALS, Capture
from burnish.rollout.episode import WORLD_TIMEOUT_S, EpisodePlan
from burnish.rollout.proxy import Address, CaptureServer
from burnish.rollout.runner import CANCEL_GRACE_S, together
from burnish.rollout.wire import message_to_openai

MAX_OUTPUT_BYTES = 1_000_000
MAX_TAIL_BYTES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """What a program is told: the task as the policy may know it, and where its policy is.

    messages: the task's system text and prompt in the form that clients take; prompt: its text alone.  seed: for the
    program's own random numbers.  What graders and environments know (reference, setup) is not in it.

    `client = openai.OpenAI(base_url=task.base_url, api_key=task.api_key)`
    """

    id: str
    prompt: str
    messages: tuple[Mapping[str, Any], ...]
    base_url: str
    api_key: str
    model: str
    seed: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """What a command finds on its standard input."""
        names = ("id", "prompt", "base_url", "api_key", "model", "seed")
        return json.dumps(
            {name: getattr(self, name) for name in names}
            | {"messages": [dict(message) for message in self.messages], "tags": dict(self.tags)}
        )


Program = Callable[[TaskView], "str | Awaitable[str | None] | None"] | Sequence[str]
"""Takes a task to its answer (None: the policy's latest words are the answer); or the words of a command line, which
reads the task as JSON on standard input, finds OPENAI_BASE_URL and OPENAI_API_KEY, and prints its answer."""


async def run_programs(
    plans: Sequence[EpisodePlan],
    *,
    program: Program,
    renderer: Renderer,
    sampler: Sampler,
    params: SamplingParams,
    limits: Limits | None = None,
    max_live: int | None = None,
) -> list[Trajectory]:
    """Run the program once for every plan; one trajectory for each, in order.

    limits: for tasks that state none of their own.  max_live: at most so many at a time (None: all).  Requests go
    to the sampler one at a time, as they come; one that joins concurrent calls keeps its batch full.

    A program that breaks gives an environment error.  A sampler that raises anything but SamplerError, or breaks its
    contract (InvariantViolation), ends the whole call; programs are stopped in any case.
    """
    if max_live is not None and max_live < 1:
        raise ValueError(f"max_live is at least 1 or None, got {max_live}")
    if len({plan.id for plan in plans}) != len(plans):
        raise ValueError("two plans share an id; each needs its own")
    places = asyncio.Semaphore(max_live or max(1, len(plans)))
    async with CaptureServer() as server:
        roll = program_roll(server, program=program, renderer=renderer, sampler=sampler, params=params, limits=limits)

        async def placed(plan: EpisodePlan) -> Trajectory:
            async with places:
                return await roll(plan)

        return await together([placed(plan) for plan in plans])


def program_roll(
    server: CaptureServer,
    *,
    program: Program,
    renderer: Renderer,
    sampler: Sampler,
    params: SamplingParams,
    limits: Limits | None = None,
) -> Callable[[EpisodePlan], Coroutine[Any, Any, Trajectory]]:
    """The way to run one episode of a program, for `EpisodePool`; the arguments are those of `run_programs`."""

    async def roll(plan: EpisodePlan) -> Trajectory:
        return await run_program(
            plan,
            program=program,
            server=server,
            renderer=renderer,
            sampler=sampler,
            params=params,
            limits=limits,
        )

    return roll


async def run_program(
    plan: EpisodePlan,
    *,
    program: Program,
    server: CaptureServer,
    renderer: Renderer,
    sampler: Sampler,
    params: SamplingParams,
    limits: Limits | None = None,
) -> Trajectory:
    """Run the program on one task.  Raises what a sampler raised that broke its contract."""
    capture = Capture(plan, renderer, sampler, params, limits)
    answer: str | None = None
    try:
        with server.open(capture) as address:
            answer = await _supervised(capture, lambda: _call(program, _view(plan, address)))
        outcome = _outcome(capture)
    except EpisodeStop as stop:
        outcome = stop.outcome
    finally:
        await capture.close()
    if capture.broken is not None:
        raise capture.broken
    return capture.record(outcome, answer)


def _view(plan: EpisodePlan, address: Address) -> TaskView:
    task = plan.task
    system = [Message.system(task.system)] if task.system else []
    if any(isinstance(part, ImagePart) for part in task.parts):
        raise failure(Owner.ENVIRONMENT, "task_has_images", f"task {task.id} has images; programs are given text only")
    messages = [*system, Message(role=Role.USER, parts=task.parts)]
    return TaskView(
        id=task.id,
        prompt=task.prompt_text,
        messages=tuple(message_to_openai(message) for message in messages),
        base_url=address.base_url,
        api_key=address.api_key,
        model=address.model,
        seed=plan.seed,
        tags=dict(task.tags),
    )


# -- supervision -----------------------------------------------------------------------------------------------------


async def _supervised(capture: Capture, call: Callable[[], Awaitable[str | None]]) -> str | None:
    """Await the program; it is ended once its time is over, it hangs, or it cannot go on.  Raises EpisodeStop."""
    work = asyncio.ensure_future(_run(capture, call))
    idle = asyncio.ensure_future(capture.idle(WORLD_TIMEOUT_S))
    stopped = asyncio.ensure_future(capture.stopped.wait())
    try:
        await asyncio.wait({work, idle, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if stopped.done():
            raise _unstoppable(capture)
        raise failure(Owner.ENVIRONMENT, "program_timeout", f"the program asked nothing for {WORLD_TIMEOUT_S:g} s")
    finally:
        for task in (work, idle, stopped):
            task.cancel()
        # Bounded: a program that swallows its cancellation must not keep the run from ending.
        await asyncio.wait({work, idle, stopped}, timeout=CANCEL_GRACE_S)


async def _run(capture: Capture, call: Callable[[], Awaitable[str | None]]) -> str | None:
    """What the program raises is its own fault, unless a limit was in its way."""
    try:
        answer = await in_world("program", call, timeout_s=0.0, deadline=capture.deadline)
    except EpisodeStop as stop:
        if stop.outcome.limit is Limit.TIME:
            raise
        if capture.limit is not None:
            raise EpisodeStop(capture.limit) from stop
        if capture.refused:
            detail = f"{capture.refused} ({stop.outcome.detail})"
            raise failure(Owner.ENVIRONMENT, "program_request_refused", detail) from stop
        raise
    if answer is not None and not isinstance(answer, str):
        detail = f"the program returned {type(answer).__name__} {answer!r:.80}; it returns its answer as text, or None"
        raise failure(Owner.ENVIRONMENT, "program_answer_not_text", detail)
    return clean_text(answer) if answer is not None else None


def _outcome(capture: Capture) -> Outcome:
    """How an episode ended whose program returned."""
    if capture.limit is not None:
        return capture.limit
    if not capture.turns:
        why = f"; its last request was refused: {capture.refused}" if capture.refused else ""
        detail = f"the program returned without one action of the policy{why}; it must use the base_url it is given"
        raise failure(Owner.ENVIRONMENT, "program_never_asked", detail)
    return COMPLETED


def _unstoppable(capture: Capture) -> EpisodeStop:
    if capture.limit is not None:
        return EpisodeStop(capture.limit)
    detail = f"{MAX_REFUSALS} requests in a row were refused, the last with: {capture.refused}"
    return failure(Owner.ENVIRONMENT, "program_request_refused", detail)


# -- the three kinds of program --------------------------------------------------------------------------------------


async def _call(program: Program, view: TaskView) -> str | None:
    if not callable(program):
        return await _command(tuple(program), view)
    if _is_async(program):
        found: Any = program(view)
    else:
        found = await _on_thread(lambda: program(view))
    answer: str | None = await found if inspect.isawaitable(found) else found
    return answer


def _is_async(program: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(program) or inspect.iscoroutinefunction(type(program).__call__)


async def _on_thread(function: Callable[[], Any]) -> Any:
    """A blocking program on a daemon thread of its own.

    A cancelled wait leaves the thread behind: threads cannot be killed.  Its next request is refused.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:  # noqa: BLE001 - carried over to the boundary of the episode
            error = raised
        with contextlib.suppress(RuntimeError):  # The loop was closed while the program ran: nobody waits any more.
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True, name="burnish-program").start()
    return await future


async def _command(words: Sequence[str], view: TaskView) -> str:
    """Run a command line in a process group of its own, which is killed whatever happens."""
    environment = {**os.environ, "OPENAI_BASE_URL": view.base_url, "OPENAI_API_KEY": view.api_key}
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        _, output, errors = await asyncio.gather(
            _write(process.stdin, view.to_json().encode()),
            _read(process.stdout, MAX_OUTPUT_BYTES),
            _tail(process.stderr),
        )
        code = await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # A pipe that was not read to its end, or that a process outside the group holds, keeps `wait` waiting.
        process._transport.close()  # type: ignore[attr-defined]
        await process.wait()
    if code != 0:
        last = cap_text(errors.decode("utf-8", "replace").strip(), MAX_TAIL_BYTES)[0]
        raise failure(Owner.ENVIRONMENT, "program_exit", f"{words[0]} ended with exit code {code}: {last}")
    return output.decode("utf-8", "replace").strip()


async def _write(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # It need not read its task.
        stream.write(data)
        await stream.drain()
        stream.close()


async def _read(stream: asyncio.StreamReader, limit_bytes: int) -> bytes:
    data = bytearray()
    while chunk := await stream.read(65_536):
        data += chunk
        if len(data) > limit_bytes:
            detail = (
                f"the program printed more than {limit_bytes} bytes; it prints its answer, and logs to standard error"
            )
            raise failure(Owner.ENVIRONMENT, "program_output", detail)
    return bytes(data)


async def _tail(stream: asyncio.StreamReader) -> bytes:
    data = b""
    while chunk := await stream.read(65_536):
        data = (data + chunk)[-MAX_TAIL_BYTES:]
    return data
