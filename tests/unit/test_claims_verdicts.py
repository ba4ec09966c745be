"""What each claim of estimator health concludes from small generated streams: with the effect, without it, and without
what it needs to be seen."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CLAIMS = Path(__file__).resolve().parents[2] / "claims"
ONSET = 40


@pytest.fixture
def claim(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports `claims/NAME/run.py`, or `common`, by name."""
    monkeypatch.syspath_prepend(str(CLAIMS))

    def load(name: str) -> ModuleType:
        path = CLAIMS / "common.py" if name == "common" else CLAIMS / name / "run.py"
        # The claims import `common` by that name, so it is the one module that all of them share.
        label = "common" if name == "common" else f"claim_{name}"
        if label in sys.modules:
            return sys.modules[label]
        spec = importlib.util.spec_from_file_location(label, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, label, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def runs(claim: Callable[[str], ModuleType]) -> Callable[..., list[Any]]:
    """A twin and a fault run of the generator under each of `n` seeds; `growth`, `text_growth`, `drop` as in
    `Simulation`.  One pair is simulated and stands for all seeds."""
    common = claim("common")
    fine = common.Simulation(steps=70, onset=ONSET, trajectories=12, tokens=64)

    def make(n: int, **changes: Any) -> list[Any]:
        twin = common.simulated(fine, 0, arm="twin")
        fault = common.simulated(replace(fine, **changes), 0, arm="fault", kind="tool_format")
        return [replace(one, spec=replace(one.spec, seed=seed)) for seed in range(n) for one in (twin, fault)]

    return make


# -- ess_leads ---------------------------------------------------------------------------------------------------------


def ess_verdict(claim: Callable[[str], ModuleType], found: list[Any]) -> tuple[str, dict[str, Any]]:
    module, common = claim("ess_leads"), claim("common")
    reading = module.reading(common.pairs_of(found, "fault"), common.healthy_of(found), ONSET)
    return reading.verdict, dict(reading.figures)


def test_ess_that_falls_before_success_reproduces_the_claim(claim: Any, runs: Any) -> None:
    verdict, figures = ess_verdict(claim, runs(8, growth=3.0, drop=0.3))
    assert (verdict, figures["damaged_runs"]) == ("reproduced", 8)
    assert figures["median_lead_steps"] > 0
    assert figures["falls_in_health"] == 0.0


def test_success_that_falls_without_ess_is_half_of_the_claim(claim: Any, runs: Any) -> None:
    verdict, figures = ess_verdict(claim, runs(8, growth=0.0, drop=0.3))
    assert (verdict, figures["ess_falls"]) == ("mixed", 0.0)


def test_ess_is_not_testable_without_damage(claim: Any, runs: Any) -> None:
    verdict, figures = ess_verdict(claim, runs(8, growth=3.0, drop=0.0))
    assert (verdict, figures["damaged_runs"]) == ("not testable here", 0)
    assert all(step is not None for step in figures["by_kind"]["tool_format"]["ess_falls_at"])


# -- post_tool_tails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"growth": 0.4}, "reproduced"),
        ({"growth": 0.4, "text_growth": 0.1}, "mixed"),
        ({"text_growth": 0.4}, "not reproduced"),
    ],
)
def test_which_tail_grows_decides(claim: Any, runs: Any, changes: dict[str, float], verdict: str) -> None:
    found = runs(4, **changes)
    faults = [replay for replay in found if replay.spec.arm == "fault"]
    healthy = [replay for replay in found if replay.spec.arm == "twin"]
    assert claim("post_tool_tails").reading(faults, healthy, ONSET).verdict == verdict


def test_tails_that_grow_in_health_as_well_do_not_reproduce_the_claim(claim: Any, runs: Any) -> None:
    faults = [replay for replay in runs(4, growth=0.4) if replay.spec.arm == "fault"]
    assert claim("post_tool_tails").reading(faults, faults, ONSET).verdict != "reproduced"


# -- calibrated_kl -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "verdict"), [(61, "reproduced"), (65, "reproduced"), (66, "not reproduced"), (None, "not reproduced")]
)
def test_kl_is_enough_where_it_alarms_as_early(claim: Any, kl: int | None, verdict: str) -> None:
    module = claim("calibrated_kl")
    assert module.reading(scored(module, [60] * 10), scored(module, [kl] * 10)).verdict == verdict


