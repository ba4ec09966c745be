"""Export of a stored run to MLflow (https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html)."""

from __future__ import annotations

import re
from typing import Any

from burnish.core.errors import ConfigError
from burnish.integrations.trackers import COLUMNS, TrackedRun, load_tracker, unique_names

METRICS_PER_CALL, PARAMS_PER_CALL, PARAM_CHARS = 1000, 100, 500
"""Limits of MLflow's `log_batch`; servers before 2.8 took 500 characters of a parameter."""
_REFUSED = re.compile(r"[^\w\-./ ]")


def export(run: TrackedRun, project: str) -> str:
    """Write a run to an experiment as a new run; returns where it is.

    MLFLOW_TRACKING_URI names the server.  Steps of a phase keep their numbers and times; characters of a name that
    MLflow refuses (":" of a slice, "+") become "_".  Raises ConfigError where mlflow is missing or refuses.
    """
    mlflow = load_tracker("mlflow")
    try:
        client, entities = mlflow.MlflowClient(), mlflow.entities
        experiment = client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
        first_ms = round(1000 * run.steps[0].at_s) if run.steps else None
        run_id = client.create_run(experiment_id, start_time=first_ms, run_name=run.name).info.run_id
        params = [entities.Param(_clean(key), str(value)[:PARAM_CHARS]) for key, value in run.config.items()]
        for start in range(0, len(params), PARAMS_PER_CALL):
            client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
        metrics = _metrics(run, entities)
        for start in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
        if run.events:
            columns = zip(COLUMNS, zip(*run.event_rows(), strict=True), strict=True)
            table = {name: list(column) for name, column in columns}
            client.log_dict(run_id, table, "findings_and_decisions.json")
        client.set_terminated(run_id, end_time=round(1000 * run.steps[-1].at_s) if run.steps else None)
    except mlflow.exceptions.MlflowException as error:
        raise ConfigError(f"mlflow did not take the run: {error}; check MLFLOW_TRACKING_URI") from error
    return f"{mlflow.get_tracking_uri()} experiment {project}, run {run_id}"


def _metrics(run: TrackedRun, entities: Any) -> list[Any]:
    names = sorted({name for step in run.steps for name in step.values})
    clean = unique_names(names, {name: _clean(name) for name in names})
    return [
        entities.Metric(clean[name], value, round(1000 * step.at_s), step.step)
        for step in run.steps
        for name, value in step.values.items()
    ]


def _clean(name: str) -> str:
    return _REFUSED.sub("_", name)
