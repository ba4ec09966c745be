"""Export of a stored run to Trackio, which keeps it on this machine (https://github.com/gradio-app/trackio)."""

from __future__ import annotations

from burnish.core.errors import ConfigError
from burnish.integrations.trackers import COLUMNS, TrackedRun, load_tracker


def export(run: TrackedRun, project: str) -> str:
    """Write a run to a project as a new run; returns how to look at it.

    Trackio has one axis: rows are numbered in the order in which steps were committed, and each names its own step as
    PHASE/step.  Raises ConfigError where trackio is missing, or cannot write its folder (TRACKIO_DIR).
    """
    trackio = load_tracker("trackio")
    try:
        made = trackio.init(
            project=project, name=run.name, config=dict(run.config), embed=False, auto_log_gpu=False, auto_log_cpu=False
        )
        for number, step in enumerate(run.steps):
            made.log({**step.values, f"{step.phase}/step": step.step}, step=number)
        if run.events:
            rows = [dict(zip(COLUMNS, row, strict=True)) for row in run.event_rows()]
            made.log({"findings_and_decisions": trackio.Markdown(_markdown(rows))}, step=len(run.steps))
        made.finish()
    except OSError as error:
        raise ConfigError(f"trackio cannot write its folder: {error}; name another one in TRACKIO_DIR") from error
    return f"trackio show --project {project}"


def _markdown(rows: list[dict[str, object]]) -> str:
    """A table; its library's own needs pandas."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    cells = ([str(row[name]).replace("|", "\\|").replace("\n", " ") for name in COLUMNS] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(line)} |" for line in cells)])