def test_kl_is_not_judged_on_few_runs(claim: Any) -> None:
    module = claim("calibrated_kl")
    assert module.reading(scored(module, [60] * 9 + [None]), scored(module, [60] * 10)).verdict == "not testable here"


def test_watch_and_kl_see_what_the_generator_does(claim: Any, runs: Any) -> None:
    """Detectors at thresholds that are given: both see a tail that grows, neither sees health."""
    module, common = claim("calibrated_kl"), claim("common")
    from fault_runs.detectors import Terms

    found, scores = runs(1, growth=0.6), []
    for detector in (module.BurnishWatch(), module.Cusum("CUSUM of KL", "kl_k3")):
        detector.terms = Terms(baseline_steps=20, cooldown_steps=5)
        threshold = detector.grid[len(detector.grid) // 3]
        scores.append(module.score(detector, threshold, common.pairs_of(found, "fault"), found[:1], 1))
    assert all(score.caught[0].alarm is not None and score.quiet.alarms == 0 for score in scores)


def scored(module: ModuleType, alarms: list[int | None]) -> Any:
    import fault_runs.scoring as scoring

    caught = tuple(
        scoring.Caught(kind="stale", seed=seed, alarm=alarm, damage=80, lead=0.0, right=True)
        for seed, alarm in enumerate(alarms)
    )
    return module.Score(name="x", threshold=1.0, quiet=scoring.Quiet(alarms=0, steps=100), caught=caught)


# -- near_misses -------------------------------------------------------------------------------------------------------


def arms(**success: float) -> dict[str, list[dict[str, float]]]:
    """Five seeds of each arm with these successes at the end; ESS is restored in all but `nothing`."""
    return {
        name: [
            {"ess": 0.4 if name == "nothing" else 0.6, "success": value + 0.01 * seed, "failed_groups": 0.3}
            for seed in range(5)
        ]
        for name, value in success.items()
    }


@pytest.mark.parametrize(
    ("near", "hard", "verdict"),
    [(0.6, 0.4, "reproduced"), (0.6, 0.5, "mixed"), (0.5, 0.5, "not reproduced"), (0.4, 0.6, "not reproduced")],
)
def test_near_misses_help_and_hard_negatives_hurt(claim: Any, near: float, hard: float, verdict: str) -> None:
    module = claim("near_misses")
    assert module.reading(arms(nothing=0.5, near_misses=near, hard_negatives=hard)).verdict == verdict


def test_near_misses_are_not_testable_where_few_groups_fail(claim: Any) -> None:
    found = arms(nothing=0.5, near_misses=0.6, hard_negatives=0.4)
    for row in found["nothing"]:
        row["failed_groups"] = 0.09
    assert claim("near_misses").reading(found).verdict == "not testable here"


def test_ess_of_the_update_grows_with_what_is_trained_on(claim: Any) -> None:
    """Groups that failed as a whole have no update size: of 8 groups of 4 with success .3 about a quarter."""
    module, common = claim("near_misses"), claim("common")
    without = common.Simulation(steps=10, onset=2, trajectories=32, tokens=32, success=0.3, train_failed=False)
    found = [
        module.figures_of(common.simulated(replace(without, train_failed=trained), 0, arm="claim"), 0)
        for trained in (False, True)
    ]
    assert all(0.1 < row["failed_groups"] < 0.4 for row in found)
    assert found[1]["ess"] > found[0]["ess"] + 0.05


def test_an_update_of_nothing_has_no_effective_share(claim: Any) -> None:
    share = claim("common").effective_share
    assert (share([0.0, 0.0]), share([]), share([1.0, 1.0, 0.0, 0.0]), share([2.0] * 5)) == (0.0, 0.0, 0.5, 1.0)


# -- variance_correction -----------------------------------------------------------------------------------------------


def four(before: float, after: float, shift_before: float, shift_after: float) -> dict[str, list[dict[str, float]]]:
    """Four seeds of each arm by the Gini coefficients and by how far the shift moves them; ESS is 1 - Gini."""
    ginis = {
        "before": before,
        "after": after,
        "before, shifted": before + shift_before,
        "after, shifted": after + shift_after,
    }
    return {
        arm: [
            {"gini": value + 0.001 * seed * (arm == "after"), "ess": 1 - value - 0.001 * seed, "success": 0.5}
            for seed in range(4)
        ]
        for arm, value in ginis.items()
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (four(0.75, 0.35, 0.10, 0.01), "reproduced"),
        (four(0.75, 0.35, 0.01, 0.10), "mixed"),
        (four(0.75, 0.70, 0.01, 0.10), "mixed"),
        (four(0.75, 0.75, 0.01, 0.10), "not reproduced"),
        (four(0.45, 0.20, 0.10, 0.01), "not testable here"),
    ],
)
def test_concentration_before_and_after(claim: Any, found: Any, verdict: str) -> None:
    assert claim("variance_correction").reading(found).verdict == verdict


