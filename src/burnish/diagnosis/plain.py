"""Reading what strangers wrote: values of the expected kind or an error that names the field, bounded in size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from burnish.core.errors import BurnishError

MAX_DEPTH = 60
MAX_TEXT = 2_000_000
"""Characters of one text that are kept; nobody's diagnosis rests on what stands behind them."""
MAX_ITEMS = 20_000


class RecordError(BurnishError):
    """A record cannot be used; the message says which field and why."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.  NaN and infinities become their names; raises RecordError for what is no JSON.

    >>> parse_json('[1, NaN]')
    [1, 'NaN']
    """
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {type(error).__name__}: {str(error)[:120]}") from None


def json_at(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at a place of a text and where it ends; as `parse_json` else.

    >>> json_at('{"a": 1} {"b": 2}', 9)
    ({'b': 2}, 17)
    """
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {type(error).__name__}: {str(error)[:120]}") from None


_DECODER = json.JSONDecoder(parse_constant=str)


def bounded(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A JSON value of at most `depth` levels, its numbers such that JSON can hold them; raises RecordError."""
    if depth < 0:
        raise RecordError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        return {str(key)[:MAX_TEXT]: bounded(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [bounded(item, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return clean(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:MAX_TEXT]


def clean(text: str) -> str:
    """At most `MAX_TEXT` characters that UTF-8 can hold (lone surrogates become U+FFFD)."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT]
    if text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8") if _has_surrogate(text) else text


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def mapping(value: Any, name: str) -> Mapping[str, Any]:
    """An object; raises RecordError where it is none."""
    if not isinstance(value, Mapping):
        raise RecordError(f"{name} must be an object, got {type(value).__name__}")
    return value


def listed(value: Any, name: str) -> list[Any]:
    """A list (None counts as empty) of bounded length; raises RecordError where it is none."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise RecordError(f"{name} must be a list, got {type(value).__name__}")
    if len(value) > MAX_ITEMS:
        raise RecordError(f"{name} has {len(value)} entries; at most {MAX_ITEMS} are read")
    return value


def worded(value: Any) -> str:
    """A text: strings as they are, None as "", lists of parts by their text, other values as JSON.

    >>> worded([{"type": "text", "text": "hi"}, {"type": "image_url"}]), worded(None)
    ('hi[image_url]', '')
    """
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, Mapping | str) for part in value):
        return clean("".join(_part(part) for part in value))
    return clean(json.dumps(bounded(value), ensure_ascii=False))


def _part(part: Mapping[str, Any] | str) -> str:
    if isinstance(part, str):
        return part
    for key in ("text", "content"):
        if isinstance(part.get(key), str):
            return str(part[key])
    kind = part.get("type")
    return f"[{kind}]" if isinstance(kind, str) else json.dumps(bounded(part), ensure_ascii=False)


def name_of(value: Any) -> str:
    """A short identifier: text or number; anything else is "".

    >>> name_of(7), name_of(None), name_of(["x"])
    ('7', '', '')
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    if isinstance(value, str):
        return clean(value[:500])
    return str(value) if value.bit_length() < 200 else ""


def whole(value: Any) -> int | None:
    """A whole number of at most nine digits; texts of digits count; None for everything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = value.strip()
        return int(value) if len(value) <= 9 and value.lstrip("-").isdecimal() and value.isascii() else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and abs(value) < 10**9 else None


def real(value: Any) -> float | None:
    """A finite number or None."""
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value):
        return float(value)
    return None
