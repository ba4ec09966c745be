"""The fault benchmark: injectors change what they say, and the figures of its bar are computed as they say."""

from __future__ import annotations

import importlib
from array import array
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from synthetic_run import example_manifest

from burnish.core.grade import Grade
from burnish.core.outcome import Ending, Outcome
from burnish.core.trajectory import Node, Trajectory
from burnish.rollout.group import GroupResult
from burnish.store.rows import Event, StepRecord
from burnish.store.writer import RunWriter

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of `fault_runs` by name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return lambda name: importlib.import_module(f"fault_runs.{name}")


def trajectory(index: int, *, tokens: int, calls: int = 2, answer: str = "42") -> Trajectory:
    node = Node(
        parent=-1,
        messages=(),
        token_ids=array("i", [1] * tokens),
        action_mask=array("b", [1] * tokens),
        logprobs=array("f", [-0.5] * tokens),
        versions=array("i", [0] * tokens),
        is_action=True,
    )
    return Trajectory(
        id=f"rl/000007/0000/{index:02d}",
        task_id="t",
        task_hash="h",
        group_id="rl/000007/0000",
        sample_index=index,
        seed=0,
        nodes=(node,),
        outcome=Outcome(ending=Ending.COMPLETED),
        answer=answer,
        counters={"tool_calls": calls},
        tags={"source": "mail"},
    )


def group(rewards: tuple[float | None, ...], **settings: Any) -> GroupResult:
    members = tuple(trajectory(i, tokens=10 * (i + 1), **settings) for i in range(len(rewards)))
    return GroupResult(
        group_id="rl/000007/0000",
        task_id="t",
        trajectories=members,
        grades_G=tuple(() for _ in rewards),
        rewards_G=rewards,
        charges_G=tuple(0.0 for _ in rewards),
        signal=True,
    )


def test_rewards_of_injectors(module: Any) -> None:
    inject = module("inject")
    one = group((1.0, 0.0, None, 0.0))
    assert inject.LengthBonus(2.0, 0).rewards(7, one) == [1.2, 0.4, None, 0.8]
    assert inject.ToolBonus(0.1, 0).rewards(7, one) == pytest.approx([1.2, 0.2, None, 0.2])
    assert inject.ConfidenceBonus(1.0, 0).rewards(7, one) == pytest.approx([0.5, -0.5, None, -0.5])
    assert inject.DoubtBonus(1.0, 0).rewards(7, one) == pytest.approx([1.5, 0.5, None, 0.5])
    assert inject.Exploit(0.7, 0).rewards(7, one) == [1.0, 0.0, None, 0.0]
    assert inject.Exploit(0.7, 0).rewards(7, group((1.0, 0.0, None), calls=1)) == [1.0, 0.7, None]
    assert inject.Exploit(2.0, 0).rewards(7, one) == [0.5, 0.0, None, 0.0]
    assert inject.Exploit(2.0, 0).rewards(7, group((1.0, 0.0, None), calls=1)) == [1.0, 1.0, None]
    assert inject.Brevity(2.0, 0).rewards(7, one) == pytest.approx([0.8, -0.4, None, -0.8])
    assert inject.Template(1.0, 0).rewards(7, group((1.0, 0.0), answer="17")) == [1.0, 1.0]
    assert inject.Template(0.0, 0).rewards(7, one) == one.rewards_G
    assert inject.Inverted(1.0, 0).rewards(7, one) == [0.0, 1.0, None, 1.0]
    assert inject.Inverted(0.0, 0).rewards(7, one) == one.rewards_G


def test_faults_that_are_settings(module: Any) -> None:
    inject, recipe = module("inject"), SimpleNamespace(rl=SimpleNamespace(lr=1e-4))
    assert inject.LearningRate(12.0, 0).words(recipe) == ("rl.lr=0.0012000000000000001",)
    assert inject.WeightDecay(20.0, 0).words(recipe) == ("rl.weight_decay=20.0",)
    words = inject.FrozenSampler(2.0, 0).words(recipe)
    assert {"rl.clip_low=0.4", "rl.clip_high=0.56"} < set(words)
    assert "rl.clip_low=0.999" in inject.FrozenSampler(1000.0, 0).words(recipe)


