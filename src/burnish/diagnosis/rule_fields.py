"""Fields of a rule of a policy: texts and lists of texts, or an error that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.core.errors import ConfigError


def text_of(data: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A text; without a default it must be there and not empty.  Raises ConfigError."""
    value = data.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ConfigError(f"{key} must be a text, got {value!r:.60}")
    return value


def texts_of(data: Mapping[str, Any], key: str, least: int = 1) -> tuple[str, ...]:
    """A list of at least `least` texts; with `least` 0 it may be left out.  Raises ConfigError."""
    value = data.get(key, [] if least == 0 else None)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{key} must be a list of at least {least} texts, got {value!r:.60}")
    return tuple(value)
