"""Runs in MLflow, stored and in progress.

https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from burnish.core.errors import ConfigError
from burnish.core.tracked import TrackedNote, TrackedStep
from burnish.integrations.trackers import COLUMNS, RunHead, TrackedRun, UniqueNames, load_tracker, rows_of, send

METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_CHARS = 1000, 100, 500
"""Limits of MLflow's `log_batch`; servers before 2.8 took 500 characters of a parameter."""
ID_TAG = "burnish.id"
_REFUSED = re.compile(r"[^\w\-./ ]")


def export(run: TrackedRun, project: str) -> str:
    """Write a run to an experiment as a new run; returns where it is.

    MLFLOW_TRACKING_URI names the server.  Raises ConfigError where mlflow is missing or refuses.
    """
    mlflow = load_tracker("mlflow")
    with _refusals(mlflow):
        started_s = run.steps[0].at_s if run.steps else None
        return send(run, MlflowRun(mlflow, run.head, project, started_s=started_s))


class MlflowRun:
    """A run in an experiment.  Steps of a phase keep their numbers and times; characters of a name that MLflow refuses
    (":" of a slice, "+") become "_"."""

    def __init__(self, mlflow: Any, head: RunHead, project: str, *, started_s: float | None = None) -> None:
        self._mlflow, self._project, self._is_live = mlflow, project, bool(head.id)
        self._client, self._names = mlflow.MlflowClient(), UniqueNames(_clean)
        self._waiting: list[Any] = []
        self._ended_s: float | None = None
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        known = self._known(experiment_id, head.id) if head.id else None
        self._id = known or self._create(experiment_id, head, started_s)

    def _known(self, experiment_id: str, key: str) -> str | None:
        """The run that was opened for an earlier part of this one."""
        found = self._client.search_runs([experiment_id], filter_string=f"tags.`{ID_TAG}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self, experiment_id: str, head: RunHead, started_s: float | None) -> str:
        started_ms = None if started_s is None else round(1000 * started_s)
        tags = {ID_TAG: head.id} if head.id else {}
        made = self._client.create_run(experiment_id, start_time=started_ms, tags=tags, run_name=head.name)
        entities, run_id = self._mlflow.entities, str(made.info.run_id)
        params = [entities.Param(_clean(key), str(value)[:PARAM_CHARS]) for key, value in head.config.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        return run_id

    def log(self, step: TrackedStep) -> None:
        metric, at_ms = self._mlflow.entities.Metric, round(1000 * step.at_s)
        self._waiting += [metric(self._names[name], value, at_ms, step.step) for name, value in step.values.items()]
        self._ended_s = step.at_s
        self._send(least=1 if self._is_live else METRICS_PER_CALL)

    def note(self, notes: Sequence[TrackedNote]) -> None:
        columns = zip(COLUMNS, zip(*rows_of(notes), strict=True), strict=True)
        table = {name: list(column) for name, column in columns}
        self._client.log_dict(self._id, table, "findings_and_decisions.json")

    def close(self) -> str:
        self._send(least=1)
        ended_ms = None if self._ended_s is None else round(1000 * self._ended_s)
        self._client.set_terminated(self._id, end_time=ended_ms)
        return f"{self._mlflow.get_tracking_uri()} experiment {self._project}, run {self._id}"

    def _send(self, *, least: int) -> None:
        """What waits, in batches of at least `least`."""
        while len(self._waiting) >= least:
            self._client.log_batch(self._id, metrics=self._waiting[:METRICS_PER_CALL])
            del self._waiting[:METRICS_PER_CALL]


def open_run(head: RunHead, project: str) -> MlflowRun:
    """A run that steps are added to while they happen.  Raises ConfigError where mlflow is missing or refuses."""
    mlflow = load_tracker("mlflow")
    with _refusals(mlflow):
        return MlflowRun(mlflow, head, project)


@contextmanager
def _refusals(mlflow: Any) -> Iterator[None]:
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        raise ConfigError(f"mlflow did not take the run: {error}; check MLFLOW_TRACKING_URI") from error


def _clean(name: str) -> str:
    return _REFUSED.sub("_", name)