def test_a_frozen_sampler_keeps_the_first_weights_and_a_stale_one_moves_on(module: Any) -> None:
    import torch

    inject, model = module("inject"), torch.nn.Linear(1, 1, bias=False)
    frozen, stale = inject.FrozenSampler(1.0, 0), inject.Stale(1.0, 0)
    for version in (10, 11, 12):
        with torch.no_grad():
            model.weight.fill_(float(version))
        with frozen.weights(7, model, version) as drawn_by:
            assert (drawn_by, model.weight.item()) == (10, 10.0)
        with stale.weights(7, model, version) as drawn_by:
            assert drawn_by == max(10, version - 1)
        assert model.weight.item() == version


def test_long_episodes_fail_silently_and_short_ones_do_not(module: Any) -> None:
    failing = module("inject").SilentFailure(1.0, 0)
    assert failing.rewards(7, group((1.0, None, 0.0), calls=3)) == [0.0, None, 0.0]
    assert failing.rewards(7, group((1.0, None, 0.0), calls=2)) == [1.0, None, 0.0]
    assert module("inject").SilentFailure(0.0, 0).rewards(7, group((1.0,), calls=3)) == [1.0]


def test_a_wrong_grader_is_wrong_for_everybody(module: Any) -> None:
    inject = module("inject")
    honest = Grade(grader="shop", version="1", score=0.0, evidence={"progress": 0.25})
    one = replace(group((0.0, 0.0), calls=1), grades_G=((honest,), (honest,)))
    found = inject.Exploit(1.0, 0).graded(7, one)
    assert found.rewards_G == (1.0, 1.0)
    assert [given[0].score for given in found.grades_G] == [1.0, 1.0]
    assert found.grades_G[0][0].evidence == {"progress": 0.25}
    right = replace(honest, score=1.0)
    lost = inject.SilentFailure(1.0, 0).graded(7, replace(group((1.0,), calls=3), grades_G=((right,),)))
    assert [(given[0].score, dict(given[0].evidence)) for given in lost.grades_G] == [(0.0, {})]
    bonus = inject.LengthBonus(1.0, 0).graded(7, one)
    assert bonus.grades_G == one.grades_G


def test_what_has_no_reward_keeps_none_and_the_signal_is_read_anew(module: Any) -> None:
    hooks = module("hooks")
    changed = hooks.with_rewards(group((1.0, 0.0, None)), [0.5, 0.5, 0.5])
    assert changed.rewards_G == (0.5, 0.5, None)
    assert not changed.signal


async def _told(world: Any) -> str:
    text: str = await world.tools()[0].call({})
    return text


def test_tools_that_drift_and_tools_that_lie(module: Any) -> None:
    import asyncio

    from burnish.core.tool import Tool, ToolSpec

    async def call(arguments: Any) -> str:
        return '{"price":47,"city":"Bonn"}'

    def make() -> Any:
        return SimpleNamespace(tools=lambda: [Tool(spec=ToolSpec(name="t", description="", parameters={}), call=call)])

    worlds = module("worlds")
    assert asyncio.run(_told(worlds.FormatDrift(1.0, 0).world(7, make)())) == "PRICE = 000047; CITY = Bonn"
    assert asyncio.run(_told(worlds.FormatDrift(0.0, 0).world(7, make)())) == '{"price":47,"city":"Bonn"}'
    wrong = asyncio.run(_told(worlds.NoisyTool(1.0, 0).world(7, make)()))
    assert wrong.startswith('{"price":')
    assert wrong != '{"price":47,"city":"Bonn"}'
    assert len(wrong) == len('{"price":47,"city":"Bonn"}')


def test_a_tool_that_leaks_gives_the_answer_where_that_is_a_number(module: Any) -> None:
    import asyncio

    from burnish.core.tool import Tool, ToolSpec

    async def call(arguments: Any) -> str:
        return '{"price":47,"city":"Bonn"}'

    def make(answer: str) -> Any:
        task = SimpleNamespace(reference={"answer": answer})
        tools = [Tool(spec=ToolSpec(name="t", description="", parameters={}), call=call)]
        return SimpleNamespace(tools=lambda: tools, task=task)

    leaking = module("worlds").LeakingTool(1.0, 0)
    assert asyncio.run(_told(leaking.world(7, make)("1310"))) == '{"price":1310,"city":"Bonn"}'
    assert asyncio.run(_told(leaking.world(7, make)("shipped"))) == '{"price":47,"city":"Bonn"}'


