"""JSON Schema from Python type hints, and the way back from JSON values to what the hints promise."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from burnish.core.errors import ConfigError, ToolError

_SCALARS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS = (list, Sequence)
_DICTS = (dict, Mapping)
_PLAIN = frozenset({str, int, bool, type(None)})
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_SUPPORTED = "str, int, float, bool, list[...], dict[str, ...], Literal, Enum, TypedDict, dataclass, X | None"


def schema_of(hint: Any) -> dict[str, Any]:
    """The JSON Schema of a type hint.

    Raises ConfigError for a hint that has no JSON form, such as `set[int]` or `dict[int, str]`.

    >>> schema_of(list[int])
    {'type': 'array', 'items': {'type': 'integer'}}
    >>> schema_of(Literal["a", "b"])
    {'type': 'string', 'enum': ['a', 'b']}
    >>> schema_of(int | None)
    {'type': ['integer', 'null']}
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if origin is Annotated:
        return schema_of(arguments[0]) | _note(arguments[1:])
    if origin in (Required, NotRequired):
        return schema_of(arguments[0])
    if origin is Literal:
        return _choices(list(arguments))
    if origin in (Union, types.UnionType):
        return _union([schema_of(argument) for argument in arguments])
    if hint in _LISTS or origin in _LISTS:
        return {"type": "array"} | ({"items": schema_of(arguments[0])} if arguments else {})
    if hint in _DICTS or origin in _DICTS:
        return _mapping(hint, arguments)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _choices([member.value for member in hint])
    if is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _record(hint)
    raise ConfigError(f"type hint {_name(hint)} has no JSON form; use one of {_SUPPORTED}")


def convert(hint: Any, value: Any) -> Any:
    """A JSON value that fits the schema of `hint`, as the Python value the hint promises.

    Whole floats become int where int is promised, ints become float, names become Enum members, objects become
    dataclasses; everything else is passed on.  Raises ToolError, for the policy to read, where that is impossible.

    >>> convert(float, 3), convert(int, 3.0)
    (3.0, 3)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Annotated, Required, NotRequired):
        return convert(arguments[0], value)
    if isinstance(value, bool) or value is None:
        return value
    if hint is float and isinstance(value, int):
        return _as_float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value)
    if origin in _LISTS and arguments and isinstance(value, list):
        return [convert(arguments[0], item) for item in value]
    if origin in _DICTS and arguments and isinstance(value, dict):
        return {key: convert(arguments[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _convert_enum(hint, value)
    if isinstance(value, dict) and (is_typeddict(hint) or dataclasses.is_dataclass(hint)):
        return _convert_record(hint, value)
    return value


def to_json(value: Any) -> Any:
    """The JSON-able form of a Python value: Enum members by value, dataclasses and mappings as dict, tuples as list.

    Raises TypeError for anything without one, NaN and infinities included.
    """
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return to_json(value.value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if value - value != 0.0:
            raise TypeError(f"{value} has no JSON form")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return to_json(value.item())
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def compact_json(value: Any) -> str:
    """One line of JSON without spaces; raises TypeError as `to_json` does.

    >>> compact_json({"a": (1, 2.5)})
    '{"a":[1,2.5]}'
    """
    return _COMPACT.encode(to_json(value))


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _note(extras: tuple[Any, ...]) -> dict[str, str]:
    """`Annotated[int, "metres"]` carries its own description."""
    texts = [extra for extra in extras if isinstance(extra, str)]
    return {"description": texts[0]} if texts else {}


def _choices(values: list[Any]) -> dict[str, Any]:
    kinds = {_SCALARS.get(type(value)) for value in values}
    if None in kinds or not values:
        raise ConfigError(f"choices must be strings, numbers or booleans, got {values!r}")
    return {"type": kinds.pop(), "enum": values} if len(kinds) == 1 else {"enum": values}


def _union(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    if all(list(schema) == ["type"] for schema in schemas):
        return {"type": [schema["type"] for schema in schemas]}
    return {"anyOf": schemas}


def _mapping(hint: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    if not arguments:
        return {"type": "object"}
    if arguments[0] is not str:
        raise ConfigError(f"type hint {_name(hint)}: JSON objects have string keys; use dict[str, ...]")
    return {"type": "object", "additionalProperties": schema_of(arguments[1])}


def _record(hint: Any) -> dict[str, Any]:
    hints = get_type_hints(hint, include_extras=True)
    if is_typeddict(hint):
        # `__required_keys__` overlooks markers in hints that are still text when the class is made.
        marked = {name: get_origin(inner) for name, inner in hints.items()}
        required = [
            name
            for name in hints
            if marked[name] is Required or (marked[name] is not NotRequired and name in hint.__required_keys__)
        ]
    else:
        required = [item.name for item in dataclasses.fields(hint) if _is_required(item)]
    properties = {name: schema_of(inner) for name, inner in hints.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ToolError("a number is too large") from None


def _convert_enum(hint: type[Enum], value: Any) -> Enum:
    try:
        return hint(value)
    except ValueError:
        known = ", ".join(str(member.value) for member in hint)
        raise ToolError(f"{value!r} is not one of {known}") from None


def _convert_union(choices: tuple[Any, ...], value: Any) -> Any:
    """The first alternative whose conversion changes nothing in kind wins; then the first that converts at all."""
    for choice in choices:
        plain = get_origin(choice) or choice
        if isinstance(plain, type) and not issubclass(plain, Enum) and type(value) is plain:
            return convert(choice, value)
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return convert(choice, value)
        except ToolError:
            continue
    return value


def _convert_record(hint: Any, value: dict[str, Any]) -> Any:
    hints = get_type_hints(hint, include_extras=True)
    fields = {name: convert(hints[name], item) if name in hints else item for name, item in value.items()}
    if is_typeddict(hint):
        return fields
    try:
        return hint(**fields)
    except TypeError as error:
        raise ToolError(f"cannot read a {hint.__name__}: {error}") from None
