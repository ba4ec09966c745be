"""Running the tool calls of one turn: checked, bounded in time, joined in the order they were asked for."""

from __future__ import annotations

import asyncio
import difflib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jsonschema

from burnish.core.errors import ToolError
from burnish.core.hashing import canonical_json
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Owner
from burnish.core.pickling import copied
from burnish.core.text import cap_text, clean_text
from burnish.core.tool import ShownResult, Tool, ToolSpec, specs_of
from burnish.rollout.boundary import Deadline, EpisodeStop, failure, guarded, in_world

MODEL_MISTAKES = (ToolError, ValueError, LookupError, ArithmeticError, AssertionError)
"""Exceptions that a tool raises because of its arguments: told to the policy.  Any other is the world's fault."""

COUNTERS = (
    "tool_calls",
    "tool_errors",
    "unknown_tools",
    "invalid_arguments",
    "malformed_calls",
    "cut_results",
    "tool_timeouts",
)
"""tool_calls counts every call asked for; tool_errors the calls that ran and told the policy of a mistake; the others
say why a call did not run, was cut or ran out of time."""

MAX_NAME_CHARS = 60
MAX_PROBLEM_CHARS = 200


class Toolbelt:
    """The tools of one episode, by name.

    `await belt.run(calls, deadline)` gives one tool message for each call, in order.  The calls of one turn run
    concurrently, started in call order.  `counters` and `tool_s` (wall seconds, summed over calls) grow as it runs.
    Raises EpisodeStop where a tool breaks or runs past its time, unless the tool says that the model answers for that.
    """

    def __init__(self, tools: Sequence[Tool], *, max_result_chars: int) -> None:
        self._tools = tools
        self.specs = specs_of(tools)
        self._places = {spec.name: place for place, spec in enumerate(self.specs)}
        self.max_result_chars = max_result_chars
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.tool_s = 0.0

    async def run(self, calls: Sequence[ToolCall], deadline: Deadline) -> tuple[Message, ...]:
        """Run the calls of one turn.

        A call that stands behind others may wait for them (worlds that are not thread-safe run one call at a time), so
        each is given the time of those before it on top of its own.
        """
        if len(calls) == 1:
            return (await self._run_one(calls[0], 0.0, deadline),)
        waits_s = self._waits_s(calls)
        results = await asyncio.gather(
            *(self._run_one(call, wait_s, deadline) for call, wait_s in zip(calls, waits_s, strict=True)),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return tuple(result for result in results if isinstance(result, Message))

    def _tool(self, name: str) -> Tool | None:
        place = self._places.get(name)
        return None if place is None else self._tools[place]

    def _waits_s(self, calls: Sequence[ToolCall]) -> list[float]:
        waits, total = [], 0.0
        for call in calls:
            waits.append(total)
            tool = self._tool(call.name)
            total += tool.timeout_s if tool else 0.0
        return waits

    async def _run_one(self, call: ToolCall, wait_s: float, deadline: Deadline) -> Message:
        self.counters["tool_calls"] += 1
        if call.error:
            self.counters["malformed_calls"] += 1
            return self._told(call, f"unreadable tool call: {call.error}")
        tool = self._tool(call.name)
        if tool is None:
            self.counters["unknown_tools"] += 1
            return self._told(call, self._unknown(call.name))
        # The tool works on a copy: one that changes its arguments must not change the record of what was asked.
        problem = argument_problem(call.arguments, tool.spec)
        if problem:
            self.counters["invalid_arguments"] += 1
            return self._told(call, problem)
        return await self._call(tool, call, copied(dict(call.arguments)), wait_s, deadline)

    async def _call(
        self, tool: Tool, call: ToolCall, arguments: Mapping[str, Any], wait_s: float, deadline: Deadline
    ) -> Message:
        started_s = time.perf_counter()
        mistake = ""

        async def run() -> str:
            nonlocal mistake
            try:
                return await tool.call(arguments)
            except MODEL_MISTAKES as error:
                mistake = mistake_text(error)
                return ""

        timeout_s = tool.timeout_s + wait_s if tool.timeout_s > 0 else 0.0
        name = f"tool {call.name}"
        try:
            text = await in_world("tool", run, timeout_s=timeout_s, deadline=deadline, name=name)
        except EpisodeStop as stop:
            if stop.outcome.cause != "tool_timeout":
                raise
            self.counters["tool_timeouts"] += 1
            if tool.timeout_owner is not Owner.MODEL:
                raise
            return self._told(call, f"{call.name} ran past {tool.timeout_s:g} s and was stopped")
        finally:
            self.tool_s += time.perf_counter() - started_s
        if mistake:
            self.counters["tool_errors"] += 1
            return self._told(call, mistake)
        if not isinstance(text, str):
            detail = f"{name} returned {type(text).__name__}; a tool's result is text"
            raise failure(Owner.ENVIRONMENT, "tool_result_not_text", detail)
        told = Message.tool(self._capped(text), call=call)
        images = text.images if isinstance(text, ShownResult) else ()
        return replace(told, parts=(*images, *told.parts)) if images else told

    def _told(self, call: ToolCall, text: str) -> Message:
        return Message.tool(self._capped(f"Error: {text}"), call=call, is_error=True)

    def _capped(self, text: str) -> str:
        """Cut first, then clean: a result of 10 MB is not read whole."""
        text, was_cut = cap_text(text, self.max_result_chars)
        if was_cut:
            self.counters["cut_results"] += 1
        return clean_text(text)

    def _unknown(self, name: str) -> str:
        names = list(self._places)
        shown = cap_text(name, MAX_NAME_CHARS)[0]
        if not names:
            return f"no tool named {shown!r}; there are no tools"
        close = difflib.get_close_matches(name[:MAX_NAME_CHARS], names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"tools: {', '.join(names)}"
        return f"no tool named {shown!r}; {hint}"


def mistake_text(error: BaseException) -> str:
    """What the policy reads of its mistake: a ToolError's own words, else the kind of error as well.

    >>> mistake_text(ToolError("no order A9")), mistake_text(KeyError("A9"))
    ('no order A9', "KeyError: 'A9'")
    """
    text = str(error)
    if isinstance(error, ToolError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def argument_problem(arguments: Mapping[str, Any], spec: ToolSpec) -> str:
    """What is wrong with a call's arguments, in words for the policy; "" where they fit the tool's schema.

    Raises EpisodeStop (environment, "tool_schema_raised") where the schema itself cannot be used.
    """
    error = guarded(Owner.ENVIRONMENT, "tool_schema", lambda: _first_error(arguments, spec))
    if error is None:
        return ""
    where = ".".join(str(step) for step in error.absolute_path)
    message = cap_text(error.message, MAX_PROBLEM_CHARS)[0]
    return f"argument {where}: {message}" if where else f"arguments: {message}"


def _first_error(arguments: Mapping[str, Any], spec: ToolSpec) -> Any:
    check = _check_of(spec)
    if check.plainly_fits(arguments):
        return None
    return next(check.validator.iter_errors(dict(arguments)), None)


_PLAIN_TYPES: Mapping[str, type] = {"string": str, "integer": int, "number": float, "boolean": bool}
_FLAT = frozenset({"type", "properties", "required", "additionalProperties"})
_SAYS_NOTHING = frozenset({"type", "description", "title", "default"})


class _Check:
    """A schema, ready to be asked.  `validator` knows all of JSON Schema and says what is wrong; `plainly_fits` says in
    a fraction of the time that nothing is, where the schema names plain types alone and the arguments have them."""

    __slots__ = ("_required", "_types", "validator")

    def __init__(self, schema: Mapping[str, Any]) -> None:
        jsonschema.Draft202012Validator.check_schema(schema)
        self.validator = jsonschema.Draft202012Validator(schema)
        is_flat = schema.get("type") == "object" and not schema.keys() - _FLAT
        self._types = _plain_types(schema.get("properties", {})) if is_flat else {}
        self._required = frozenset(schema.get("required", ()))

    def plainly_fits(self, arguments: Mapping[str, Any]) -> bool:
        """True only where the validator would find nothing; False says nothing."""
        if not self._types or not self._required <= arguments.keys():
            return False
        return all(type(value) is self._types.get(name) for name, value in arguments.items())


def _plain_types(properties: Mapping[str, Any]) -> Mapping[str, type]:
    """Python types of the parameters that must be of a plain type and nothing else; the others are left out."""
    kinds = {
        name: item["type"]
        for name, item in properties.items()
        if isinstance(item, dict) and isinstance(item.get("type"), str) and not item.keys() - _SAYS_NOTHING
    }
    return {name: _PLAIN_TYPES[kind] for name, kind in kinds.items() if kind in _PLAIN_TYPES}


_checks: dict[int, tuple[ToolSpec, _Check]] = {}
_MAX_CHECKS = 512


def _check_of(spec: ToolSpec) -> _Check:
    """The tools of a class have the same specs in every episode, so they are known by identity; the spec is kept along,
    so that no other can come to stand at its address."""
    found = _checks.get(id(spec))
    if found is not None:
        return found[1]
    if len(_checks) >= _MAX_CHECKS:
        _checks.clear()
    check = _check(canonical_json(spec.parameters))
    _checks[id(spec)] = (spec, check)
    return check


@lru_cache(maxsize=512)
def _check(schema_json: str) -> _Check:
    """One for each schema, for worlds that make their specs anew; the text is the key, since mappings cannot be."""
    return _Check(json.loads(schema_json))
