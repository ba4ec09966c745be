"""Faults that are injected live into a scripted expert, which plays on with what it is then told.

A fault changes one thing while the episode runs: a call that is left out, an argument on its way to the tool, a result
on its way to the expert, a tool that stops to answer, a customer who says something else than before.  Which step is
then the critical one follows from the two runs alone: the first message of the party at fault that differs from what
the same expert does in the same task without the fault.  For an omission that is the first action which should have
followed what was left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.errors import ToolError
from burnish.core.message import Message, Role, ToolCall
from burnish.core.task import Task
from burnish.core.tool import Tool
from burnish.core.trajectory import Trajectory
from burnish.diagnosis.taxonomy import Category, Fault
from burnish.environments.shop.world import STATUSES

Hearing = Generator[Any, Any, Any]
"""Yields what is played in place of what the script said, and returns what the script hears."""


class Kind(StrEnum):
    """What is injected."""

    DROP = "drop a step"
    CORRUPT = "corrupt an argument"
    INVENT = "invent a value"
    MISREAD = "misread a result"
    OUTAGE = "tool outage"
    CONTRADICT = "user contradicts"


TRUTH: Mapping[Kind, tuple[Category, Fault, Role]] = {
    Kind.DROP: (Category.ADHERENCE, Fault.AGENT, Role.ASSISTANT),
    Kind.CORRUPT: (Category.INVOCATION, Fault.AGENT, Role.ASSISTANT),
    Kind.INVENT: (Category.INVENTION, Fault.AGENT, Role.ASSISTANT),
    Kind.MISREAD: (Category.MISREADING, Fault.AGENT, Role.ASSISTANT),
    Kind.OUTAGE: (Category.SYSTEM, Fault.ENVIRONMENT, Role.TOOL),
    Kind.CONTRADICT: (Category.UNDERSPECIFIED, Fault.USER, Role.USER),
}
"""Category, owner, and whose message is the critical one."""

OUTAGES = (
    "503 service unavailable, try again later",
    "connection to the database timed out",
    "502 bad gateway: the backend did not respond",
)
STANDARD_REPLY = "ok"


@dataclass(slots=True)
class Plan:
    """One fault: its kind, the number of the call (or proposal) that it hits, and where its randomness comes from.

    heard: the results of the same expert without a fault, by number of the call.
    """

    kind: Kind
    at: int
    rng: Random
    heard: Sequence[str] = ()


def first_departure(clean: Trajectory, faulted: Trajectory, role: Role) -> int | None:
    """Index (from 1) of the first message of a role that the run without the fault does not have in its place; None
    where there is none."""
    before = [_told(message) for message in clean.messages]
    for index, message in enumerate(faulted.messages):
        if index >= len(before) or _told(message) != before[index]:
            rest = enumerate(faulted.messages[index:], start=index + 1)
            return next((at for at, later in rest if later.role is role), None)
    return None


def _told(message: Message) -> tuple[Any, ...]:
    return (
        message.role,
        message.text,
        tuple((call.name, json.dumps(dict(call.arguments))) for call in message.tool_calls),
    )


def results(trajectory: Trajectory) -> list[str]:
    """Texts of all tool results in order."""
    return [message.text for message in trajectory.messages if message.role is Role.TOOL]


def calls(trajectory: Trajectory) -> list[ToolCall]:
    """All tool calls in order."""
    return [call for message in trajectory.messages for call in message.tool_calls]


# -- single calls ------------------------------------------------------------------------------------------------------


def through(script: Script, heard_for: Callable[[Any], Hearing], lost: tuple[type[Exception], ...] = ()) -> Script:
    """The script, hearing what `heard_for` gives for what it says; it gives up at errors of its own in `lost`."""
    heard: Any = None
    while True:
        try:
            said = script.send(heard)
        except StopIteration as end:
            return str(end.value)
        except lost:
            return "I could not find it."
        heard = yield from heard_for(said)


def with_fault(script: Script, plan: Plan) -> Script:
    """A script that calls one tool at a time, with the fault; it is told what the world or the fault says."""
    numbers = count()

    def heard_for(said: Any) -> Hearing:
        if not isinstance(said, ToolCall):
            return (yield said)
        number = next(numbers)
        if number != plan.at or plan.kind in (Kind.OUTAGE, Kind.CONTRADICT):
            heard = yield said
            if plan.kind is Kind.OUTAGE and any(text in str(heard) for text in OUTAGES):
                heard = yield said  # once more, as anybody would
            return heard
        if plan.kind is Kind.DROP:
            return plan.heard[number] if plan.heard else STANDARD_REPLY
        if plan.kind is Kind.CORRUPT:
            return (yield corrupted(said, plan.rng))
        if plan.kind is Kind.INVENT:
            return invented(plan.heard[number], plan.rng, known=" ".join(plan.heard))
        return misread((yield said), plan.rng)

    return through(script, heard_for, lost=(ValueError, LookupError, TypeError))


def without_asking(script: Script, plan: Plan) -> Script:
    """An expert on the telephone who skips one proposal, as though the customer had said yes."""
    numbers = count()

    def heard_for(said: Any) -> Hearing:
        if isinstance(said, Message) and "Shall I go ahead?" in said.text and next(numbers) == plan.at:
            return ["Yes."]
        return (yield said)

    return through(script, heard_for)


def corrupted(call: ToolCall, rng: Random) -> ToolCall:
    """A call with one argument left out, of another type, or mangled by a slip of the fingers."""
    arguments = dict(call.arguments)
    name = rng.choice(sorted(arguments))
    how = rng.choice(("missing", "type", "slip", "slip"))
    if how == "missing":
        del arguments[name]
    elif how == "type":
        value = arguments[name]
        arguments[name] = [value] if isinstance(value, str) else f"no. {value}"
    else:
        arguments[name] = _slip(arguments[name], rng)
    return replace(call, arguments=arguments)


def _slip(value: Any, rng: Random) -> Any:
    """The value with two neighbours swapped, a character left out, or one doubled; never the value itself."""
    text = str(value)
    while True:
        at = rng.randrange(len(text))
        how = rng.choice(("swap", "leave out", "double"))
        if how == "swap":
            at = min(at, len(text) - 2) if len(text) > 1 else 0
            made = text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]
        else:
            made = text[:at] + (text[at] * 2 if how == "double" else "") + text[at + 1 :]
        if made != text and made and not (isinstance(value, int) and (made[0] == "0" or not made.isdigit())):
            return int(made) if isinstance(value, int) else made


def invented(text: str, rng: Random, known: str = "") -> str:
    """A result with each number replaced by one of as many digits that stands nowhere in `known`."""

    def other(match: re.Match[str]) -> str:
        while True:
            low = 10 ** (len(match[0]) - 1)
            made = str(rng.randrange(low, 10 * low))
            if made != match[0] and (len(made) == 1 or not re.search(rf"\b{made}\b", known)):
                return made

    return re.sub(r"(?<![A-Z])\d+", other, text)


def misread(text: str, rng: Random) -> str:
    """A result with another status, or with its numbers in each other's place, or, where it is one number, with two
    digits swapped."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, int):
        return str(_swapped(value))
    records = [record for record in (value if isinstance(value, list) else [value]) if isinstance(record, dict)]
    states = [record for record in records if "status" in record]
    if states and rng.random() < 0.5:
        states[0]["status"] = rng.choice([s for s in STATUSES if s != states[0]["status"]])
        return json.dumps(value)
    places = [(record, key) for record in records for key, number in record.items() if isinstance(number, int)]
    numbers = [record[key] for record, key in places]
    rotated = [_swapped(numbers[0])] if len(numbers) == 1 else numbers[1:] + numbers[:1]
    for (record, key), number in zip(places, rotated, strict=True):
        record[key] = number
    return json.dumps(value)


