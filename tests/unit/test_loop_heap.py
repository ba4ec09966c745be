from __future__ import annotations

import gc

from burnish.loop.heap import YOUNG_OBJECTS, settled_heap


def test_the_outermost_settles_the_heap_and_puts_it_back() -> None:
    frozen, before = gc.get_freeze_count(), gc.get_threshold()
    gc.unfreeze()
    gc.set_threshold(700, 10, 10)
    try:
        with settled_heap():
            settled = gc.get_freeze_count()
            made: list[list[int]] = []
            with settled_heap():
                made.extend([] for _ in range(10_000))
            # less by what has died since, not more by what was made since
            assert 0 < gc.get_freeze_count() <= settled
            assert gc.get_threshold()[0] == YOUNG_OBJECTS
        assert gc.get_freeze_count() == 0
        assert gc.get_threshold() == (700, 10, 10)
    finally:
        gc.set_threshold(*before)
        if frozen:
            gc.freeze()
