"""What the first tab and the curves say is what the store holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import GROUPS, SyntheticRun, example_manifest, finished_run, rl_rows

from burnish.reports.cost import CostReadings
from burnish.reports.headline import headline
from burnish.reports.overview import duration_text, overview
from burnish.reports.series import MAX_POINTS, Readings, columns, phase_rates, phase_seconds
from burnish.stats.intervals import mean_interval
from burnish.store.reader import RunReader
from burnish.store.rows import EvaluationRow, RunState, StepRecord
from burnish.store.writer import RunWriter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRun:
    made = finished_run(tmp_path_factory.mktemp("runs") / "first", rl_steps=6)
    made.writer.set_status(RunState.FINISHED)
    made.writer.close()
    return made


def viewed(reader: RunReader) -> dict[str, Any]:
    return overview(reader, Readings(reader), CostReadings(reader))


@pytest.fixture(scope="module")
def view(run: SyntheticRun) -> dict[str, Any]:
    reader = RunReader(run.folder)
    return viewed(reader)


def evaluation(
    label: str, phase: str = "rl", step: int = 5, split: str = "heldout", mode: str = "greedy"
) -> EvaluationRow:
    return EvaluationRow(
        label=label, split=split, mode=mode, phase=phase, step=step, n=10, successes=5.0, mean=0.5, low=0.2, high=0.8
    )


def test_it_is_json(view: dict[str, Any]) -> None:
    assert json.loads(json.dumps(view, allow_nan=False))["name"] == "first"
    assert view["problems"] == []


def test_headline_has_a_row_for_each_stage_and_unseen_apart(view: dict[str, Any]) -> None:
    table = view["headline"]
    assert [row["title"] for row in table["rows"]] == ["before SFT", "after SFT", "after RL"]
    assert [column["title"] for column in table["columns"]] == ["greedy", "sampled", "unseen templates, greedy"]
    assert table["rows"][0]["cells"][2] is None
    assert table["rows"][2]["cells"][0]["mean"] == pytest.approx(11 / 12, abs=1e-5)
    assert "tasks" not in json.dumps(table["rows"][2])


def test_a_run_on_its_way_shows_its_newest_evaluation() -> None:
    rows = [evaluation("before", "sft", 0), evaluation("rl-000010", step=10), evaluation("rl-000020", step=20)]
    assert [stage.title for stage in headline(rows).stages] == ["before RL", "RL step 20"]
    assert [stage.title for stage in headline([*rows, evaluation("after_rl")]).stages] == ["before RL", "after RL"]
    assert headline([]).stages == ()


def test_the_newest_evaluation_of_a_label_counts() -> None:
    stages = headline([evaluation("after_rl", step=3), evaluation("after_rl", step=9)]).stages
    assert stages[0].evaluations["heldout", "greedy"].step == 9


def test_the_band_is_the_interval_over_groups_without_failed_members(run: SyntheticRun, view: dict[str, Any]) -> None:
    by_group: dict[str, list[float]] = {}
    for row in RunReader(run.folder).trajectories("rl", 3):
        if row.reward is not None:
            by_group.setdefault(row.trajectory.group_id, []).append(row.reward)
    assert len(by_group) == GROUPS
    expected = mean_interval([sum(rewards) / len(rewards) for rewards in by_group.values()])
    low, high = view["reward_band"][view["scalars"]["rl"]["steps"].index(3)]
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-5)


def test_the_band_follows_new_steps_and_a_resume_replaces_them(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    for _ in range(3):
        run.commit_rl_step(0.5)
    reader = RunReader(run.folder)
    readings = Readings(reader)
    readings.update(0)
    before = dict(readings.intervals)
    assert sorted(before) == [1, 2, 3]
    run.writer.supersede_after({"rl": 2})
    run.rl_step = 2
    run.commit_rl_step(1.0)
    readings.update(0)
    assert readings.intervals[3] == before[3], "the negative control: without a new attempt steps are kept"
    readings.update(1)
    assert readings.intervals[3] == (1.0, 1.0) != before[3]
    assert readings.intervals[2] == before[2]
    run.writer.close()


def test_one_group_has_no_band(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    rows = [row for row in rl_rows(1, 0.5) if row.trajectory.group_id.endswith("0001")]
    run.writer.commit_step(StepRecord(phase="rl", step=1, rows=rows, scalars={"reward/mean": 0.5}))
    reader = RunReader(run.folder)
    assert viewed(reader)["reward_band"] == [(None, None)]
    run.writer.close()


def test_scalars_stand_over_one_axis_and_missing_or_broken_values_are_gaps() -> None:
    made = columns({"a": [(1, 0.5), (3, math.nan)], "b": [(2, math.inf), (3, 0.123456789)]})
    assert made == {"steps": [1, 2, 3], "stride": 1, "values": {"a": [0.5, None, None], "b": [None, None, 0.123457]}}
    assert columns({}) == {"steps": [], "stride": 1, "values": {}}


def test_long_runs_are_thinned_and_keep_the_newest_step() -> None:
    made = columns({"a": [(step, float(step)) for step in range(1, 3 * MAX_POINTS)]})
    assert made["stride"] == 3
    assert len(made["steps"]) <= MAX_POINTS
    assert made["steps"][-1] == 3 * MAX_POINTS - 1
    assert made["values"]["a"] == [float(f"{step:.6g}") for step in made["steps"]]


def test_time_and_rates_of_phases() -> None:
    sft = {"time/step_s": [(10, 0.1), (15, 0.2)], "tokens": [(10, 100.0), (15, 200.0)]}
    rl = {
        "time/step_s": [(1, 2.0), (2, 3.0)],
        "time/rollout_s": [(1, 1.0), (2, 1.0)],
        "tokens/sampled": [(1, 50.0), (2, 70.0)],
    }
    scalars = {"sft": sft, "rl": rl, "eval": {"time/rollout_s": [(1, 0.5)]}}
    assert phase_seconds(scalars) == pytest.approx({"sft": 2.0, "rl": 5.0, "eval": 0.5})
    assert phase_rates(scalars) == pytest.approx({"sft": 1000.0, "rl": 60.0})
    assert phase_seconds({"sft": sft | {"time/phase_s": [(0, 1.5), (10, 2.5)]}})["sft"] == 4.0
    assert phase_rates({}) == {}


def test_checks_stand_beside_their_tolerance(view: dict[str, Any]) -> None:
    checks = {check["name"]: check for check in view["checks"]}
    assert set(checks) == {"check/canary_nats", "check/ratio_nats", "check/micro_batch"}
    assert all(0 < check["largest"] <= check["tolerance"] == 1e-4 for check in checks.values())


@pytest.mark.parametrize(
    ("model", "checks", "stored", "expected"),
    [
        ({"path": "", "dtype": "auto"}, {}, {}, 1e-4),
        ({"path": "m", "dtype": "float32"}, {}, {}, 1e-4),
        ({"path": "m", "dtype": "bfloat16"}, {}, {}, None),
        ({"path": "m", "dtype": "auto"}, {}, {}, None),
        ({"path": "m", "dtype": "bfloat16"}, {"logprob_tolerance": 0.3}, {}, 0.3),
        ({"path": "m", "dtype": "bfloat16"}, {"logprob_tolerance": 0.3}, {"check/logprob_tolerance": 0.2}, 0.2),
    ],
)
def test_tolerance_is_never_guessed(
    tmp_path: Path, model: dict[str, str], checks: dict[str, float], stored: dict[str, float], expected: float | None
) -> None:
    with RunWriter.create(tmp_path / "run", {"recipe": {"model": model, "checks": checks}}) as writer:
        writer.commit_step(StepRecord(phase="rl", step=1, scalars={"check/canary_nats": 0.01, **stored}))
        reader = RunReader(tmp_path / "run")
        assert viewed(reader)["checks"][0]["tolerance"] == expected


def test_events_and_ledger_and_what_can_be_browsed(run: SyntheticRun, view: dict[str, Any]) -> None:
    assert [event["kind"] for event in view["events"]] == ["finding", "resumed"]
    ledger = view["ledger"]
    assert (
        ledger["dispatched"] == ledger["trained"] + ledger["filtered"] + ledger["dropped"] + ledger["failed"] == 6 * 24
    )
    steps = view["browse"]["steps"]
    assert [info["step"] for info in steps["rl"]] == [1, 2, 3, 4, 5, 6]
    assert [info["title"] for info in steps["eval"]][:2] == ["before heldout greedy", "before heldout sampled"]
    assert view["browse"]["total"] == sum(info["n"] for known in steps.values() for info in known)


def test_facts_name_recipe_environment_model_and_machine(view: dict[str, Any]) -> None:
    facts = dict(view["facts"])
    assert facts["environment"] == "shop (level=1)"
    assert facts["model"] == "tiny qwen3, 3 layers of 128"
    assert facts["recipe"] == "SFT 100 steps, grpo 30 steps of 6 x 4"
    assert facts["machine"] == "4 cores, 16 GB, Linux x86_64"
    assert "resumed" not in facts


def test_a_manifest_of_another_shape_costs_facts_and_nothing_else(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {"recipe": ["x"], "hardware": {"workers": 1}, "versions": None}) as writer:
        reader = RunReader(tmp_path / "run")
        view = viewed(reader)
        assert view["problems"] == []
        assert view["headline"] == {"columns": [], "rows": []}
        writer.layout.manifest.write_text("{")
        assert "manifest" in viewed(reader)["problems"][0]


def test_a_missing_segment_costs_the_band_and_is_named(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run", manifest=example_manifest())
    run.commit_rl_step()
    run.writer.close()
    next(iter(run.writer.layout.segments.glob("rl-*"))).unlink()
    reader = RunReader(run.folder)
    view = viewed(reader)
    assert view["reward_band"] == [(None, None)]
    assert "missing" in view["problems"][0]
    assert view["scalars"]["rl"]["values"]["reward/mean"]


def test_durations() -> None:
    assert [duration_text(s) for s in (-1, 59.4, 60, 3599, 3600)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
    ]
