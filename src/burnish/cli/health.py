"""The commands about health: why a run is ill, what a file of token streams shows, and handing a run to a tracker."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from burnish.core.errors import BurnishError, ConfigError
from burnish.store.runs import find_run

WIDTH = 80


def why(arguments: argparse.Namespace, console: Console) -> int:
    """Print the ranked diagnosis of a run."""
    from burnish.reports.diagnosis import diagnose_run, why_json, why_table

    folder = find_run(arguments.root, arguments.run)
    diagnosis, decisions = diagnose_run(folder)
    if arguments.json:
        _print_json(console, why_json(folder.name, diagnosis, decisions))
    else:
        console.print(why_table(folder.name, diagnosis, decisions), width=min(WIDTH, console.width))
    return 0


def health(arguments: argparse.Namespace, console: Console) -> int:
    """Watch stored token streams step by step, and print slices and findings."""
    from burnish.reports.offline import health_json, health_table, streams_of, watch_streams

    path = Path(arguments.path)
    name = path.name
    if not path.exists() or (path / "control.sqlite").exists():
        folder = _run_folder(arguments)
        path, name = streams_of(folder), folder.name
    seen = watch_streams(
        path, baseline_steps=arguments.baseline_steps, false_alarms_per_1000=arguments.false_alarms_per_1000
    )
    if arguments.json:
        _print_json(console, health_json(name, seen))
    else:
        console.print(health_table(name, seen), width=min(WIDTH, console.width))
    return 0


def export_to(arguments: argparse.Namespace, console: Console) -> int:
    """Write a stored run to a tracker."""
    from burnish.integrations.trackers import read_tracked

    folder = find_run(arguments.root, arguments.run)
    tracked = read_tracked(folder)
    place = importlib.import_module(f"burnish.integrations.{arguments.to}").export(tracked, arguments.project)
    console.print(f"{len(tracked.steps)} steps of {folder.name} are in {arguments.to}: {place}", soft_wrap=True)
    return 0


def _run_folder(arguments: argparse.Namespace) -> Path:
    try:
        return find_run(arguments.root, arguments.path)
    except BurnishError as error:
        raise ConfigError(f"{arguments.path!r} is neither a file of token streams nor a run: {error}") from error


def _print_json(console: Console, value: Any) -> None:
    """As it is, however narrow the terminal."""
    console.out(json.dumps(value, indent=2, allow_nan=False), highlight=False)
