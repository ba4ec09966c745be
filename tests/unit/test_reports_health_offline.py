"""`burnish health FILE`: streams of any trainer in, slices and findings out; bad rows said by line."""

from __future__ import annotations

import io
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from burnish.cli import EXIT_USAGE, main
from burnish.core.errors import ConfigError
from burnish.core.finding import Finding
from burnish.core.streams import ActionSpan, TokenStream
from burnish.health.files import BadRow, StepStreams
from burnish.health.watch import Observation, WatchSpec
from burnish.reports import offline
from burnish.reports.offline import bad_texts, health_json, health_table, names_of, slice_figures, watch_streams


def stream(step: int, number: int, *, tool: str = "search", source: str = "shop") -> TokenStream:
    spans = (ActionSpan(start=0, end=2, turn=0), ActionSpan(start=2, end=4, turn=1, tool=tool, after_tool=True))
    logprobs = array("f", [-0.7] * 4)
    return TokenStream(
        id=f"{step}/{number}", group_id=f"{step}/0", step=step, behaviour=logprobs, learner=logprobs, spans=spans,
        source=source, turns=2,
    )  # fmt: skip


@dataclass
class FakeWatch:
    """Stands for the watch: scalars that grow, one finding at step 9."""

    spec: WatchSpec
    seen: list[WatchSpec]

    def step(self, step: int, sums: Any) -> Observation:
        tail = 0.1 if step < 8 else 0.9
        found = [
            Finding(
                monitor="post_tool/log_ratio_behaviour_p95", step=9, onset_step=8, summary="the tail grew",
                false_alarms_per_1000=self.spec.false_alarms_per_1000,
            )
        ]  # fmt: skip
        scalars = {
            "health/monitors": 24.0,
            "health/text/tokens": 20.0,
            "health/text/log_ratio_behaviour_p95": 0.1,
            "health/post_tool/tokens": 20.0,
            "health/post_tool/log_ratio_behaviour_p50": tail / 3,
            "health/post_tool/log_ratio_behaviour_p95": tail,
            "health/post_tool/log_ratio_behaviour_p99": 2 * tail,
            "health/post_tool/ess_token_raw": 0.5,
            "health/gini_update": 0.4,
        }
        return Observation(scalars=scalars, findings=tuple(found) if step == 9 else ())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[WatchSpec]:
    specs: list[WatchSpec] = []

    def read(path: Path) -> Iterator[StepStreams]:
        for step in range(1, 31):
            bad = (BadRow(path=path, line=7, why="no behaviour log-probabilities"),) if step == 2 else ()
            yield StepStreams(step=step, streams=tuple(stream(step, n) for n in range(3)), bad=bad)

    def make(spec: WatchSpec) -> FakeWatch:
        specs.append(spec)
        return FakeWatch(spec, specs)

    monkeypatch.setattr(offline, "read_streams", read)
    monkeypatch.setattr(offline, "Watch", make)
    return specs


def test_streams_are_watched_step_by_step(seen: list[WatchSpec], tmp_path: Path) -> None:
    found = watch_streams(tmp_path / "dump.jsonl", baseline_steps=10, false_alarms_per_1000=2.0)
    assert (found.steps, found.trajectories, len(found.bad)) == (30, 90, 1)
    assert [one.step for one in found.findings] == [9]
    [spec] = seen
    assert (spec.baseline_steps, spec.false_alarms_per_1000) == (10, 2.0)
    assert (spec.names.tools, spec.names.sources, spec.names.skills) == (("search",), ("shop",), ())
    assert found.diagnosis.watched.steps == 20
    assert found.diagnosis.hypotheses[0].cause.key == "tool_drift"
    assert found.slices["post_tool"]["log_ratio_behaviour_p95"] == 0.9
    assert found.early["post_tool"]["log_ratio_behaviour_p95"] == 0.1


def test_settings_that_are_not_given_are_those_of_the_watch(seen: list[WatchSpec], tmp_path: Path) -> None:
    watch_streams(tmp_path / "dump.jsonl")
    plain = WatchSpec()
    assert (seen[0].baseline_steps, seen[0].false_alarms_per_1000) == (
        plain.baseline_steps,
        plain.false_alarms_per_1000,
    )


def test_names_are_those_that_occur_and_other_is_no_name() -> None:
    steps = [
        StepStreams(
            step=1, streams=(stream(1, 0, tool="other", source=""), stream(1, 1, tool="b"), stream(1, 2, tool="a"))
        )
    ]
    names = names_of(steps)
    assert (names.tools, names.sources) == (("a", "b"), ("shop",))


