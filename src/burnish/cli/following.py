"""The trackers that a recipe's section `track` names."""

from __future__ import annotations

from pathlib import Path

from burnish.core.tracked import Tracker
from burnish.loop.config import Recipe


def run_trackers(recipe: Recipe, folder: Path) -> list[Tracker]:
    """One for each name, for the run in `folder`.  Raises ConfigError where the library of one is missing."""
    if not recipe.track.to:
        return []
    from burnish.integrations.live import LiveTracker

    return [LiveTracker(name, recipe.track.project, folder) for name in dict.fromkeys(recipe.track.to)]
