"""Exporters: with fakes everywhere, with the real libraries where they are installed; Prometheus by its own parser."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ill_runs import FAULTS, STEPS, ill_run

from burnish.core.errors import ConfigError, StoreError
from burnish.integrations import mlflow as mlflow_export
from burnish.integrations import trackio as trackio_export
from burnish.integrations import wandb as wandb_export
from burnish.integrations.prometheus import exposition
from burnish.integrations.trackers import TrackedRun, load_tracker, read_tracked, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = ill_run(tmp_path_factory.mktemp("runs") / "drift", FAULTS["drift"])
    yield run.folder
    run.writer.close()


@pytest.fixture(scope="module")
def tracked(folder: Path) -> TrackedRun:
    return read_tracked(folder)


def test_a_run_is_read_in_the_order_in_which_it_happened(tracked: TrackedRun) -> None:
    rl = [step for step in tracked.steps if step.phase == "rl"]
    assert [step.step for step in rl] == list(range(1, STEPS + 1))
    assert rl[0].values["rl/health/monitors"] == 24
    assert [one.at_s for one in tracked.steps] == sorted(one.at_s for one in tracked.steps)
    assert tracked.head.config["health.false_alarms_per_1000"] == 0.5
    assert {row[0] for row in rows_of(tracked.notes)} == {"finding", "decision"}
    first = rows_of(tracked.notes)[0]
    assert first[:5] == ["finding", 68, "post_tool/log_ratio_behaviour_p95", "alarm", 61]


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        read_tracked(tmp_path / "none")


@pytest.mark.parametrize("export", [wandb_export.export, trackio_export.export, mlflow_export.export])
def test_a_missing_library_is_said_with_what_to_install(
    export: Any, tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"burnish\[trackers\]"):
        export(tracked, "project")


class Recorder:
    """Stands for a run of wandb or trackio: notes what it was given."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.defined: list[tuple[str, dict[str, Any]]] = []
        self.is_finished = False
        self.offline, self.url, self.dir = False, "https://tracker/run", ""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert not self.is_finished
        self.logged.append((metrics, step))

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined.append((name, options))

    def finish(self) -> None:
        self.is_finished = True


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def test_wandb_gets_an_axis_for_each_phase_and_every_scalar(
    tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = Recorder(), {}
    table = lambda columns, data: SimpleNamespace(columns=columns, data=data)  # noqa: E731
    fake(monkeypatch, "wandb", init=lambda **kw: given.update(kw) or run, Table=table, Error=RuntimeError)
    assert wandb_export.export(tracked, "mine") == "https://tracker/run"
    assert (given["project"], given["name"]) == ("mine", "drift")
    assert ("rl/*", {"step_metric": "rl/step"}) in run.defined
    by_step = {metrics["rl/step"]: metrics for metrics, _ in run.logged if "rl/step" in metrics}
    assert by_step[7]["rl/health/gini_update"] == tracked.steps[6].values["rl/health/gini_update"]
    assert len(run.logged[-1][0]["findings_and_decisions"].data) == len(tracked.notes) == 8
    assert run.is_finished


def test_a_refusal_of_wandb_is_said(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("not logged in")

    fake(monkeypatch, "wandb", init=refuse, Error=RuntimeError)
    with pytest.raises(ConfigError, match="not logged in"):
        wandb_export.export(tracked, "mine")


def test_trackio_gets_rows_that_only_go_up(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorder()
    fake(monkeypatch, "trackio", init=lambda **_: run, Markdown=str)
    assert trackio_export.export(tracked, "mine") == "trackio show --project mine"
    steps = [step for _, step in run.logged]
    assert steps == list(range(len(tracked.steps) + 1))
    text = run.logged[-1][0]["findings_and_decisions"]
    assert "| finding | 68 | post_tool/log_ratio_behaviour_p95 | alarm | 61 |" in text


class FakeMlflow:
    """Stands for MlflowClient."""

    def __init__(self) -> None:
        self.metrics: list[Any] = []
        self.params: list[Any] = []
        self.files: dict[str, Any] = {}

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return "1"

    def create_run(self, experiment_id: str, start_time: int, tags: dict[str, str], run_name: str) -> Any:
        self.tags = tags
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.metrics += metrics
        self.params += params

    def log_dict(self, run_id: str, value: Any, name: str) -> None:
        self.files[name] = value

    def set_terminated(self, run_id: str, end_time: int) -> None:
        self.end_time = end_time


def test_mlflow_gets_names_that_it_takes_in_batches_that_it_takes(
    tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeMlflow()
    entities = SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    fake(
        monkeypatch,
        "mlflow",
        MlflowClient=lambda: client,
        entities=entities,
        exceptions=SimpleNamespace(MlflowException=RuntimeError),
        get_tracking_uri=lambda: "http://tracker",
    )
    assert mlflow_export.export(tracked, "mine") == "http://tracker experiment mine, run abc"
    assert len(client.metrics) == sum(len(step.values) for step in tracked.steps)
    names = {name for name, *_ in client.metrics}
    assert "rl/health/horizon_16_/success" in names, "the name was rl/health/horizon:16+/success"
    assert len(names) == len({name for step in tracked.steps for name in step.values}), "no two became one"
    assert len(client.files["findings_and_decisions.json"]["step"]) == 8
    assert dict(client.params)["rl.loss"] == "grpo"
    assert client.tags == {}, "an export is a new run each time"


def installed(name: str) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'burnish[trackers]'")


def test_the_real_wandb_takes_it_offline(tracked: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    place = Path(wandb_export.export(tracked, "burnish-test"))
    assert place.is_relative_to(tmp_path)
    [stored] = place.parent.glob("*.wandb")
    assert stored.stat().st_size > 50_000


def test_the_real_trackio_gives_the_values_back(
    tracked: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "trackio" in sys.modules:
        pytest.skip("trackio reads its folder when it is imported, and that has happened")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    installed("trackio")
    trackio_export.export(tracked, "burnish-test")
    storage = importlib.import_module("trackio.sqlite_storage").SQLiteStorage
    rows = storage.get_logs("burnish-test", "drift")
    stored = {row["rl/step"]: row["rl/health/gini_update"] for row in rows if "rl/step" in row}
    assert stored == {one.step: one.values["rl/health/gini_update"] for one in tracked.steps if one.phase == "rl"}
    assert "post_tool/log_ratio_behaviour_p95" in str(rows[-1])


def test_the_real_mlflow_gives_the_values_back(
    tracked: TrackedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow stores nothing on this machine without sqlalchemy")
    mlflow = load_tracker("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/tracked.db")
    place = mlflow_export.export(tracked, "burnish-test")
    client, run_id = mlflow.MlflowClient(), place.rpartition(" ")[2]
    history = client.get_metric_history(run_id, "rl/health/gini_update")
    assert [one.step for one in history] == list(range(1, STEPS + 1))
    assert history[4].value == tracked.steps[4].values["rl/health/gini_update"]
    assert client.get_run(run_id).data.params["rl.loss"] == "grpo"
    assert [one.path for one in client.list_artifacts(run_id)] == ["findings_and_decisions.json"]


def test_prometheus_reads_what_is_served(folder: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    body, kind = exposition(folder)
    assert kind.startswith("text/plain")
    families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    scalars = {sample.labels["name"]: sample for sample in families["burnish_scalar"].samples}
    assert scalars["health/tool:get_order/log_ratio_behaviour_p95"].labels["phase"] == "rl"
    assert {tuple(one.labels.values()): one.value for one in families["burnish_step"].samples}[("rl",)] == STEPS
    found = {tuple(one.labels.values()): one.value for one in families["burnish_findings"].samples}
    assert found == {("change", "alarm"): 3, ("change", "warning"): 1, ("", "alarm"): 0, ("", "warning"): 0}
    carried = {tuple(one.labels.values()): one.value for one in families["burnish_decisions"].samples}
    assert carried == {("learning_rate", "no"): 2, ("kl_weight", "no"): 1, ("rollback", "yes"): 1}
    state = {one.labels["state"]: one.value for one in families["burnish_run_state"].samples}
    assert state["running"] == 1
    assert sum(state.values()) == 1
