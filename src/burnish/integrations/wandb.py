"""Runs in Weights & Biases (https://docs.wandb.ai/ref/python): stored ones, and those in progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations.trackers import COLUMNS, RunHead, TrackedRun, load_tracker, rows_of, send

AXES = ("sft", "rl", "eval")


def export(run: TrackedRun, project: str) -> str:
    """Write a run to a project as a new run; returns where it is.

    Where and whether it is sent is wandb's own business (WANDB_MODE=offline keeps it in a local folder).  Raises
    ConfigError where wandb is missing or refuses.
    """
    wandb = load_tracker("wandb")
    with _refusals(wandb):
        return send(run, WandbRun(wandb, run.head, project))


class WandbRun:
    """A run in a project; each phase has its own axis, PHASE/step."""

    def __init__(self, wandb: Any, head: RunHead, project: str) -> None:
        self._wandb = wandb
        again = {"id": head.id, "resume": "allow"} if head.id else {}
        self._run = wandb.init(
            project=project,
            name=head.name,
            config=dict(head.config),
            reinit="create_new",
            settings={"silent": True},
            **again,
        )
        for phase in AXES:
            self._run.define_metric(f"{phase}/step", hidden=True)
            self._run.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def log(self, step: TrackedStep) -> None:
        self._run.log({**step.values, f"{step.phase}/step": step.step})

    def note(self, notes: Sequence[TrackedNote]) -> None:
        self._run.log({"findings_and_decisions": self._wandb.Table(columns=list(COLUMNS), data=rows_of(notes))})

    def close(self) -> str:
        self._run.finish()
        return str(self._run.dir if self._run.offline else self._run.url)


def open_run(head: RunHead, project: str) -> WandbRun:
    """A run that steps are added to while they happen.  Raises ConfigError where wandb is missing or refuses."""
    wandb = load_tracker("wandb")
    with _refusals(wandb):
        return WandbRun(wandb, head, project)


@contextmanager
def _refusals(wandb: Any) -> Iterator[None]:
    try:
        yield
    except wandb.Error as error:
        raise ConfigError(f"wandb did not take the run: {error}; `wandb login`, or set WANDB_MODE=offline") from error
