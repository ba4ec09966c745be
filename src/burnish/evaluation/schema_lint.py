"""What is wrong with the tools that an environment offers, before any policy has to make do with them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema

from burnish.core.tool import ToolSpec

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What OpenAI-compatible endpoints accept as a function name."""

_UNDESCRIBED = "has no description; add it to the docstring"
_SAYS_TYPE = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref")


def schema_problems(tools: Sequence[ToolSpec]) -> list[str]:
    """Problems as sentences that begin with the tool's name; empty for tools that are well described.

    >>> spec = ToolSpec(name="add", description="", parameters={"type": "object"})
    >>> schema_problems([spec])
    ['add: no description; write a docstring']
    """
    names = [spec.name for spec in tools]
    problems = [f"{name}: two tools have this name" for name in sorted({n for n in names if names.count(n) > 1})]
    for spec in tools:
        problems += [f"{spec.name}: {problem}" for problem in _problems(spec)]
    return problems


def _problems(spec: ToolSpec) -> list[str]:
    problems = []
    if not _NAME.fullmatch(spec.name):
        problems.append("the name is not 1 to 64 letters, digits, _ or -; endpoints refuse it")
    if not spec.description.strip():
        problems.append("no description; write a docstring")
    try:
        jsonschema.Draft202012Validator.check_schema(dict(spec.parameters))
    except jsonschema.SchemaError as error:
        return [*problems, f"the parameters are not a JSON Schema ({error.message})"]
    if spec.parameters.get("type") != "object":
        return [*problems, f"the parameters must have type object, got {spec.parameters.get('type')!r}"]
    properties: Mapping[str, Any] = spec.parameters.get("properties", {})
    for name in spec.parameters.get("required", ()):
        if name not in properties:
            problems.append(f"parameter {name} is required but not described")
    for name, schema in properties.items():
        problems += _parameter_problems(name, schema)
    return problems


def _parameter_problems(name: str, schema: Any) -> list[str]:
    if not isinstance(schema, Mapping):
        return [f"parameter {name} has no schema of its own"]
    problems = []
    if not any(key in schema for key in _SAYS_TYPE):
        problems.append(f"parameter {name} has no type; add a type hint")
    if not str(schema.get("description", "")).strip():
        problems.append(f"parameter {name} {_UNDESCRIBED}")
    return problems


def is_advice(problem: str) -> bool:
    """Whether a problem only makes a tool harder to use: a parameter whose name and type are all there is to know.

    >>> is_advice("count: parameter shelf has no description; add it to the docstring")
    True
    """
    return problem.endswith(_UNDESCRIBED)
