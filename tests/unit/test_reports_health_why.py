"""`burnish why`: each kind of fault ranks its own cause first, and where nothing was found nothing is claimed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from ill_runs import DELAY, FAULTS, MONITORS, ONSET, RATE, evaluations, findings_of, ill_run, series
from rich.console import Console

from burnish.cli import main
from burnish.core.finding import Finding
from burnish.health.monitors import default_monitors
from burnish.health.slices import SliceNames
from burnish.loop.recipes import all_keys
from burnish.reports.causes import CAUSES, DAMAGE, Cause, Sign
from burnish.reports.diagnosis import diagnose_run, why_json, why_table
from burnish.reports.why import Diagnosis, Symptoms, Watched, damage, diagnose, moved
from burnish.store.rows import RunState

WATCHED = Watched(steps=100, monitors=MONITORS, false_alarms_per_1000=RATE)


def diagnosed(name: str, *, seed: int = 0, order: int = 1) -> Diagnosis:
    fault = FAULTS[name]
    return diagnose(
        Symptoms(
            findings=findings_of(fault)[::order],
            scalars=series(fault, seed=seed),
            evaluations=evaluations(fault),
            watched=WATCHED,
        )
    )


def test_the_synthetic_runs_fire_monitors_that_there_are() -> None:
    names = SliceNames(tools=("search",), sources=("shop", "forum"))
    watched = {(one.name, one.rising) for one in default_monitors(names)}
    for fault in FAULTS.values():
        assert {(name, fault.moves[name] > 1) for name in fault.monitors} <= watched


def test_every_monitor_speaks_for_some_cause() -> None:
    names = SliceNames(tools=("search",), sources=("shop",))
    for one in default_monitors(names):
        finding = Finding(monitor=one.name, step=60, summary="", kind=one.kind, evidence={"rising": one.rising})
        assert diagnose(Symptoms(findings=[finding])).hypotheses, one.name


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_ranks_its_own_cause_first(name: str, seed: int) -> None:
    found = diagnosed(name, seed=seed)
    first, *rest = found.hypotheses
    assert first.cause.key == FAULTS[name].cause
    assert all(one.score <= first.score for one in rest)
    assert first.onset_step == ONSET + 1
    assert first.alarm_step == ONSET + DELAY
    assert first.strength in ("strong", "likely")


@pytest.mark.parametrize("name", FAULTS)
def test_the_order_of_findings_changes_nothing(name: str) -> None:
    keys = [[(one.cause.key, one.score) for one in diagnosed(name, order=order).hypotheses] for order in (1, -1)]
    assert keys[0] == keys[1]


def test_what_was_lost_is_no_cause_where_credit_went_wrong() -> None:
    """Learning from turned advantages loses what was learnt, too; the cause is what stands before it."""
    worn = FAULTS["wear"]
    known = {"step": 64, "onset_step": 61, "false_alarms_per_1000": RATE}
    credit = Finding(monitor="advantage_agreement", summary="", kind="credit", evidence={"rising": False}, **known)
    scalars = dict(series(worn))
    steps = [step for step, _ in scalars["health/setback"]]
    rng = Random(0)
    scalars["health/advantage_agreement"] = [
        (step, (1.0 if step <= ONSET else -1.0) + rng.gauss(0, 0.01)) for step in steps
    ]
    found = diagnose(Symptoms(findings=[credit, *findings_of(worn)], scalars=scalars, watched=WATCHED))
    assert found.hypotheses[0].cause.key == "wrong_credit"


def test_the_test_of_the_ranking_would_see_a_wrong_table() -> None:
    fault = FAULTS["drift"]
    swapped = [replace(cause, signs=CAUSES[index - 1].signs) for index, cause in enumerate(CAUSES)]
    found = diagnose(Symptoms(findings=findings_of(fault), scalars=series(fault), watched=WATCHED), swapped)
    assert found.hypotheses[0].cause.key != fault.cause


def test_without_findings_nothing_is_claimed_however_signals_moved() -> None:
    quiet = Symptoms(findings=(), scalars=series(FAULTS["drift"]), watched=WATCHED)
    found = diagnose(quiet)
    assert (found.hypotheses, found.unexplained, found.by_chance) == ((), (), None)
    assert found.silence == "No finding; 100 steps watched by 24 monitors at 0.5 false alarms per 1,000 steps."


def test_silence_is_no_health_where_held_out_success_fell() -> None:
    found = diagnose(Symptoms(findings=(), evaluations=evaluations(FAULTS["drift"]), watched=WATCHED))
    assert found.damage is not None
    assert found.damage.step == 100
    assert "Yet held-out success fell from 58% to 20%" in found.silence
    assert diagnose(Symptoms(findings=(), evaluations=evaluations(None), watched=WATCHED)).damage is None


def test_a_run_that_was_not_watched_says_so() -> None:
    assert diagnose(Symptoms(findings=())).silence.startswith("Nothing is known")


def test_the_lead_is_counted_from_the_first_alarm_to_the_damage() -> None:
    assert diagnosed("drift").hypotheses[0].lead_steps == 100 - (ONSET + DELAY)
    assert diagnosed("noise").hypotheses[0].lead_steps is None
    late = [replace(one, step=110) for one in findings_of(FAULTS["drift"])]
    found = diagnose(Symptoms(findings=late, scalars=series(FAULTS["drift"]), evaluations=evaluations(FAULTS["drift"])))
    assert found.hypotheses[0].lead_steps == -10


def test_damage_needs_intervals_that_do_not_overlap() -> None:
    rows = evaluations(None)
    dip = replace(rows[4], mean=rows[3].mean - 0.09, low=rows[3].mean - 0.14, high=rows[3].mean - 0.04)
    assert damage([*rows[:4], dip]) is None
    fall = replace(dip, high=rows[3].low - 1e-9)
    assert damage([*rows[:4], fall]) is not None
    assert damage([*rows[:4], replace(fall, split="unseen")]) is None, "another split is no comparison"


def test_a_finding_that_no_cause_knows_is_listed_by_itself() -> None:
    odd = Finding(monitor="moon_phase", step=70, summary="full", kind="lunar", false_alarms_per_1000=RATE)
    found = diagnose(Symptoms(findings=[odd, *findings_of(FAULTS["surge"])], scalars=series(FAULTS["surge"])))
    assert found.unexplained == (odd,)
    assert [one.cause.key for one in found.hypotheses] == ["post_tool_surge"]


def test_a_hard_rule_comes_first_whatever_the_scores() -> None:
    rule = Finding(monitor="non_finite/grad_norm", step=90, summary="it is NaN", kind="non_finite")
    found = diagnose(
        Symptoms(findings=[*findings_of(FAULTS["hack"]), rule], scalars=series(FAULTS["hack"]), watched=WATCHED)
    )
    assert (found.hypotheses[0].cause.key, found.hypotheses[0].strength) == ("non_finite", "certain")
    assert found.hypotheses[1].score > found.hypotheses[0].score


def test_warnings_alone_count_by_half() -> None:
    warned = [replace(one, severity="warning") for one in findings_of(FAULTS["surge"])]
    whole = diagnose(Symptoms(findings=findings_of(FAULTS["surge"]))).hypotheses[0]
    half = diagnose(Symptoms(findings=warned)).hypotheses[0]
    assert half.score == whole.score / 2


def test_a_sign_counts_once_however_many_monitors_show_it() -> None:
    cause = Cause(
        key="one", title="", meaning="", signs=(Sign(monitors=("a*",), weight=2),), look="", advice=()
    )  # fmt: skip
    findings = [Finding(monitor=f"a{n}", step=5, summary="") for n in range(7)]
    [found] = diagnose(Symptoms(findings=findings), [cause]).hypotheses
    assert found.score == 2
    assert len(found.findings) == 7


def test_chance_is_bounded_whatever_the_monitors_share() -> None:
    found = diagnosed("drift")
    assert found.by_chance == pytest.approx(100 * RATE / 1000 / 4)
    one = diagnose(Symptoms(findings=findings_of(FAULTS["surge"])[:1], watched=replace(WATCHED, steps=10_000)))
    assert one.by_chance == 1.0, "five false alarms are expected: one finding says nothing"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(step, float(step % 2)) for step in range(40)], 0),
        ([(step, 1.0) for step in range(40)], 0),
        ([(step, 1.0 + (step >= 20)) for step in range(40)], 1),
        ([(step, 2.0 - (step >= 20)) for step in range(40)], -1),
        ([(step, 1.0 + 0.05 * (step >= 20)) for step in range(40)], 0),
    ],
)
def test_what_counts_as_moved(points: list[tuple[int, float]], expected: int) -> None:
    found = moved(points, 20, 25)
    assert found is not None
    assert found[2] == expected


def test_too_little_to_compare_is_no_movement() -> None:
    assert moved([(1, 1.0), (2, 1.0), (30, 5.0)], 20, 25) is None
    assert moved([(step, float("nan")) for step in range(40)], 20, 25) is None


def test_every_piece_of_advice_is_a_recipe_key_or_a_command() -> None:
    keys = {*all_keys(), "environment.options"}
    for cause in CAUSES:
        assert cause.advice
        for key, _ in cause.advice:
            assert key in keys or key.startswith("burnish "), (cause.key, key)


def test_the_table_of_causes_is_sound() -> None:
    assert len({cause.key for cause in CAUSES}) == len(CAUSES)
    for cause in CAUSES:
        assert all(sign.monitors or sign.kinds for sign in cause.signs)
        assert all(sign.weight in (1, 2, 3) for sign in cause.signs)
        for one in cause.circumstances:
            assert one.scalars == (DAMAGE,) or all("/" in name or "_" in name for name in one.scalars)
            assert one.text.startswith("against it") == (one.weight < 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name in ("drift", "healthy"):
        run = ill_run(root / name, FAULTS.get(name))
        run.writer.set_status(RunState.FINISHED)
        run.writer.close()
    return root


def printed(root: Path, name: str) -> str:
    diagnosis, decisions = diagnose_run(root / name)
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    console.print(why_table(name, diagnosis, decisions))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    return " ".join(text.split())


def test_the_terminal_says_what_why_and_what_to_do(runs: Path) -> None:
    text = printed(runs, "drift")
    for part in (
        "4 findings in 100 steps watched by 24 monitors",
        "1. tool results drifted strong",
        "32 steps before held-out success fell",
        "post_tool/log_ratio_behaviour_p95 0.1",
        "rl/000068/0000/00",
        "limits.max_tool_result_chars",
        "step 88: rollback (checkpoint rl-000050",
    ):
        assert part in text


def test_the_terminal_claims_nothing_of_a_healthy_run(runs: Path) -> None:
    assert printed(runs, "healthy") == (
        "Why healthy? No finding; 100 steps watched by 24 monitors at 0.5 false alarms per 1,000 steps."
    )


def test_the_command_prints_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", "drift", "--root", str(runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(why_json("drift", *diagnose_run(runs / "drift"))))
    assert told["hypotheses"][0]["key"] == "tool_drift"
    assert told["hypotheses"][0]["lead_steps"] == 32
    assert told["damage"]["step"] == 100
    assert told["decisions"][-1]["dry_run"] is False
    assert main(["why", "healthy", "--root", str(runs)]) == 0
    assert "No finding" in capsys.readouterr().out
