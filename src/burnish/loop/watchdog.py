"""The conductor's own watchdog: a process that stands still writes the stacks of all its threads and ends.

It runs in C, without the interpreter's lock, so that it works where nothing else in the process does.
"""

from __future__ import annotations

import faulthandler
import time
from pathlib import Path
from typing import TextIO

PET_EVERY_S = 1.0


class Watchdog:
    """`with Watchdog(1200.0, folder / "conductor.stacks.txt") as watchdog: ... watchdog.pet()`

    Ends the process with status 1, the stacks in `file`, where nobody pets it for `stall_s` seconds.
    """

    def __init__(self, stall_s: float, file: Path) -> None:
        if not stall_s > 0:
            raise ValueError(f"stall_s is above 0, got {stall_s}")
        self._stall_s, self._path = stall_s, file
        self._file: TextIO | None = None
        self._petted_s = float("-inf")

    def __enter__(self) -> Watchdog:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w")
        self.pet()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            self._file = None

    def pet(self) -> None:
        """Something has moved."""
        now_s = time.monotonic()
        if self._file is not None and now_s - self._petted_s >= min(PET_EVERY_S, self._stall_s / 4):
            self._petted_s = now_s
            faulthandler.dump_traceback_later(self._stall_s, exit=True, file=self._file)