def _swapped(number: int) -> int:
    """A number with its first two different neighbours swapped; 47 is read as 74."""
    digits = list(str(number))
    for at in range(len(digits) - 1):
        if digits[at] != digits[at + 1] and digits[at + 1] != "0":
            digits[at], digits[at + 1] = digits[at + 1], digits[at]
            break
    return int("".join(digits))


# -- the world -------------------------------------------------------------------------------------------------------


class Failing:
    """An environment one of whose tools is down from its `at`-th call (of any tool) on."""

    def __init__(self, inner: Any, at: int, rng: Random) -> None:
        self.inner, self.at, self.message = inner, at, rng.choice(OUTAGES)
        self.limits = inner.limits
        self.down = ""
        self._number = -1

    async def start(self, task: Task) -> Sequence[Message]:
        return await self.inner.start(task)

    def tools(self) -> Sequence[Tool]:
        return [self._failing(tool) for tool in self.inner.tools()]

    def _failing(self, tool: Tool) -> Tool:
        async def call(arguments: Mapping[str, Any]) -> str:
            self._number += 1
            if self._number == self.at:
                self.down = tool.spec.name
            if self.down == tool.spec.name:
                raise ToolError(self.message)
            return await tool.call(arguments)

        return replace(tool, call=call)

    async def reply(self, message: Message) -> Sequence[Message] | None:
        return await self.inner.reply(message)

    async def finish(self, answer: str) -> Mapping[str, Any]:
        return await self.inner.finish(answer)

    async def close(self) -> None:
        await self.inner.close()
