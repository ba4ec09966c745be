"""Which step failed and whose fault it was, on real labelled runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLIT_SALT = "burnish diagnosis"
READ = 14


def split_ids(ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """(ids that may be read while rules are written, ids that are scored once): the first 14 by SHA-256, the rest."""
    ordered = sorted(ids, key=lambda name: hashlib.sha256(f"{SPLIT_SALT} {name}".encode()).hexdigest())
    return ordered[:READ], ordered[READ:]
