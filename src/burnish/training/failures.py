"""Failures of a training step; each stops the run with the last good checkpoint kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from burnish.core.errors import RunStopped

NAMED_TRAJECTORIES = 8
"""How many trajectory ids a message spells out."""

_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory")


class NonFiniteLoss(RunStopped):
    """A loss or gradient is NaN or infinite.  Nothing was changed: no parameter, no optimizer state, no gradient."""

    def __init__(self, what: str, trajectory_ids: Sequence[str] = ()) -> None:
        self.trajectory_ids = tuple(dict.fromkeys(trajectory_ids))
        named = ", ".join(self.trajectory_ids[:NAMED_TRAJECTORIES])
        more = len(self.trajectory_ids) - NAMED_TRAJECTORIES
        where = f" at {named}" + (f" and {more} more" if more > 0 else "") if named else ""
        advice = "lower the learning rate or look at these trajectories; the last checkpoint is good"
        super().__init__("nonfinite_loss", f"{what} is not finite{where}; {advice}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory ran out, on a GPU or on the CPU (which raises a RuntimeError)."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)
