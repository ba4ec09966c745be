"""Runs, stored and in progress, in Trackio, which keeps them here (https://github.com/gradio-app/trackio)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations.trackers import COLUMNS, RunHead, TrackedRun, load_tracker, rows_of, send


def export(run: TrackedRun, project: str) -> str:
    """Write a run to a project as a new run; returns how to look at it.

    Raises ConfigError where trackio is missing, or cannot write its folder (TRACKIO_DIR).
    """
    trackio = load_tracker("trackio")
    with _refusals():
        return send(run, TrackioRun(trackio, run.head, project))


class TrackioRun:
    """A run in a project.  Trackio has one axis: rows are numbered in the order in which steps were committed, and each
    names its own step as PHASE/step; findings and decisions stand under the number of the newest."""

    def __init__(self, trackio: Any, head: RunHead, project: str) -> None:
        self._trackio, self._project, self._rows = trackio, project, head.steps_before
        self._run = trackio.init(
            project=project,
            name=head.name,
            config=dict(head.config),
            resume="allow" if head.id else "never",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: TrackedStep) -> None:
        self._run.log({**step.values, f"{step.phase}/step": step.step}, step=self._rows)
        self._rows += 1

    def note(self, notes: Sequence[TrackedNote]) -> None:
        self._run.log({"findings_and_decisions": self._trackio.Markdown(_markdown(rows_of(notes)))}, step=self._rows)

    def close(self) -> str:
        self._run.finish()
        return f"trackio show --project {self._project}"


def open_run(head: RunHead, project: str) -> TrackioRun:
    """A run that steps are added to while they happen.  Raises ConfigError as `export` does."""
    trackio = load_tracker("trackio")
    with _refusals():
        return TrackioRun(trackio, head, project)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"trackio cannot write its folder: {error}; name another one in TRACKIO_DIR") from error


def _markdown(rows: Sequence[Sequence[object]]) -> str:
    """A table; its library's own needs pandas."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in cells)])
