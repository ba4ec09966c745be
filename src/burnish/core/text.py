"""Text hygiene at the boundary: what enters a trajectory can be stored by everything downstream."""

from __future__ import annotations

import re
from typing import Any

_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def clean_text(text: str) -> str:
    r"""Replace lone surrogates, which SQLite, Parquet and UTF-8 all refuse, and NUL.

    >>> clean_text("a\ud800b\x00")
    'a\ufffdb\ufffd'
    """
    if "\x00" in text:
        text = text.replace("\x00", "\ufffd")
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def clean_json(value: Any) -> Any:
    r"""A JSON value with clean text, names included: an escape can spell a lone surrogate or NUL.

    >>> clean_json({"a\x00": ["b\x00", 1]})
    {'a\ufffd': ['b\ufffd', 1]}
    """
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [clean_json(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): clean_json(item) for key, item in value.items()}
    return value


def cap_text(text: str, limit_chars: int) -> tuple[str, bool]:
    """Cut `text` to `limit_chars` characters with a marker that says how much is gone.

    Returns the text and whether it was cut.

    >>> cap_text("abcdef", 4)
    ('abcd\\n[cut: 2 of 6 characters]', True)
    """
    if len(text) <= limit_chars:
        return text, False
    return f"{text[:limit_chars]}\n[cut: {len(text) - limit_chars} of {len(text)} characters]", True


def json_depth(text: str) -> int:
    r"""The deepest nesting of brackets outside of strings, before anything is parsed.

    >>> json_depth('{"a": ["[[[", {}]}')
    3
    """
    depth = deepest = 0
    for character in _JSON_STRING.sub("", text):
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest
