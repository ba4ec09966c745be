"""Keeping what lives as long as the run out of the garbage collector's sight."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG_OBJECTS = 50_000
"""New objects until the next collection.  A step makes some tens of thousands, hardly any of them in cycles; at
Python's 700 its collections take a twentieth of a step of a tiny model."""


def settle_heap() -> None:
    """Collect once, then leave everything that is alive out of later collections, which come less often.

    Modules, tokenizer, tasks and model are about a million objects.  A full collection that walks all of them takes
    about .2 s, as long as a whole step of a tiny model, and comes every few steps.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


@contextmanager
def settled_heap() -> Iterator[None]:
    """As `settle_heap`, undone at the end: for a process that goes on after the run.  A heap that is settled already
    stays as it is, with whoever settled it: one collection is enough for many runs."""
    if gc.get_freeze_count():
        yield
        return
    before = gc.get_threshold()
    settle_heap()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
