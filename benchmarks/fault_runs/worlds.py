"""Faults of the tools: results that drift, results that are wrong, calls that fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from burnish.core.errors import ToolError
from burnish.core.hashing import derive_seed
from burnish.core.tool import Tool
from fault_runs.hooks import Injector

Change = Callable[[Any, str, Random], str]


class ToolFault(Injector):
    """A share `dose` of the training episodes' tool results goes through `changed`."""

    def __init__(self, dose: float, seed: int) -> None:
        super().__init__(dose, seed)
        self._made = 0

    def world(self, step: int, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any, **named: Any) -> FaultyWorld:
            self._made += 1
            random = Random(derive_seed(self.seed, "tool fault", step, self._made))
            return FaultyWorld(make(*args, **named), random, self.dose, self.told)

        return made

    def told(self, world: Any, text: str, random: Random) -> str:
        """What the policy is told instead of `text` in this episode's world; may raise ToolError."""
        return self.changed(text, random)

    def changed(self, text: str, random: Random) -> str:
        """The same, for a fault that does not depend on the task."""
        raise NotImplementedError


class FaultyWorld:
    """An environment whose tools give changed results; everything else is passed on."""

    def __init__(self, world: Any, random: Random, share: float, change: Change) -> None:
        self._world = world
        self._random = random
        self._share = share
        self._change = change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def tools(self) -> list[Tool]:
        """The world's tools, each behind the fault."""
        return [replace(tool, call=self._behind(tool)) for tool in self._world.tools()]

    def _behind(self, tool: Tool) -> Callable[[Mapping[str, Any]], Any]:
        async def call(arguments: Mapping[str, Any]) -> str:
            text = await tool.call(arguments)
            return self._change(self._world, text, self._random) if self._random.random() < self._share else text

        return call


class FormatDrift(ToolFault):
    """Results come in another format: no JSON, numbers padded with zeros, keys in capitals."""

    def changed(self, text: str, random: Random) -> str:
        return _plain(_parsed(text))


class NoisyTool(ToolFault):
    """Numbers in the results are wrong: another one with as many digits."""

    def changed(self, text: str, random: Random) -> str:
        value = _with_numbers(_parsed(text), lambda number: _other(number, random))
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


class FailingTool(ToolFault):
    """Calls fail although nothing is wrong with them, and the policy is told so."""

    def changed(self, text: str, random: Random) -> str:
        raise ToolError("the service is not available")


class LeakingTool(ToolFault):
    """Results give the task away: where the answer is a number, every number in them is that one."""

    def told(self, world: Any, text: str, random: Random) -> str:
        answer = str(world.task.reference.get("answer", ""))
        if not answer.isdigit():
            return text
        value = _with_numbers(_parsed(text), lambda number: int(answer))
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{str(key).upper()} = {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " | ".join(_plain(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:06d}"
    return str(value)


def _with_numbers(value: Any, change: Callable[[int], int]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_numbers(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_numbers(item, change) for item in value]
    return change(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _other(number: int, random: Random) -> int:
    digits = len(str(abs(number)))
    return random.randrange(10 ** (digits - 1), 10**digits)
