"""Every gentle knob, turned by a script: what it does to the next steps, and that it does it again after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_control import ScriptedLadder, ScriptedWatch
from tiny_runs import StopAt, accounting_problems, differences, facts, resume_run, start_run, tiny_recipe

from burnish.core.errors import RunStopped, StoreError
from burnish.core.finding import Act, Decision
from burnish.loop import oversight
from burnish.loop.replay import replay_step
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader

BASE = (
    "health.on=true",
    "evaluation.before=false",
    "rl.updates=2",
    "rl.steps=4",
    "rl.scale=none",
    "rl.token_cost=0.9",
    "rl.token_cost_mode=always",
    "control.keep_reference=true",
)
TURNED = 2
CASES: dict[Act, dict[str, Any]] = {
    Act.MASK_TAIL: {"slice": "all", "moment_cap": 1e-9},
    Act.LEARNING_RATE: {"factor": 0.25},
    Act.KL_WEIGHT: {"weight": 5.0},
    Act.POST_TOOL_CAP: {"share": 0.1},
    Act.VERIFIED_REWARD: {"agreement": -0.2},
}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oversight, "Watch", ScriptedWatch)
    monkeypatch.setattr(oversight, "Ladder", ScriptedLadder)
    monkeypatch.setattr(ScriptedLadder, "heard", [])
    monkeypatch.setattr(ScriptedLadder, "script", {})


def script(*acts: Act) -> dict[int, tuple[Decision, ...]]:
    return {TURNED: tuple(Decision(act=act, step=TURNED, reason="r", values=CASES[act], dry_run=False) for act in acts)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oversight, "Watch", ScriptedWatch)
        patch.setattr(oversight, "Ladder", ScriptedLadder)
        start_run(tiny_recipe(*BASE, "control.mode=act"), folder)
    return folder


def scalar(folder: Path, step: int, name: str) -> float:
    return RunReader(folder).step_scalars("rl", step)[name]


@pytest.mark.parametrize("act", CASES)
def test_a_knob_acts_from_the_next_step_on(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    monkeypatch.setattr(ScriptedLadder, "script", script(act))
    start_run(tiny_recipe(*BASE, "control.mode=act"), tmp_path / "whole")
    found = differences(facts(tmp_path / "whole"), facts(plain))
    assert not any("rl/1 " in key or "rl/2 loss" in key for key in found), "nothing changes before the decision"
    assert "final model.safetensors" in found
    assert accounting_problems(tmp_path / "whole") == []
    check(tmp_path / "whole", plain, act)
    check_replays(tmp_path / "whole", act)


def test_turned_knobs_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedLadder, "script", script(*CASES))
    recipe = tiny_recipe(*BASE, "control.mode=act")
    start_run(recipe, tmp_path / "whole")
    assert scalar(tmp_path / "whole", TURNED + 1, "control/knobs_turned") == len(CASES)
    ask = StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, tmp_path / "stopped", watch=ask.watch, stop=ask.stop)
    resume_run(tmp_path / "stopped")
    assert differences(facts(tmp_path / "stopped"), facts(tmp_path / "whole")) == []


def check_replays(folder: Path, act: Act) -> None:
    """A step under a turned knob is not said to be replayed, whether its checkpoint knows of the knob or an event."""
    assert replay_step(folder, TURNED, lambda text: None).bit_equal
    refused = rf"control had turned {act.value} \(decided in step {TURNED}\), in force from step {TURNED + 1} on"
    with pytest.raises(StoreError, match=refused):
        replay_step(folder, TURNED + 1, lambda text: None)
    shutil.rmtree(RunLayout(folder).checkpoints / f"rl-{TURNED:06d}")
    with pytest.raises(StoreError, match=refused):
        replay_step(folder, TURNED + 2, lambda text: None)
    assert replay_step(folder, TURNED, lambda text: None).bit_equal


def check(folder: Path, plain: Path, act: Act) -> None:
    """Each knob did what it says, in the step after the decision."""
    step = TURNED + 1
    if act is Act.MASK_TAIL:
        assert scalar(folder, step, "control/tail_masked_tokens") > 0
    elif act is Act.LEARNING_RATE:
        assert scalar(folder, step, "lr") == pytest.approx(0.25 * scalar(plain, step, "lr"))
    elif act is Act.KL_WEIGHT:
        assert scalar(folder, step, "loss") != scalar(plain, step, "loss")
        assert scalar(folder, step, "kl_reference_nats_mean") > 0
    elif act is Act.POST_TOOL_CAP:
        assert 0 < scalar(folder, step, "control/post_tool_factor") < 1
    elif act is Act.VERIFIED_REWARD:
        assert scalar(folder, step, "reward/charged_mean") == 0.0 < scalar(plain, step, "reward/charged_mean")
        assert scalar(folder, step, "reward/agreement") == scalar(plain, step, "reward/agreement") < 1.0
    assert scalar(folder, TURNED, "control/knobs_turned") == 0.0
    assert scalar(folder, step, "control/knobs_turned") == 1.0


@pytest.mark.parametrize("where", ["run.in_process=true", "run.in_process=false"])
def test_stored_groups_are_trained_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The first groups with a signal, whatever the reservoir thinks of them."""
    given: list[tuple[int, tuple[str, ...]]] = []

    def chosen(self: oversight.Oversight, step: int) -> list[tuple[int, tuple[str, ...]]]:
        return given if step == 3 else []

    monkeypatch.setattr(oversight.Oversight, "near_misses", chosen)
    words = ("health.on=true", "evaluation.before=false", "rl.steps=3", "control.mode=act")
    start_run(tiny_recipe(*words), tmp_path / "without")
    rows = [row for row in RunReader(tmp_path / "without").trajectories("rl", 1) if row.advantage is not None]
    group = [row.trajectory.id for row in rows if row.trajectory.group_id == rows[0].trajectory.group_id]
    given.append((1, tuple(group)))
    start_run(tiny_recipe(*words, where), tmp_path / "with")
    first, second = tmp_path / "without", tmp_path / "with"
    assert scalar(second, 3, "control/near_miss_groups") == 1.0
    assert scalar(second, 3, "tokens") > scalar(first, 3, "tokens")
    assert scalar(second, 3, "health/rows") == scalar(first, 3, "health/rows") + len(group)
    assert scalar(second, 3, "episodes/trained") == scalar(first, 3, "episodes/trained")
    assert np.isfinite(scalar(second, 3, "loss"))
    assert accounting_problems(second) == []
