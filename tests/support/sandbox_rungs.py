"""The rungs that hold on this machine, tried once for all tests, and a look at what runs here."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from burnish.sandbox.ladder import LADDER, probe_here

PROBED = {one.rung: one.problem for one in probe_here()}
for _rung, _problem in PROBED.items():
    if _problem:
        warnings.warn(f"the rung {_rung} is not tested: {_problem}", stacklevel=1)
HERE = [rung for rung in LADDER if not PROBED[rung]]


def running(token: str) -> list[int]:
    """Processes of this machine with `token` among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if token.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


async def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true, at most 10 s."""
    give_up_s = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < give_up_s, "waited 10 s"
        await asyncio.sleep(0.02)


def open_to_all(folder: Path) -> None:
    """Let every uid enter a test's folder, so that permissions alone keep nobody out."""
    for each in (folder, *folder.parents[:3]):
        each.chmod(each.stat().st_mode | 0o055)
