"""Errors that cross rooms.  Each says what happened, with which value, and what to do."""

from __future__ import annotations

from typing import Any

from burnish.core.outcome import Owner


class BurnishError(Exception):
    """Base of every error that Burnish raises on purpose; the command line prints it without a traceback.

    Errors cross process boundaries whole, whatever arguments their constructors take.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args, self.__dict__.copy())


def _rebuilt(kind: type[BurnishError], args: tuple[Any, ...], state: dict[str, Any]) -> BurnishError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(BurnishError):
    """A recipe, an override or a command-line value is wrong.  Nothing has been started."""


class TaskError(BurnishError):
    """A task or a row of a taskset cannot be used; the message names file and line where there are any."""


class ToolError(BurnishError):
    """Raised by a tool to tell the *policy* what it did wrong, for example an unknown order id.

    The text is shown to the policy as the tool's result; the episode goes on.
    """


class RenderError(BurnishError):
    """Messages cannot be turned into tokens, or tokens do not come back as the same messages."""


class StoreError(BurnishError):
    """A run directory cannot be read or written (missing, locked by another writer, full disk)."""


class CheckpointError(BurnishError):
    """No usable checkpoint: missing, half written, or its hashes do not hold."""


class SamplerError(BurnishError):
    """A sampler could not answer a request, and the policy is not to blame: a server that is down or answers garbage.

    Nothing was drawn that could be scored.  The asynchronous pool ends the episode that asked, with an infrastructure
    error; the lockstep runner, which asks for many episodes at once, stops.
    """


class InvariantViolation(BurnishError):
    """An always-on check failed; the run stops and names the invariant.

    >>> str(InvariantViolation("sampler_freshness", "weights differ after sync"))
    'invariant sampler_freshness violated: weights differ after sync'
    """

    def __init__(self, name: str, detail: str) -> None:
        self.name = name
        self.detail = detail
        super().__init__(f"invariant {name} violated: {detail}")


class RunStopped(BurnishError):
    """The run ended early for a stated reason (no signal, too many exclusions, NaN loss, full disk).

    `cause` is a short code for the store; the message is for people.
    """

    def __init__(self, cause: str, message: str) -> None:
        self.cause = cause
        super().__init__(message)


class WorldFault(BurnishError):
    """Ends an episode as an error whose owner and cause are known to whoever raises it.

    Environments that are run for somebody else raise it (a process that died is nobody's tool); every other exception
    is typed by where it came from.
    """

    def __init__(self, owner: Owner, cause: str, message: str) -> None:
        self.owner = owner
        self.cause = cause
        super().__init__(message)


class HostLost(WorldFault):
    """The process that an environment lived in is gone, and this environment is not known to be at fault.

    An infrastructure error with the cause "host_lost": the episode may be started again with the same seed; it never
    carries a reward.
    """

    def __init__(self, message: str) -> None:
        super().__init__(Owner.INFRASTRUCTURE, "host_lost", message)


class RelayedError(Exception):
    """Base, beside the kind that it was there, of an exception that was raised in another process.

    `str(error)` is its text there; `place` is the line it came from, such as "world.py:12 in count".
    """

    def __init__(self, text: str, place: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.place = place

    def __str__(self) -> str:
        return self.text
