"""Constraints from tool schemas: a part of JSON Schema that always ends.

Own code instead of a validator library because the schema is a stranger's too: a library follows `$ref` to the network
or in circles, and runs `pattern` with a backtracking engine.  Read are type, enum, const, required, properties,
additionalProperties, items, anyOf / oneOf / allOf, local `$ref`, bounds of numbers, lengths; everything else passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.diagnosis.constraint import PASS, UNKNOWN, Constraint, Found, Guard, fail
from burnish.diagnosis.taxonomy import Category
from burnish.diagnosis.view import CallView, View

MAX_HOPS = 40
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def problem(value: Any, schema: Any, root: Any = None, hops: int = MAX_HOPS, where: str = "") -> str:
    """What is wrong with a value, "" where nothing is; a schema that cannot be read finds nothing.

    >>> problem({"a": "x"}, {"properties": {"a": {"type": "integer"}}})
    'a: expected integer, got str'
    """
    if hops <= 0 or not isinstance(schema, Mapping):
        return ""
    root = schema if root is None else root
    if isinstance(schema.get("$ref"), str):
        return problem(value, _resolved(schema["$ref"], root), root, hops - 1, where)
    for check in (_type, _choice, _bounds):
        if found := check(value, schema):
            return f"{where or 'arguments'}: {found}"
    if found := _combined(value, schema, root, hops, where):
        return found
    if isinstance(value, Mapping):
        return _object(value, schema, root, hops, where)
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value[:200]):
            if found := problem(item, schema["items"], root, hops - 1, f"{where}[{number}]"):
                return found
    return ""


def _resolved(reference: str, root: Any) -> Any:
    node = root
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:20]:
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    return node


def _type(value: Any, schema: Mapping[str, Any]) -> str:
    names = schema.get("type")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        return ""
    known = [name for name in names if isinstance(name, str) and name in _TYPES]
    if len(known) != len(names) or any(_is_a(value, name) for name in known):
        return ""
    return f"expected {' or '.join(known)}, got {type(value).__name__}"


def _is_a(value: Any, name: str) -> bool:
    if name in ("integer", "number") and isinstance(value, bool):
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _choice(value: Any, schema: Mapping[str, Any]) -> str:
    allowed = schema.get("enum")
    if isinstance(allowed, list) and allowed and value not in allowed:
        return f"{str(value)[:60]!r} is none of {str(allowed)[:120]}"
    if "const" in schema and value != schema["const"]:
        return f"must be {str(schema['const'])[:60]!r}"
    return ""


def _bounds(value: Any, schema: Mapping[str, Any]) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = schema.get("minimum"), schema.get("maximum")
        if isinstance(least, int | float) and value < least:
            return f"{value} is below {least}"
        if isinstance(most, int | float) and value > most:
            return f"{value} is above {most}"
    if isinstance(value, str | list):
        kind = "Length" if isinstance(value, str) else "Items"
        least, most = schema.get(f"min{kind}"), schema.get(f"max{kind}")
        if isinstance(least, int) and len(value) < least:
            return f"has {len(value)} entries, at least {least}"
        if isinstance(most, int) and len(value) > most:
            return f"has {len(value)} entries, at most {most}"
    return ""


def _combined(value: Any, schema: Mapping[str, Any], root: Any, hops: int, where: str) -> str:
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and 0 < len(options) <= 8:
            found = [problem(value, option, root, hops // 3, where) for option in options]
            if all(found):
                return found[0]
    every = schema.get("allOf")
    for option in every[:8] if isinstance(every, list) else ():
        if found_one := problem(value, option, root, hops // 3, where):
            return found_one
    return ""


def _object(value: Mapping[str, Any], schema: Mapping[str, Any], root: Any, hops: int, where: str) -> str:
    prefix = f"{where}." if where else ""
    required = schema.get("required")
    for name in required[:200] if isinstance(required, list) else ():
        if isinstance(name, str) and name not in value:
            return f"{prefix}{name}: required but missing"
    properties = schema.get("properties")
    known: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
    for name, item in list(value.items())[:200]:
        if name in known:
            if found := problem(item, known[name], root, hops - 1, f"{prefix}{name}"):
                return found
        elif known and schema.get("additionalProperties") is False:
            return f"{prefix}{name}: not an argument of this tool"
    return ""


def schema_constraints() -> tuple[Constraint, ...]:
    """Calls must name a tool that was offered and fit its schema; without schemas both say nothing."""
    return (
        Constraint(
            id="unknown_tool",
            guard=Guard(),
            severity=0.8,
            category=Category.INVOCATION,
            origin="schema",
            text="the tool was not offered",
            on_call=_offered,
        ),
        Constraint(
            id="schema",
            guard=Guard(),
            severity=0.8,
            category=Category.INVOCATION,
            origin="schema",
            text="the arguments do not fit the tool's schema",
            on_call=_fits,
        ),
    )


def _offered(view: View, call: CallView) -> Found:
    if not view.record.tools:
        return UNKNOWN
    if any(tool.name == call.name for tool in view.record.tools):
        return PASS
    return fail(f"{call.name or 'a call without name'} is none of the {len(view.record.tools)} tools", quote=call.name)


def _fits(view: View, call: CallView) -> Found:
    if call.call.arguments is None:
        return fail("the arguments are no JSON object", quote=call.call.raw)
    tool = next((tool for tool in view.record.tools if tool.name == call.name), None)
    if tool is None or not tool.parameters:
        return UNKNOWN
    found = problem(dict(call.arguments), tool.parameters)
    return fail(found, quote=str(dict(call.arguments))) if found else PASS