def test_correction_of_generated_sizes_evens_them_out(claim: Any) -> None:
    figures = claim("variance_correction").quick().figures
    assert figures["gini before"] - figures["gini after"] > 0.2
    assert figures["ess after"] > 1.9 * figures["ess before"]
    assert figures["shift_difference"][2] < 0


# -- staging -----------------------------------------------------------------------------------------------------------


def staged(success: tuple[float, float, float], preference: tuple[float, float, float], rise: float = 0.1) -> Any:
    """Three seeds of the arms of 10, 30 and 50%."""
    return {
        share: [{"success": s + 0.01 * seed, "preference": p, "rise": rise} for seed in range(3)]
        for share, s, p in zip((0.1, 0.3, 0.5), success, preference, strict=True)
    }


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (staged((0.5, 0.6, 0.6), (0.7, 0.7, 0.5)), "reproduced"),
        (staged((0.5, 0.6, 0.6), (0.7, 0.7, 0.7)), "mixed"),
        (staged((0.6, 0.5, 0.5), (0.7, 0.7, 0.7)), "not reproduced"),
        (staged((0.6, 0.6, 0.6), (0.7, 0.7, 0.7)), "not reproduced"),
        (staged((0.6, 0.6, 0.6), (0.7, 0.7, 0.7), rise=0.0), "not testable here"),
    ],
)
def test_thirty_percent_against_ten_and_fifty(claim: Any, found: Any, verdict: str) -> None:
    assert claim("staging").reading(found).verdict == verdict


def test_preference_is_taken_out_of_the_reward_at_the_weight_of_its_step(claim: Any) -> None:
    """A score of .8 for everybody, staged in over steps 12 to 48 of 120: found as .8 at every weight, with no rise."""
    module, common = claim("staging"), claim("common")
    plain = common.simulated(common.Simulation(steps=120, tokens=8, trajectories=8), 0, arm="claim", kind="staged")
    weights = [module.schedule(0.1).at(item.step / 120)["preference"] for item in plain.steps]
    assert (weights[11], weights[47], weights[-1]) == (0.0, 0.5, 0.5)
    steps = [rewarded(item, 0.8 * weight) for item, weight in zip(plain.steps, weights, strict=True)]
    assert module.preference(steps[11:30], weights[11:30]) == pytest.approx(0.8, abs=1e-6)
    figures = module.figures_of(replace(plain, steps=steps), 0.1)
    assert (figures["preference"], figures["rise"]) == pytest.approx((0.8, 0.0), abs=1e-6)
    assert module.preference(plain.steps[-5:], weights[-5:]) == 0.0


def rewarded(item: Any, more: float) -> Any:
    """The step with `more` added to every reward."""

    class Rewarded:
        step = item.step

        @staticmethod
        def sums() -> Any:
            rows = [replace(row, reward=(row.reward or 0.0) + more) for row in item.sums().trajectories]
            return argparse.Namespace(trajectories=rows)

    return Rewarded()


# -- what a verdict keeps ----------------------------------------------------------------------------------------------


