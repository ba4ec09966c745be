"""Terminal tables: 80 columns, the figures of the store, and text that stays text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from synthetic_run import HOSTILE, SyntheticRun, finished_run

from burnish.evaluation.compare import Comparison
from burnish.evaluation.doctor import Check, DoctorReport
from burnish.evaluation.heldout import Mode
from burnish.reports.tables import comparison_table, doctor_table, outcome_table, runs_table
from burnish.store.rows import EvaluationRow, RunState, StepRecord
from burnish.store.runs import list_runs

COMPARISON = {
    "split": "heldout",
    "mode": Mode.GREEDY,
    "a_rate": 0.4,
    "b_rate": 0.9,
    "difference": 0.5,
    "low": 0.38,
    "high": 0.62,
    "p_value": 0.0001,
    "n_tasks": 96,
    "n_pairs": 96,
    "wins": 50,
    "losses": 2,
    "ties": 44,
    "dropped": 3,
    "same_seeds": True,
}


def shown(table: RenderableType, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert max(map(len, text.splitlines()), default=0) <= width
    return text


def check_harmless(text: str) -> None:
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]" in text.replace("\n", "")


def test_outcome_has_every_stage_with_intervals_rates_and_wall_time(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", rl_steps=3)
    run.writer.set_status(RunState.FINISHED)
    run.writer.close()
    text = shown(outcome_table(run.folder))
    assert "before SFT 0.0% [0.0, 12.0]" in " ".join(text.split())
    assert "91.7% [83.0, 100.0]" in text
    assert "unseen templates" in text
    assert "SFT 5 s (16,000 trained tokens/s)" in text
    assert "sampled tokens/s" in text
    assert re.search(r"RL start -> end: [\d.]+ -> [\d.]+ tokens/episode, [\d.]+ -> [\d.]+ successes/1k tokens\n", text)
    assert "Wall time" in text


def test_a_run_without_two_rl_steps_or_without_its_segments_has_no_line_of_cost(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.commit_rl_step()
    assert "start -> end" not in shown(outcome_table(run.folder))
    run.commit_rl_step()
    assert "start -> end" in shown(outcome_table(run.folder)), "the negative control"
    next(iter(run.writer.layout.segments.glob("rl-*"))).unlink()
    assert "start -> end" not in shown(outcome_table(run.folder))
    run.writer.close()


def test_the_widest_figures_fit(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    rows = [
        EvaluationRow(
            label=label, split=split, mode=mode, phase="rl", step=1, n=9, successes=9, mean=1.0, low=0.963, high=1.0
        )
        for label in ("before", "after_sft", "after_rl")
        for split, mode in (("heldout", "greedy"), ("heldout", "sampled"), ("unseen", "greedy"))
    ]
    run.writer.commit_step(StepRecord(phase="eval", step=1, evaluations=rows))
    run.writer.close()
    text = shown(outcome_table(run.folder))
    assert text.count("100.0% [96.3, 100.0]") == 9


def test_an_early_end_says_why(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    run.writer.set_status(RunState.STOPPED, f"no_signal: nothing to learn {HOSTILE}")
    run.writer.close()
    text = shown(outcome_table(run.folder))
    assert "No held-out evaluation" in text
    assert "The run is stopped. no_signal" in text
    check_harmless(text)


def test_comparison_says_what_it_shows() -> None:
    text = shown(comparison_table(Comparison(a="sft", b="rl", **COMPARISON)))  # type: ignore[arg-type]
    assert "+50.0 [+38.0 to +62.0]" in text
    assert "50 / 2 / 44" in text
    assert "leaves out zero" in text
    assert "3 tasks had no scored pair" in text
    even = Comparison(a="sft", b="rl", **COMPARISON | {"low": -0.1})  # type: ignore[arg-type]
    assert "no difference shown" in shown(comparison_table(even))
    check_harmless(shown(comparison_table(Comparison(a=HOSTILE, b="b", **COMPARISON))))  # type: ignore[arg-type]


def test_runs_are_listed_with_state_and_reason(tmp_path: Path) -> None:
    for name, state, detail in (("a", RunState.FINISHED, ""), ("b", RunState.FAILED, f"OSError: {HOSTILE}{'x' * 500}")):
        run = SyntheticRun(tmp_path / name)
        run.commit_rl_step()
        run.writer.set_status(state, detail)
        run.writer.close()
    text = shown(runs_table(list_runs(tmp_path)))
    assert "finished" in text
    assert "rl/1" in text
    assert "b: OSError" in text
    assert "x" * 500 not in text.replace("\n", "")
    check_harmless(text)
    assert "no runs" in shown(runs_table([]))


@pytest.mark.parametrize("ok", [True, False, None])
def test_doctor_gives_a_verdict(ok: bool | None) -> None:
    checks = (Check(name="no_op", ok=True, detail="mean 0.000"), Check(name="tool_latency", ok=ok, detail=HOSTILE))
    text = shown(doctor_table(DoctorReport(environment="shop", chance=0.25, n_tasks=300, checks=checks)))
    check_harmless(text)
    assert "declared chance 0.25" in text
    assert ("1 of 2 checks failed" in text) == (ok is False)
    assert ("could not be made" in text) == (ok is None)
    assert ("Fit to train on" in text) == (ok is not False)
