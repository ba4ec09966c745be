"""Policies without skill: what a taskset's declared chance is measured against."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from burnish.core.environment import Script, ScriptedPolicy
from burnish.core.message import ToolCall
from burnish.core.task import Task
from burnish.core.tool import ToolSpec

MAX_RANDOM_CALLS = 3
MAX_SCHEMA_DEPTH = 6
MAX_WORDS = 2000

_WORD = re.compile(r"[^\W_][\w@.\-]*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def no_op(environment: Any, task: Task, rng: Random) -> Script:
    """Says nothing at once: the empty answer."""
    return ""
    yield  # makes this a script


def constant(answer: str) -> ScriptedPolicy:
    """Gives the same answer to every task, without looking."""

    def policy(environment: Any, task: Task, rng: Random) -> Script:
        return answer
        yield  # makes this a script

    return policy


def best_constant(tasks: Iterable[Task]) -> str:
    """The most frequent reference answer of the tasks, the least in text order among equals; "" where there is none.

    >>> best_constant([Task(prompt=p, reference={"answer": a}) for p, a in [("x", 3), ("y", "7"), ("z", 3)]])
    '3'
    """
    counts = Counter(
        str(task.reference["answer"]) for task in tasks if isinstance(task.reference.get("answer"), (str, int, float))
    )
    return min(counts, key=lambda answer: (-counts[answer], answer), default="")


def random_valid(environment: Any, task: Task, rng: Random) -> Script:
    """1 to 3 random calls that fit the tools' schemas, then a random answer of the right type.

    Values come from the world: enum values, words and numbers of the prompt and of earlier results, and whatever the
    environment's optional `vocabulary()` lists.  The answer is a number where the reference answer is one.
    """
    words, numbers = _Pool(), _Pool()
    _collect(task.prompt_text, words, numbers)
    for word in getattr(environment, "vocabulary", tuple)():
        words.add(str(word))
    specs = _offered(environment, task)
    for _ in range(rng.randint(1, MAX_RANDOM_CALLS) if specs else 0):
        spec = rng.choice(specs)
        arguments = _Values(spec.parameters, words, numbers, rng).draw(spec.parameters)
        heard = yield ToolCall(id="call_0", name=spec.name, arguments=arguments)
        _collect(str(heard), words, numbers)
    if _is_number(task.reference.get("answer")):
        return numbers.draw(rng) or str(rng.randint(0, 10))
    return words.draw(rng) or "none"


def _offered(environment: Any, task: Task) -> list[ToolSpec]:
    specs = [tool.spec for tool in environment.tools()]
    return [spec for spec in specs if task.tools is None or spec.name in task.tools]


class _Pool:
    """Distinct texts in the order they were seen, so that draws are alike on every machine."""

    def __init__(self) -> None:
        self._texts: dict[str, None] = {}

    def add(self, text: str) -> None:
        if text and len(self._texts) < MAX_WORDS:
            self._texts[text] = None

    def draw(self, rng: Random) -> str:
        return rng.choice(list(self._texts)) if self._texts else ""


def _collect(text: str, words: _Pool, numbers: _Pool) -> None:
    for match in _WORD.finditer(text):
        words.add(match.group().strip(".-"))
    for match in _NUMBER.finditer(text):
        numbers.add(match.group())


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    return isinstance(value, str) and _NUMBER.fullmatch(value.strip().lstrip("$")) is not None


class _Values:
    """Draws values that fit a JSON schema (types, enums, bounds, required and optional properties, local $refs)."""

    def __init__(self, root: Mapping[str, Any], words: _Pool, numbers: _Pool, rng: Random) -> None:
        self._root, self._words, self._numbers, self._rng = root, words, numbers, rng

    def draw(self, schema: Mapping[str, Any], depth: int = 0) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(list(schema["enum"]))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return self.draw(self._rng.choice(list(schema[key])), depth)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if not isinstance(kind, str):
            kind = self._rng.choice(list(kind))
        return self._of_kind(kind, schema, depth)

    def _of_kind(self, kind: str, schema: Mapping[str, Any], depth: int) -> Any:
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            low = schema.get("minItems", 0 if depth > MAX_SCHEMA_DEPTH else 1)
            count = self._rng.randint(low, max(low, min(schema.get("maxItems", low + 2), low + 2)))
            return [self.draw(schema.get("items", {}), depth + 1) for _ in range(count)]
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        if kind == "boolean":
            return self._rng.random() < 0.5
        if kind == "null":
            return None
        return self._words.draw(self._rng) or "x"

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        return {
            name: self.draw(part, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if name in required or (depth <= MAX_SCHEMA_DEPTH and self._rng.random() < 0.5)
        }

    def _number(self, kind: str, schema: Mapping[str, Any]) -> int | float:
        seen = float(self._numbers.draw(self._rng) or self._rng.randint(0, 10))
        low, high = _bounds(schema)
        if not low <= seen <= high:
            floor = low if low > float("-inf") else min(0.0, high)
            seen = self._rng.uniform(floor, high if high < float("inf") else floor + 10)
        if kind == "number":
            return seen
        return min(max(round(seen), _ceil(low)), _floor(high))

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found: Any = self._root
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        return self._resolved(found)


def _bounds(schema: Mapping[str, Any]) -> tuple[float, float]:
    step = 1.0 if schema.get("type") == "integer" else 1e-6
    low = max(schema.get("minimum", float("-inf")), schema.get("exclusiveMinimum", float("-inf")) + step)
    high = min(schema.get("maximum", float("inf")), schema.get("exclusiveMaximum", float("inf")) - step)
    return float(low), float(high)


def _ceil(value: float) -> int:
    return -(2**53) if value == float("-inf") else -int(-value // 1)


def _floor(value: float) -> int:
    return 2**53 if value == float("inf") else int(value // 1)
