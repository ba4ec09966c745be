"""The error boundary of an episode: what breaks in a world or a renderer becomes a typed outcome, recorded once."""

from __future__ import annotations

import asyncio
import traceback
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import PurePath
from typing import Any, TypeVar

from burnish.core.errors import RelayedError, WorldFault
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.text import cap_text, clean_text

T = TypeVar("T")

DETAIL_CHARS = 500
INFINITY = float("inf")


class EpisodeStop(Exception):
    """Ends an episode with `outcome`; never leaves the rollout room."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        super().__init__(f"{outcome.label}: {outcome.cause}: {outcome.detail}")


def failure(owner: Owner, cause: str, detail: str) -> EpisodeStop:
    """An error outcome on its way: `failure(Owner.ENVIRONMENT, "tool_timeout", "tool count ran past 30 s")`."""
    detail = cap_text(clean_text(detail), DETAIL_CHARS)[0]
    return EpisodeStop(Outcome(ending=Ending.ERROR, owner=owner, cause=cause, detail=detail))


def truncation(limit: Limit, detail: str) -> EpisodeStop:
    """A truncated outcome on its way: `truncation(Limit.TIME, "30 s are over")`."""
    return EpisodeStop(Outcome(ending=Ending.TRUNCATED, limit=limit, detail=detail))


def describe(error: BaseException) -> str:
    """One line on an exception with the place it came from, such as "KeyError: 'A' (world.py:12 in count)"."""
    line = f"{type(error).__name__}: {_text_of(error)}"
    if isinstance(error, RelayedError):
        return f"{line} ({error.place})" if error.place else line
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return line
    last = frames[-1]
    return f"{line} ({PurePath(last.filename).name}:{last.lineno} in {last.name})"


def _text_of(error: BaseException) -> str:
    """`str(error)`, which is code of the world too and may itself raise."""
    try:
        return str(error)
    except Exception as inner:  # noqa: BLE001 - part of the boundary: an error that cannot be printed is still an error
        return f"(its text raised {type(inner).__name__})"


class Deadline:
    """When an episode's wall time is over, on the clock of the running event loop.

    `Deadline(0.0)` never ends.  `Deadline(30.0).allow(60.0)` is at most 30.0, the seconds that a call may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._end_s = asyncio.get_running_loop().time() + timeout_s if timeout_s > 0 else INFINITY

    def allow(self, seconds: float) -> float:
        """`seconds` (0: no bound of its own) or what is left of the episode, whichever is less."""
        wanted = seconds if seconds > 0 else INFINITY
        if self._end_s == INFINITY:
            return wanted
        return min(wanted, max(0.0, self._end_s - asyncio.get_running_loop().time()))

    @property
    def over(self) -> bool:
        """Whether the episode's time is spent."""
        return self._end_s != INFINITY and asyncio.get_running_loop().time() >= self._end_s


async def in_world(
    phase: str,
    call: Callable[[], Awaitable[T]],
    *,
    timeout_s: float,
    deadline: Deadline,
    name: str = "",
) -> T:
    """Await one call into the environment's code; whatever it raises ends the episode as an environment error.

    phase: "start", "reply", "tool", "finish" ...; the causes are "<phase>_raised" and "<phase>_timeout".  name: what
    to call it in the detail, the phase unless given.  A call cut by the episode's own deadline truncates it by time.
    A WorldFault names owner and cause itself.  Cancellation from outside passes through.
    """
    allowed_s = deadline.allow(timeout_s)
    ends_s = None if allowed_s == INFINITY else asyncio.get_running_loop().time() + allowed_s
    clock: asyncio.Timeout | None = None
    try:
        waited = call()
        if type(waited) is not types.CoroutineType:
            clock = asyncio.timeout_at(ends_s)
            async with clock:
                return await waited
        # Most calls never wait: they are over after one step, in which no clock could have stopped them.
        try:
            awaited_first = waited.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        clock = asyncio.timeout_at(ends_s)
        async with clock:
            return await _resumed(waited, awaited_first)
    except EpisodeStop:
        raise
    except WorldFault as fault:
        episode = asyncio.current_task()
        if episode is not None and episode.cancelling():
            raise asyncio.CancelledError from fault
        raise failure(fault.owner, fault.cause, f"{name or phase}: {fault}") from fault
    except asyncio.CancelledError as error:
        # A tool may let the cancellation of a task of its own escape; only a cancelled *episode* has a request pending.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise failure(Owner.ENVIRONMENT, f"{phase}_raised", f"{name or phase} was cancelled from within") from error
    except (Exception, SystemExit) as error:
        name = name or phase
        has_expired = clock is not None and clock.expired()
        if has_expired and deadline.over:
            raise truncation(Limit.TIME, f"the episode ran past {deadline.timeout_s:g} s during {name}") from error
        if has_expired:
            raise failure(Owner.ENVIRONMENT, f"{phase}_timeout", f"{name} ran past {timeout_s:g} s") from error
        raise failure(Owner.ENVIRONMENT, f"{phase}_raised", f"{name} raised {describe(error)}") from error


@types.coroutine
def _resumed(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that has taken its first step; `awaited` is what it then waited for.

    The loop of `yield from` (PEP 380), begun in the middle.
    """
    try:
        while True:
            try:
                sent = yield awaited
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001 - no boundary: it goes to the coroutine, as `await` has it
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(sent)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


def guarded(owner: Owner, phase: str, call: Callable[[], T]) -> T:
    """One plain call into code that is not ours; whatever it raises ends the episode: `owner`, "<phase>_raised"."""
    try:
        return call()
    except EpisodeStop:
        raise
    except Exception as error:
        raise failure(owner, f"{phase}_raised", f"{phase} raised {describe(error)}") from error
