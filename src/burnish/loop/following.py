"""What trackers of experiments hear of a step that was stored."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from burnish.core.errors import ConfigError
from burnish.core.tracked import NOTED, TrackedNote, TrackedStep, Tracker
from burnish.loop.config import Recipe
from burnish.store.rows import StepRecord


def tracked(record: StepRecord) -> tuple[TrackedStep, list[TrackedNote]]:
    """The finite scalars of a step under its phase, and what was found and decided in it.

    >>> step, notes = tracked(StepRecord(phase="rl", step=3, scalars={"loss": 0.5, "odd": math.nan}))
    >>> dict(step.values), notes
    ({'rl/loss': 0.5}, [])
    """
    values = {f"{record.phase}/{name}": value for name, value in record.scalars.items() if math.isfinite(value)}
    notes = [
        TrackedNote.of(event.kind, record.step, event.detail, event.data)
        for event in record.events
        if event.kind in NOTED
    ]
    return TrackedStep(phase=record.phase, step=record.step, at_s=time.time(), values=values), notes


def check_trackers(recipe: Recipe, trackers: Sequence[Tracker]) -> None:
    """Raises ConfigError where the recipe names trackers and none are given."""
    if recipe.track.to and not trackers:
        raise ConfigError(
            f"track.to is {list(recipe.track.to)} and the run was given no trackers; from Python pass "
            "trackers=[LiveTracker(...)] with it, or track.to=[]"
        )
