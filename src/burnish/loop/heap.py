"""Keeping what lives as long as the run out of the garbage collector's sight."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def settle_heap() -> None:
    """Collect once, then leave everything that is alive out of later collections.

    Modules, tokenizer, tasks and model are about a million objects.  A full collection that walks all of them takes
    about .2 s, as long as a whole step of a tiny model, and comes every few steps.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def settled_heap() -> Iterator[None]:
    """As `settle_heap`, undone at the end: for a process that goes on after the run."""
    settle_heap()
    try:
        yield
    finally:
        gc.unfreeze()
