"""The health tab's value: panels of what was stored, findings and decisions read back, success by horizon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ill_runs import BASELINE, FAULTS, HEALTHY, MONITORS, ONSET, RATE, STEPS, findings_of, ill_run, manifest, series
from synthetic_run import SyntheticRun

from burnish.control.spec import LadderSpec
from burnish.core.finding import Act
from burnish.reports.data import RunData
from burnish.reports.failures import Failures
from burnish.reports.findings import read_decisions, read_findings
from burnish.reports.health import KNOBS, health_view, horizons, symptoms_of, watched
from burnish.reports.panels import FLOOR_SHARE, PANELS, Panel
from burnish.reports.sample import choose_sample
from burnish.store.reader import RunReader
from burnish.store.rows import StoredEvent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = ill_run(tmp_path_factory.mktemp("runs") / "drift", FAULTS["drift"])
    yield run.folder
    run.writer.close()


@pytest.fixture(scope="module")
def view(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = RunData(folder).overview()["health"]
    return made


def event(kind: str, data: dict[str, Any], *, step: int = 7) -> StoredEvent:
    return StoredEvent(kind=kind, detail="told", data=data, phase="rl", step=step, attempt=0, at_s=1.0)


def test_every_panel_shows_signals_and_no_name_is_mistyped(view: dict[str, Any]) -> None:
    shown = {panel["id"] for panel in view["panels"]}
    assert shown == {panel.id for panel in PANELS}, "the synthetic run stores a signal for each"
    assert len({panel.id for panel in PANELS}) == len(PANELS)
    for panel in view["panels"]:
        assert all(name in HEALTHY for name, _ in panel["lines"])
        assert len({title for _, title in panel["lines"]}) == len(panel["lines"])


def test_a_panel_without_its_signals_is_left_out() -> None:
    scalars = {"health/gini_update": [(1, 0.4)], "health/moon_phase": [(1, 0.3)]}
    made = health_view(symptoms_of(scalars, (), (), {}), ())
    assert [panel["id"] for panel in made["panels"]] == ["concentration"]


def test_findings_mark_the_panels_of_their_own_signals(view: dict[str, Any]) -> None:
    marks = {panel["id"]: panel["marks"] for panel in view["panels"] if panel["marks"]}
    assert set(marks) == {"behaviour-p95", "ess-token", "tool-errors", "entropy"}
    assert marks["behaviour-p95"] == [{"from": ONSET + 1, "to": ONSET + 8, "severity": "alarm"}]


def test_what_was_watched_is_the_denominator(view: dict[str, Any]) -> None:
    assert view["watched"] == {"steps": STEPS - BASELINE, "monitors": MONITORS, "rate": RATE}
    assert view["is_stored"]
    unnamed = symptoms_of(series(FAULTS["drift"]), (), (), {}).watched
    assert (unnamed.steps, unnamed.monitors, unnamed.false_alarms_per_1000) == (STEPS, MONITORS, None)
    told = watched(series(None), findings_of(FAULTS["drift"]), {})
    assert told.false_alarms_per_1000 == pytest.approx(RATE), "a finding states the rate of its own monitor"
    nothing = watched({"loss": [(1, 0.5)]}, (), manifest())
    assert nothing.steps == 0


def test_findings_and_decisions_are_there_with_what_they_say(view: dict[str, Any]) -> None:
    first = view["findings"][0]
    assert first["monitor"] == "post_tool/log_ratio_behaviour_p95"
    assert first["trajectory_ids"] == ["rl/000068/0000/00", "rl/000068/0001/00"]
    assert [one["dry_run"] for one in view["decisions"]] == [True, True, True, False]
    assert view["decisions"][-1]["values"].endswith("and 2 more")
    assert view["damage"] == {"step": 100, "before": 0.58, "after": 0.2}
    assert view["causes"][0]["key"] == "tool_drift"


def test_every_act_has_a_name() -> None:
    assert set(KNOBS) == set(Act)


def test_success_by_horizon_is_averaged_in_windows(view: dict[str, Any]) -> None:
    table = view["horizons"]
    assert [row["title"] for row in table["rows"]] == ["1", "2–3", "4–7", "16+"]
    assert len(table["columns"]) == 6
    assert table["rows"][0]["cells"][0] == pytest.approx(0.8, abs=0.03)
    sparse = horizons({"health/horizon:1/success": [(1, 1.0)], "health/horizon:2-3/success_mean": [(9, 0.5)]})
    assert [row["cells"] for row in sparse["rows"]] == [[1.0, None], [None, 0.5]]
    assert horizons({"health/gini_update": [(1, 0.5)]}) == {"columns": [], "rows": []}


def test_a_broken_record_hides_no_other() -> None:
    good = {"monitor": "a", "step": 3, "severity": "warning", "false_alarms_per_1000": 0.5, "onset_step": 2}
    broken = {
        "monitor": "b",
        "step": "three",
        "severity": 7,
        "evidence": [1],
        "trajectory_ids": "abc",
        "false_alarms_per_1000": "NaN",
    }
    events = [event("finding", {"note": 1}), event("finding", broken), event("finding", good), event("other", good)]
    first, second = read_findings(events)
    assert (first.step, first.severity, first.trajectory_ids, first.false_alarms_per_1000) == (7, "alarm", (), None)
    assert (second.monitor, second.step, second.severity, second.onset_step) == ("a", 3, "warning", 2)


def test_an_act_of_another_version_is_left_out() -> None:
    events = [event("decision", {"act": "sing"}), event("decision", {"act": "stop", "step": 3})]
    [only] = read_decisions(events)
    assert (only.act, only.step, only.dry_run, only.reason) == (Act.STOP, 3, True, "told")


def test_the_page_carries_the_trajectories_that_findings_name(folder: Path) -> None:
    carried = {one["id"] for one in choose_sample(RunReader(folder), Failures(RunReader(folder)))}
    assert {f"rl/{step:06d}/{n:04d}/00" for step in (68, 70, 72, 74) for n in range(2)} <= carried


def test_values_that_json_lacks_reach_the_page_as_text(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    data = {
        "monitor": "non_finite/loss",
        "kind": "non_finite",
        "evidence": {"max": float("inf")},
        "false_alarms_per_1000": None,
    }
    made = health_view(symptoms_of({}, [event("finding", data)], (), {}), ())
    run.writer.close()
    assert json.loads(json.dumps(made, allow_nan=False))["findings"][0]["evidence"] == {"max": "inf"}
    assert made["causes"][0]["strength"] == "certain"


def test_a_run_without_health_has_an_empty_tab() -> None:
    made = health_view(symptoms_of({"loss": [(1, 0.5)]}, (), (), {}), ())
    assert (made["is_stored"], made["panels"], made["causes"]) == (False, [], [])
    assert made["silence"].startswith("Nothing is known")


def test_names_under_an_asterisk_each_get_a_line() -> None:
    panel = Panel(id="x", group="", title="", lines=(("health/tool:*/log_ratio_behaviour_p95", "*"),))
    assert [title for _, title in panel.known(series(None))] == ["get_order", "search"]


def test_the_floor_of_entropy_is_the_one_that_control_takes(view: dict[str, Any]) -> None:
    assert LadderSpec().entropy_floor_share == FLOOR_SHARE
    floors = {panel["id"]: panel["floor"] for panel in view["panels"] if panel["floor"] is not None}
    assert floors == {"entropy": pytest.approx(0.3, abs=0.02)}
