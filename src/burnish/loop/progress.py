"""What a run tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One line of progress.

    `Progress(phase="rl", step=12, steps=60, message="", reward=.71, success=.8, tokens_per_s=21000.0, eta_s=14.0)`

    phase: prepare, sft, rl or evaluate.  reward: mean of the step (rl).  success: newest held-out success.
    """

    phase: str
    step: int = 0
    steps: int = 0
    message: str = ""
    loss: float | None = None
    reward: float | None = None
    success: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None


Watcher = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A watcher that ignores everything."""
