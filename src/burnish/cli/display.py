"""Live progress: a line with a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from burnish.loop.progress import Progress

PLAIN_EVERY_S = 10.0
TITLES = {"prepare": "prepare", "sft": "warm start", "rl": "RL", "evaluate": "evaluate"}


class Display:
    """A watcher for a run; use it as a context manager around the run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._latest: dict[str, Progress] = {}
        self._printed_s = 0.0
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show one progress value."""
        self._latest[progress.phase] = progress
        last = progress.steps > 0 and progress.step == progress.steps
        if self._live:
            if progress.message and progress.phase == "prepare":
                self._console.print(Text(f"  {progress.message}", style="dim"))
            self._live.update(self._table(progress))
            if last:
                self._console.print(Text(self._line(progress)))
            return
        now = time.monotonic()
        if last or progress.message or now - self._printed_s >= PLAIN_EVERY_S:
            self._printed_s = now
            self._console.print(self._line(progress), markup=False, highlight=False, soft_wrap=True)

    def _line(self, progress: Progress) -> str:
        elapsed = _clock(time.monotonic() - self._started_s)
        words = [f"[{elapsed}]", f"{TITLES[progress.phase]:10}"]
        if progress.steps:
            words.append(f"step {progress.step}/{progress.steps}")
        if progress.message:
            words.append(progress.message)
        words += _figures(progress)
        return "  ".join(words)

    def _table(self, progress: Progress) -> Table:
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, progress.steps), completed=progress.step, width=20)
        step = f"{progress.step}/{progress.steps}" if progress.steps else progress.message
        table.add_row(Text(TITLES[progress.phase], style="bold"), bar, step, *_figures(progress))
        return table


def _figures(progress: Progress) -> list[str]:
    found = []
    if progress.reward is not None:
        found.append(f"reward {progress.reward:.2f}")
    elif progress.loss is not None:
        found.append(f"loss {progress.loss:.3f}")
    if progress.success is not None:
        found.append(f"held-out {progress.success:.2f}")
    if progress.tokens_per_s is not None:
        found.append(f"{progress.tokens_per_s / 1000:.1f}k tok/s")
    if progress.eta_s is not None:
        found.append(f"ETA {_clock(progress.eta_s)}")
    return found


def _clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> _clock(75.4)
    '1:15'
    """
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