def test_a_file_without_a_usable_row_says_which_rows_were_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bad = tuple(BadRow(path=tmp_path / "x.jsonl", line=n, why="not JSON") for n in range(1, 12))
    monkeypatch.setattr(offline, "read_streams", lambda path: iter([StepStreams(step=0, streams=(), bad=bad)]))
    monkeypatch.setattr(offline, "Watch", lambda spec: None)
    with pytest.raises(ConfigError, match=r"x\.jsonl:1: not JSON.*and 3 more"):
        watch_streams(tmp_path / "x.jsonl")
    assert len(bad_texts(bad)) == 9


def test_the_terminal_shows_slices_findings_and_bad_rows(seen: list[WatchSpec], tmp_path: Path) -> None:
    found = watch_streams(tmp_path / "dump.jsonl", baseline_steps=10)
    console = Console(file=io.StringIO(), width=80)
    console.print(health_table("dump.jsonl", found))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in (
        "90 trajectories in 30 steps",
        "post_tool 20 0.3 0.9 1.8 0.1 50%",
        "dump.jsonl:7: no behaviour log-probabilities",
        "the tail grew",
        "1. tool results drifted",
    ):
        assert part in text


def test_json_holds_the_same(seen: list[WatchSpec], tmp_path: Path) -> None:
    told = json.loads(json.dumps(health_json("dump", watch_streams(tmp_path / "dump.jsonl")), allow_nan=False))
    assert told["bad_rows"] == [
        {"file": str(tmp_path / "dump.jsonl"), "line": 7, "why": "no behaviour log-probabilities"}
    ]
    assert told["slices"]["post_tool"]["ess_token_raw"] == 0.5
    assert told["findings"][0]["monitor"] == "post_tool/log_ratio_behaviour_p95"
    assert told["diagnosis"]["hypotheses"][0]["key"] == "tool_drift"


def test_figures_of_no_slice_are_left_out() -> None:
    assert slice_figures({"health/gini_update": [(1, 0.4)], "loss": [(1, 0.1)]}, newest=True) == {}


def test_a_run_that_kept_no_streams_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ill_runs import FAULTS, ill_run

    run = ill_run(tmp_path / "drift", FAULTS["drift"])
    run.writer.close()
    assert main(["health", "drift", "--root", str(tmp_path)]) == EXIT_USAGE
    assert "health.keep_streams" in capsys.readouterr().err
    assert main(["health", "nowhere", "--root", str(tmp_path)]) == EXIT_USAGE
    assert "neither a file of token streams nor a run" in capsys.readouterr().err


def test_the_command_watches_a_file_and_a_run(
    seen: list[WatchSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.jsonl"
    path.write_text("{}\n")
    assert main(["health", str(path), "--json", "--baseline-steps", "12"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 30
    assert seen[-1].baseline_steps == 12
    assert main(["health", str(path), "--baseline-steps", "1"]) == EXIT_USAGE
    assert "baseline_steps is at least 10" in capsys.readouterr().err


def write_rows(path: Path, *, drift_from: int, steps: int = 60) -> None:
    """Rows in Burnish's own columns: a text turn and one after a tool, whose ratios spread from a step on."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for step in range(1, steps + 1):
            for number in range(16):
                learner = -rng.exponential(1.0, 40)
                spread = np.where(np.arange(40) < 20, 0.05, 0.05 if step < drift_from else 0.4)
                reward = float(rng.random() < 0.5)
                row = {
                    "id": f"{step}/{number}", "group_id": f"{step}/{number // 4}", "step": step,
                    "learner": learner.tolist(), "behaviour": (learner - spread * rng.normal(size=40)).tolist(),
                    "spans": [
                        {"start": 0, "end": 20, "turn": 0},
                        {"start": 20, "end": 40, "turn": 1, "tool": "search", "after_tool": True},
                    ],
                    "reward": reward, "advantage": reward - 0.5, "success": reward, "turns": 2, "tool_calls": 1,
                    "source": "shop",
                }  # fmt: skip
                file.write(json.dumps(row) + "\n")
            if step == 2:
                file.write("{broken\n")


@pytest.mark.parametrize("drift_from", [40, 1000])
def test_a_real_file_from_end_to_end(drift_from: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump.jsonl"
    write_rows(path, drift_from=drift_from)
    assert main(["health", str(path), "--json", "--baseline-steps", "20"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["trajectories"]) == (60, 960)
    assert [row["line"] for row in told["bad_rows"]] == [33]
    assert {"text", "post_tool", "tool:search", "source:shop"} <= set(told["slices"])
    if drift_from > 60:
        assert told["findings"] == []
        assert told["diagnosis"]["silence"].startswith("No finding; 40 steps watched by ")
        return
    first = told["findings"][0]
    assert first["monitor"].startswith("post_tool/")
    assert abs(first["onset_step"] - 40) <= 2
    assert told["diagnosis"]["hypotheses"][0]["key"] == "tool_drift"
    assert (
        told["slices"]["post_tool"]["log_ratio_behaviour_p95"] > 4 * told["slices"]["text"]["log_ratio_behaviour_p95"]
    )
