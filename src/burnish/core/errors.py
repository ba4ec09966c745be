"""Errors that cross rooms.  Each says what happened, with which value, and what to do."""

from __future__ import annotations

from typing import Any


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