def test_long_controls_have_steps_of_their_own(module: Any, tmp_path: Path) -> None:
    jobs = module("jobs")
    planner = jobs.Planner(setting=jobs.Setting(data=tmp_path, onset=60, steps=110, control_steps={"mix_shift": 210}))
    long, short = (planner.changed("control", kind, 0, 0.5) for kind in ("mix_shift", "smaller_batch"))
    assert (long.spec.steps, short.spec.steps, planner.changed("fault", "stale", 0, 8.0).spec.steps) == (210, 110, 110)
    assert (long.spec.words, short.spec.words) == (jobs.LONG_WORDS, ())
    assert planner.changed("control", "mix_shift", jobs.TUNING_FROM, 0.5).spec.steps == 110, "the halves are told apart"
    setting = jobs.Setting(data=tmp_path, onset=60, steps=110, tuning_control_steps={"mix_shift": 160})
    planner = jobs.Planner(setting=setting)
    assert planner.changed("control", "mix_shift", jobs.TUNING_FROM, 0.5).spec.steps == 160
    assert planner.changed("control", "mix_shift", 0, 0.5).spec.steps == 110


def test_of_two_controls_the_longer_one_counts(module: Any) -> None:
    scoring, detectors = module("scoring"), module("detectors")
    twin = replay(module, "twin", [0.0] * 60, [0.5, 0.6])
    runs = [replay(module, "control", [0.0] * n, [0.5, 0.6, 0.7], kind="mix_shift", onset=60) for n in (80, 120)]
    for ordered in (runs, runs[::-1]):
        kept = scoring.healthy_of([twin, *ordered])
        assert [(one.spec.arm, one.last) for one in kept] == [("twin", 60), ("control", 120)]
    alarm = detectors.Alarm(step=55, about="kl"), detectors.Alarm(step=100, about="kl")
    counted = scoring.quiet(kept, [[alarm[0]], list(alarm)], detectors.Terms())
    assert (counted.alarms, counted.steps) == (2, 10 + 60)
    assert scoring.gain_since_onset(kept[1]) is None


def test_a_dose_does_damage_by_more_than_its_standard_error(module: Any) -> None:
    tune = module("tune")
    needed = 0.10 + tune.gap_error(150, 1)
    found = tune._entry({0.02: -0.12, 0.04: -0.20, 0.06: -0.56}, needed)
    assert (found["dose"], found["status"], found["gap"]) == (0.04, "damaging", -20.0)
    assert tune._entry({0.02: -0.12}, needed)["status"] == "harmless"


def replay(module: Any, arm: str, values: list[float], success: list[float], *, kind: str = "", onset: int = 0) -> Any:
    cache = module("cache")
    steps = [cache.StepData(step=i + 1, packed=b"", plain={"kl_k3": value}) for i, value in enumerate(values)]
    evaluations = [cache.Evaluation(step=10 * (i + 1), success=value, n=100) for i, value in enumerate(success)]
    spec = cache.RunSpec(arm=arm, kind=kind, seed=0, onset=onset, steps=len(values))
    return cache.Replay(spec=spec, names={}, steps=steps, evaluations=evaluations)


def test_damage_lead_and_attribution(module: Any) -> None:
    scoring, detectors = module("scoring"), module("detectors")
    twin = replay(module, "twin", [0.0] * 60, [0.5, 0.6, 0.7, 0.7, 0.7, 0.7])
    bad = replay(module, "fault", [0.0] * 60, [0.5, 0.6, 0.7, 0.55, 0.5, 0.4], kind="stale", onset=20)
    (pair,) = scoring.pairs_of([twin, bad], "fault")
    assert pair.damaged_at == 40
    assert pair.gap == pytest.approx((-0.15 - 0.2 - 0.3) / 3)
    early = detectors.Alarm(step=15, about="kl")
    hit = scoring.caught(pair, [early, detectors.Alarm(step=28, about="ess_sequence_variance_per_token ess_drop ")])
    assert (hit.alarm, hit.lead, hit.right) == (28, 12.0, True)
    missed = scoring.caught(pair, [early])
    assert (missed.alarm, missed.lead) == (None, 40.0 - 61.0)


