"""A stored run as trackers take it: rows of scalars under one axis for each phase, its recipe, findings, decisions."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from burnish.core.errors import ConfigError, StoreError
from burnish.store.reader import RunReader
from burnish.store.rows import StoredEvent

KINDS = ("finding", "decision")
COLUMNS = ("kind", "step", "what", "severity", "onset_step", "detail")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedStep:
    """The scalars of one step under names that begin with its phase, and when it was committed (seconds, epoch).

    `TrackedStep(phase="rl", step=3, at_s=1.7e9, values={"rl/loss": 0.1})`
    """

    phase: str
    step: int
    at_s: float
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run in the order in which it happened.

    config: the recipe, one text or number by dotted key.  events: findings and decisions.

    `TrackedRun(name="demo-001", config={"rl.lr": 3e-4}, steps=(TrackedStep(...),), events=())`
    """

    name: str
    config: Mapping[str, Any]
    steps: tuple[TrackedStep, ...]
    events: tuple[StoredEvent, ...]

    def event_rows(self) -> list[list[Any]]:
        """Findings and decisions as rows of `COLUMNS`."""
        return [
            [
                event.kind,
                event.step,
                str(event.data.get("monitor") or event.data.get("act") or ""),
                str(event.data.get("severity") or ("dry run" if event.data.get("dry_run") else "")),
                event.data.get("onset_step", -1),
                event.detail or str(event.data.get("summary") or event.data.get("reason") or ""),
            ]
            for event in self.events
        ]


def read_tracked(run_dir: Path | str) -> TrackedRun:
    """A stored run, whether or not it goes on.  Values that are not finite are left out: trackers differ on them.

    Raises StoreError where there is no readable run.
    """
    reader = RunReader(run_dir)
    try:
        recipe = reader.manifest().get("recipe", {})
    except StoreError:
        recipe = {}
    steps = []
    for info in sorted(reader.steps(), key=lambda info: info.committed_at_s):
        scalars = reader.step_scalars(info.phase, info.step)
        values = {f"{info.phase}/{name}": value for name, value in scalars.items() if math.isfinite(value)}
        steps.append(TrackedStep(phase=info.phase, step=info.step, at_s=info.committed_at_s, values=values))
    events = tuple(event for event in reader.events() if event.kind in KINDS)
    return TrackedRun(
        name=reader.layout.root.resolve().name, config=flattened(recipe), steps=tuple(steps), events=events
    )


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections by dotted key; lists as JSON.

    >>> flattened({"rl": {"lr": 0.1, "modes": ["a"]}})
    {'rl.lr': 0.1, 'rl.modes': '["a"]'}
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            is_plain = isinstance(value, (str, int, float)) or value is None
            flat[f"{prefix}{key}"] = value if is_plain else json.dumps(value, default=str)
    return flat


def load_tracker(name: str) -> ModuleType:
    """The library of a tracker.  Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f'{name} cannot be imported ({error}): pip install "burnish[trackers]"') from error


def unique_names(names: Sequence[str], clean: Mapping[str, str]) -> dict[str, str]:
    """`clean` of each name, with a number where two became the same.

    >>> unique_names(["a+", "a-"], {"a+": "a", "a-": "a"})
    {'a+': 'a', 'a-': 'a.2'}
    """
    found: dict[str, str] = {}
    for name in names:
        wanted, number = clean[name], 1
        while wanted in found.values():
            number += 1
            wanted = f"{clean[name]}.{number}"
        found[name] = wanted
    return found
