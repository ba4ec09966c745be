"""The error boundary of an episode: what breaks in a world or a renderer becomes a typed outcome, recorded once."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from pathlib import PurePath
from typing import TypeVar

from burnish.core.errors import RelayedError, WorldFault
from burnish.core.outcome import Ending, Limit, Outcome, Owner
from burnish.core.text import cap_text, clean_text

T = TypeVar("T")

DETAIL_CHARS = 500


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
        self._end_s = asyncio.get_running_loop().time() + timeout_s if timeout_s > 0 else float("inf")

    def allow(self, seconds: float) -> float:
        """`seconds` (0: no bound of its own) or what is left of the episode, whichever is less."""
        wanted = seconds if seconds > 0 else float("inf")
        if self._end_s == float("inf"):
            return wanted
        return min(wanted, max(0.0, self._end_s - asyncio.get_running_loop().time()))

    @property
    def over(self) -> bool:
        """Whether the episode's time is spent."""
        return self._end_s != float("inf") and asyncio.get_running_loop().time() >= self._end_s


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
    name = name or phase
    allowed_s = deadline.allow(timeout_s)
    clock = asyncio.timeout(None if allowed_s == float("inf") else allowed_s)
    try:
        async with clock:
            return await call()
    except EpisodeStop:
        raise
    except WorldFault as fault:
        episode = asyncio.current_task()
        if episode is not None and episode.cancelling():
            raise asyncio.CancelledError from fault
        raise failure(fault.owner, fault.cause, f"{name}: {fault}") from fault
    except asyncio.CancelledError as error:
        # A tool may let the cancellation of a task of its own escape; only a cancelled *episode* has a request pending.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise failure(Owner.ENVIRONMENT, f"{phase}_raised", f"{name} was cancelled from within") from error
    except (Exception, SystemExit) as error:
        if clock.expired() and deadline.over:
            raise truncation(Limit.TIME, f"the episode ran past {deadline.timeout_s:g} s during {name}") from error
        if clock.expired():
            raise failure(Owner.ENVIRONMENT, f"{phase}_timeout", f"{name} ran past {timeout_s:g} s") from error
        raise failure(Owner.ENVIRONMENT, f"{phase}_raised", f"{name} raised {describe(error)}") from error


def guarded(owner: Owner, phase: str, call: Callable[[], T]) -> T:
    """One plain call into code that is not ours; whatever it raises ends the episode: `owner`, "<phase>_raised"."""
    try:
        return call()
    except EpisodeStop:
        raise
    except Exception as error:
        raise failure(owner, f"{phase}_raised", f"{phase} raised {describe(error)}") from error