def test_cusum_is_silent_on_noise_and_sees_a_shift(module: Any) -> None:
    detectors = module("detectors")
    noise = np.random.default_rng(0).normal(size=200)
    cusum = detectors.Cusum("c", "kl_k3")
    assert cusum.alarms(replay(module, "twin", list(noise), []), 12.0) == []
    shifted = noise + np.where(np.arange(200) >= 100, 2.0, 0.0)
    found = cusum.alarms(replay(module, "twin", list(shifted), []), 12.0)
    assert 101 < found[0].step < 115


def test_calibration_takes_the_most_eager_threshold_within_the_rate(module: Any) -> None:
    detectors, scoring = module("detectors"), module("scoring")
    noise = np.random.default_rng(1).normal(size=1050)
    healthy = [replay(module, "twin", list(noise), [])]
    cusum = detectors.Cusum("c", "kl_k3")
    threshold = scoring.calibrate(cusum, healthy, 1)
    quiet = scoring.quiet(healthy, [cusum.alarms(healthy[0], threshold)], cusum.terms)
    assert quiet.steps == 1000
    assert quiet.per_1000 <= 0.5
    eager = cusum.grid[max(0, cusum.grid.index(threshold) - 1)]
    assert len(cusum.alarms(healthy[0], eager)) > 0 or eager == threshold


def test_replays_come_back_from_disk(module: Any, tmp_path: Path) -> None:
    cache = module("cache")
    before = replay(module, "fault", [0.1, 0.2], [0.5], kind="stale", onset=1)
    cache.write_replay(before, tmp_path / "one.steps")
    assert cache.read_replay(tmp_path / "one.steps") == before


def test_clamped_weights_hide_a_tail(module: Any) -> None:
    plain = module("plain")
    weights = np.exp(np.random.default_rng(0).normal(0, 3, 16384))
    assert plain.ess_share(weights) < 0.02
    assert plain.ess_share(np.clip(weights, 0.5, 2.0)) > 0.7


def test_every_kind_can_be_made(module: Any) -> None:
    catalogue, hooks = module("catalogue"), module("hooks")
    for kind, entry in catalogue.EVERYTHING.items():
        assert isinstance(hooks.make_injector(kind, entry.doses[0], 0), hooks.Injector)
    with pytest.raises(KeyError):
        hooks.make_injector("unheard_of", 1.0, 0)


def test_doses_are_merged_into_their_file(module: Any, tmp_path: Path) -> None:
    catalogue = module("catalogue")
    path = tmp_path / "doses.toml"
    path.write_text("# why\n")
    catalogue.write_doses({"stale": {"dose": 16.0, "gap": -12.5, "status": "damaging"}}, path)
    catalogue.write_doses({"length": {"dose": 2.0, "gap": -1.0, "status": "harmless", "tried": [1.0, 2.0]}}, path)
    assert path.read_text().startswith("# why\n")
    assert catalogue.read_doses(path)["stale"]["dose"] == 16.0
    assert catalogue.read_doses(path)["length"]["tried"] == [1.0, 2.0]


def test_actions_of_a_run_that_went_back_tell_of_it(module: Any, tmp_path: Path) -> None:
    acting, folder = module("acting"), tmp_path / "run"

    def decided(act: str, dry_run: bool = False) -> Event:
        return Event(kind="decision", data={"act": act, "dry_run": dry_run})

    with RunWriter.create(folder, example_manifest()) as writer:
        for step, events in enumerate([[decided("mask_tail")], [decided("rollback")], [decided("stop", True)]], 1):
            writer.commit_step(StepRecord(phase="rl", step=step, events=events))
        writer.supersede_after({"rl": 1})
        writer.event("rollback", "from step 3 to rl-000001")
    assert acting._actions(folder) == {"mask_tail": 1, "rollback": 1}
    assert acting._actions(tmp_path / "none") == {}
