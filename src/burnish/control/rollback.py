"""Which checkpoint a rollback goes to: the latest that was verified well before the estimated onset.

The checkpoint of the failing step is the worst choice there is, and the latest one is hardly better: a change is
noticed after it began.  Verified means that the run was looked at *at* that checkpoint (held-out success at its level,
no finding open), not that the file can be read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMark:
    """What control knows of a checkpoint.  `CheckpointMark(name="000120", step=120, verified=True)`

    step: the last one that it contains.  verified: the run was seen to be well at that step.
    """

    name: str
    step: int
    verified: bool


def choose_checkpoint(
    checkpoints: Iterable[CheckpointMark],
    onset_step: int,
    *,
    margin_steps: int = 1,
    tried: Collection[str] = (),
) -> CheckpointMark | None:
    """The latest verified checkpoint with step + margin_steps <= onset_step; None where there is none.

    tried: names that a rollback already went to.  Since the same start led to the same end, an earlier one is taken;
    the steps of the run between the two are lost, which is the price of a fault that began before it was estimated to.
    Raises ValueError for an onset below 0: without a change point there is nothing to be before of.

    >>> marks = [CheckpointMark(name=str(step), step=step, verified=step != 40) for step in (20, 40, 60)]
    >>> choose_checkpoint(marks, onset_step=50).name
    '20'
    """
    if onset_step < 0:
        raise ValueError(
            f"a rollback needs an onset, got step {onset_step}; leave the rung closed without a change point"
        )
    open_marks = [
        mark
        for mark in checkpoints
        if mark.verified and mark.name not in tried and mark.step + margin_steps <= onset_step
    ]
    return max(open_marks, key=lambda mark: (mark.step, mark.name), default=None)
