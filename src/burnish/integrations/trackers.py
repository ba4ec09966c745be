"""A run as trackers take it: rows of scalars under one axis for each phase, its recipe, findings, decisions."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from burnish.core.errors import ConfigError, StoreError
from burnish.core.hashing import content_hash
from burnish.core.tracked import NOTED, TrackedNote, TrackedStep
from burnish.store.reader import RunReader

COLUMNS = tuple(field.name for field in fields(TrackedNote))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """What a tracker is told of a run before its steps.

    config: the recipe, one text or number by dotted key.  id: by which the tracker finds a run again that goes on, ""
    for a new one whatever there is.  steps_before: committed before the first that it hears of, all phases together.

    `RunHead(name="demo-001", config={"rl.lr": 3e-4}, id="9f0c", steps_before=12)`
    """

    name: str
    config: Mapping[str, Any]
    id: str = ""
    steps_before: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """A run in the order in which it happened.

    `TrackedRun(head=RunHead(name="demo-001", config={}), steps=(TrackedStep(...),), notes=())`
    """

    head: RunHead
    steps: tuple[TrackedStep, ...]
    notes: tuple[TrackedNote, ...]


class Sink(Protocol):
    """A run that was opened in a tracker."""

    def log(self, step: TrackedStep) -> None:
        """Take the scalars of a step."""
        ...

    def note(self, notes: Sequence[TrackedNote]) -> None:
        """Take all findings and decisions so far."""
        ...

    def close(self) -> str:
        """Nothing more comes; gives where the run is."""
        ...


def send(run: TrackedRun, sink: Sink) -> str:
    """A whole stored run; gives where it is."""
    for step in run.steps:
        sink.log(step)
    if run.notes:
        sink.note(run.notes)
    return sink.close()


def rows_of(notes: Sequence[TrackedNote]) -> list[list[Any]]:
    """Findings and decisions as rows of `COLUMNS`."""
    return [list(astuple(note)) for note in notes]


def read_tracked(run_dir: Path | str) -> TrackedRun:
    """A stored run, whether or not it goes on.  Values that are not finite are left out: trackers differ on them.

    Raises StoreError where there is no readable run.
    """
    reader = RunReader(run_dir)
    steps = []
    for info in sorted(reader.steps(), key=lambda info: info.committed_at_s):
        scalars = reader.step_scalars(info.phase, info.step)
        values = {f"{info.phase}/{name}": value for name, value in scalars.items() if math.isfinite(value)}
        steps.append(TrackedStep(phase=info.phase, step=info.step, at_s=info.committed_at_s, values=values))
    notes = tuple(
        TrackedNote.of(event.kind, event.step, event.detail, event.data)
        for event in reader.events()
        if event.kind in NOTED
    )
    return TrackedRun(head=_head(reader), steps=tuple(steps), notes=notes)


def read_head(run_dir: Path | str) -> RunHead:
    """Of a run in progress, right after a step: the same id each time, so that a tracker takes it all as one run."""
    reader = RunReader(run_dir)
    plain = _head(reader)
    made = content_hash([plain.name, str(reader.manifest().get("created_at", ""))])[:16]
    return replace(plain, id=made, steps_before=len(reader.steps()) - 1)


def _head(reader: RunReader) -> RunHead:
    try:
        recipe = reader.manifest().get("recipe", {})
    except StoreError:
        recipe = {}
    return RunHead(name=reader.layout.root.resolve().name, config=flattened(recipe))


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


class UniqueNames:
    """Names that a tracker takes, with a number where two would become the same, in the order in which they are asked
    for.

    >>> names = UniqueNames(lambda name: name[:1])
    >>> names["a+"], names["a-"], names["a+"]
    ('a', 'a.2', 'a')
    """

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._found: dict[str, str] = {}
        self._taken: set[str] = set()

    def __getitem__(self, name: str) -> str:
        if name not in self._found:
            plain = self._clean(name)
            wanted, number = plain, 1
            while wanted in self._taken:
                number += 1
                wanted = f"{plain}.{number}"
            self._found[name] = wanted
            self._taken.add(wanted)
        return self._found[name]
