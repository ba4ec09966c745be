"""The protocol between rollouts and worlds."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from random import Random
from typing import Any, Protocol

from burnish.core.message import Message, ToolCall
from burnish.core.task import Task
from burnish.core.tool import Tool


class Environment(Protocol):
    """A single-use world for one episode.

    Order of calls: `start` once, then `tools` calls and `reply` in any order, then `finish` once where the episode
    was not broken by an error, then `close` always.
    """

    async def start(self, task: Task) -> Sequence[Message]:
        """Build the world; return the first messages (system, user)."""
        ...

    def tools(self) -> Sequence[Tool]:
        """The tools of this episode; called after `start`."""
        ...

    async def reply(self, message: Message) -> Sequence[Message] | None:
        """The world's answer to a turn without tool calls; None ends the episode (then its text is the answer)."""
        ...

    async def finish(self, answer: str) -> Mapping[str, Any]:
        """The final state, JSON-able: what graders need beyond the messages (rows changed, files, `get_reward`)."""
        ...

    async def close(self) -> None:
        """Release what `start` took."""
        ...


Script = Generator[ToolCall | Sequence[ToolCall] | Message, Any, str]
"""A scripted policy for one episode: yields tool calls and is sent the texts of their results (one text for one call,
a list for a sequence of calls), yields a message for a turn without calls and is sent the texts of the reply, returns
the final answer."""


class ScriptedPolicy(Protocol):
    """Makes the script of one episode: the expert, no-op, random and constant policies are such."""

    def __call__(self, environment: Any, task: Task, rng: Random) -> Script: ...
