"""Content hashes and derived seeds: the only two ways Burnish turns a value into a number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

_SCALARS = frozenset({str, int, float, bool, type(None)})
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_SMALL = 2**63


def _plain(value: Any) -> Any:
    """JSON-able form of dataclasses, mappings, sequences and bytes; anything else is left to the encoder."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    # Ahead of the tests that hold for subclasses too: nearly all values are of these two kinds.
    if kind is dict:
        return {str(key): _plain(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, bytes):
        return value.hex()
    return value


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN.

    >>> canonical_json({"b": 1, "a": (2, 3)})
    '{"a":[2,3],"b":1}'
    """
    return _ENCODER.encode(_plain(value))


def through_json(value: Any) -> Any:
    """The value as it comes back from its text, `json.loads(canonical_json(value))`: keys sorted, tuples as lists.

    Raises as `canonical_json` does.

    >>> through_json({"b": (1, 2), "a": None})
    {'a': None, 'b': [1, 2]}
    """
    kind = type(value)
    if value is None or kind is bool or (kind is str and value.isascii()):
        return value
    if kind is int and -_SMALL <= value < _SMALL:
        return value
    if kind is list or kind is tuple:
        return [through_json(item) for item in value]
    if kind is dict and all(type(key) is str and key.isascii() for key in value):
        return {key: through_json(value[key]) for key in sorted(value)}
    return json.loads(canonical_json(value))


def content_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `canonical_json(value)`.

    >>> content_hash({"a": 1})
    '015abd7f5cc57a2d'
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def bytes_hash(data: bytes) -> str:
    """SHA-256 of raw bytes in full (64 hex digits); names artefacts and checks files."""
    return hashlib.sha256(data).hexdigest()


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that is a pure function of its parts, alike on every machine.

    The seed of an episode is `derive_seed(run_seed, task_id, sample_index, step)`.

    >>> derive_seed(0, "task-1", 3, 12) == derive_seed(0, "task-1", 3, 12)
    True
    >>> derive_seed(0, "a") == derive_seed(0, "b")
    False
    """
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1