def test_a_verdict_says_in_which_world_and_is_never_overwritten(claim: Any, tmp_path: Path, monkeypatch: Any) -> None:
    common = claim("common")
    monkeypatch.setattr(common, "HERE", tmp_path)
    (tmp_path / "x").mkdir()
    options = argparse.Namespace(seeds=3, setting={"rl_words": "rl.lr=1e-4"}, note="three seeds", reason="")
    common._keep("x", common.Reading(figures={"gap": [0.1, -math.inf]}, verdict="mixed"), options)
    kept = json.loads((tmp_path / "x" / "verdict.json").read_text(encoding="utf-8"))
    assert kept["figures"] == {"gap": [0.1, None]}
    assert (kept["verdict"], kept["seeds"], kept["note"]) == ("mixed", 3, "three seeds")
    assert kept["setting"] == {"rl_words": "rl.lr=1e-4"}
    with pytest.raises(SystemExit, match="holds a verdict already"):
        common._keep("x", common.Reading(figures={}, verdict="reproduced"), options)
    options.reason = "five seeds"
    common._keep("x", common.Reading(figures={}, verdict="reproduced"), options)
    kept = json.loads((tmp_path / "x" / "verdict.json").read_text(encoding="utf-8"))
    assert (kept["verdict"], kept["superseded"][0]["verdict"]) == ("reproduced", "mixed")
    with pytest.raises(ValueError, match="a verdict is one of"):
        common._keep("x", common.Reading(figures={}, verdict=""), options)


def test_flags_that_were_given_reach_the_measurement_and_the_verdict(
    claim: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    common = claim("common")
    monkeypatch.setattr(common, "HERE", tmp_path)
    (tmp_path / "x").mkdir()
    monkeypatch.setattr(sys, "argv", ["run.py", "--onset", "60", "--rl-words", "rl.lr=1e-4", "--note", "small"])
    seen = []

    def full(options: argparse.Namespace) -> Any:
        seen.append((options.onset, options.rl_words, options.steps))
        return common.Reading(figures={}, verdict="mixed")

    assert common.run_claim("x", None, lambda: common.Reading(figures={}), full) == 0
    kept = json.loads((tmp_path / "x" / "verdict.json").read_text(encoding="utf-8"))
    assert seen == [(60, "rl.lr=1e-4", 250)]
    assert (kept["setting"], kept["note"]) == ({"onset": 60, "rl_words": "rl.lr=1e-4"}, "small")


def test_runs_of_a_claim_train_in_the_world_that_is_asked_for(claim: Any, tmp_path: Path) -> None:
    """The words reach the healthy twin, from which changed runs inherit them; these may end before it."""
    common = claim("common")
    options = argparse.Namespace(
        data=tmp_path, recipe="long", onset=60, steps=110, last=90, rl_words="rl.groups=6 rl.lr=1e-4"
    )
    planner = common.planner_of(options)
    changed = planner.changed("claim", "corrected", 0, 4.0, ("rl.scale=none",))
    assert (changed.spec.steps, changed.spec.words) == (90, ("rl.scale=none",))
    (twin,) = changed.needs
    assert (twin.spec.arm, twin.spec.steps, twin.spec.words) == ("twin", 110, ("rl.groups=6", "rl.lr=1e-4"))
    assert (changed.spec.parent, changed.spec.checkpoint) == (str(twin.target.with_suffix("")), "rl-000060")
    assert planner.whole("claim", "staged", 0, 0.3).spec.words == ("rl.groups=6", "rl.lr=1e-4")
    options.last = 0
    assert common.planner_of(options).changed("claim", "corrected", 0, 4.0).spec.steps == 110


def test_runs_that_lie_there_count_where_they_are_of_the_setting(claim: Any, runs: Any, tmp_path: Path) -> None:
    common = claim("common")
    options = argparse.Namespace(
        data=tmp_path, recipe="long", onset=ONSET, steps=70, last=0, rl_words="rl.lr=1e-4", seeds=1
    )
    import fault_runs.cache as cache

    (tmp_path / "reported").mkdir()
    twin, fault = runs(1, growth=0.4)
    for rl_words in ("rl.lr=1e-4", "rl.lr=9"):
        planner = common.planner_of(argparse.Namespace(**{**vars(options), "rl_words": rl_words}))
        for job, replay in ((planner.twin(0), twin), (planner.changed("fault", "tool_format", 0, 1.0), fault)):
            cache.write_replay(replace(replay, spec=job.spec), job.target)
    assert len(list((tmp_path / "reported").iterdir())) == 4
    found = common.stored_replays(options)
    assert sorted(replay.spec.arm for replay in found) == ["fault", "twin"]
    assert next(replay for replay in found if replay.spec.arm == "twin").spec.words == ("rl.lr=1e-4",)
    (pair,) = common.pairs_of(found, "fault")
    assert [item.step for item in pair.changed.steps] == list(range(1, 71))
