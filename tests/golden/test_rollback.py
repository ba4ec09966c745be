"""Rollback is tested like resume: with nothing turned, a run that went back repeats the same steps to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_control import ScriptedLadder, ScriptedWatch
from tiny_runs import (
    GROUP_SIZE,
    GROUPS,
    RL_STEPS,
    StopAt,
    accounting_problems,
    asynchronous_problems,
    differences,
    facts,
    resume_run,
    start_run,
    tiny_recipe,
)

from burnish.core.errors import RunStopped
from burnish.core.finding import Act, Decision
from burnish.loop import go_back as going_back
from burnish.loop import oversight
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.training.checkpoint import list_checkpoints
from burnish.training.optimizer import Optimizer

ACT = ("control.mode=act", "health.on=true", "checkpoint.keep=9")
FROM, TO = 5, 2


def decision(act: Act, step: int, **values: Any) -> Decision:
    return Decision(act=act, step=step, reason="the test says so", values=values, dry_run=False)


def back(**values: Any) -> dict[int, tuple[Decision, ...]]:
    return {FROM: (decision(Act.ROLLBACK, FROM, checkpoint=f"rl-{TO:06d}", **values),)}


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedLadder]:
    monkeypatch.setattr(oversight, "Watch", ScriptedWatch)
    monkeypatch.setattr(oversight, "Ladder", ScriptedLadder)
    monkeypatch.setattr(ScriptedLadder, "script", {})
    monkeypatch.setattr(ScriptedLadder, "heard", [])
    return ScriptedLadder


def comparable(folder: Path) -> dict[str, Any]:
    """All facts but what control remembers: the ladder counts its calls, those of the repeated steps too."""
    return {key: value for key, value in facts(folder).items() if key != "final state.json"}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without a rollback."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oversight, "Watch", ScriptedWatch)
        patch.setattr(oversight, "Ladder", ScriptedLadder)
        start_run(tiny_recipe(*ACT), folder)
    return folder


@pytest.mark.parametrize("where", ["run.in_process=true", "run.in_process=false"])
def test_after_a_rollback_the_same_steps_are_repeated(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path, where: str
) -> None:
    scripted.script = back()
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ACT, where), folder)
    assert differences(comparable(folder), comparable(straight)) == []
    assert accounting_problems(folder) == []
    assert RunReader(folder).verify() == []
    given_up = [info for info in RunReader(folder).steps("rl", include_superseded=True) if info.superseded]
    assert [info.step for info in given_up] == [3, 4, 5]
    (event,) = RunReader(folder).events("rollback")
    assert (event.data["from_step"], event.data["to_step"]) == (FROM, TO)


@pytest.mark.parametrize("kind", [Optimizer, going_back.TaskQueue])
def test_the_comparison_sees_what_a_rollback_leaves_out(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    scripted.script = back()
    monkeypatch.setattr(kind, "restore", lambda self, state: None)
    start_run(tiny_recipe(*ACT), tmp_path / "run")
    assert "final model.safetensors" in differences(comparable(tmp_path / "run"), comparable(straight))


def test_weights_that_stay_are_seen(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.script = back()
    monkeypatch.setattr(going_back, "load_model_state", lambda model, state: None)
    start_run(tiny_recipe(*ACT), tmp_path / "run")
    assert "final model.safetensors" in differences(comparable(tmp_path / "run"), comparable(straight))


def test_a_rollback_with_a_knob_changed_takes_another_course(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path
) -> None:
    scripted.script = back(knobs={"learning_rate": 0.5})
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ACT), folder)
    one, other = RunReader(folder), RunReader(straight)
    for step in range(1, RL_STEPS + 1):
        expected = other.step_scalars("rl", step)["lr"] * (0.5 if step > TO else 1.0)
        assert one.step_scalars("rl", step)["lr"] == pytest.approx(expected)
    assert one.step_scalars("rl", TO)["loss"] == other.step_scalars("rl", TO)["loss"]
    assert "final model.safetensors" in differences(comparable(folder), comparable(straight))


def test_tasks_of_offending_groups_are_not_drawn_for_a_while(scripted: type[ScriptedLadder], tmp_path: Path) -> None:
    recipe = tiny_recipe(*ACT, "control.quarantine_steps=2")
    start_run(recipe, tmp_path / "first")
    rows = RunReader(tmp_path / "first").trajectories("rl", 4)
    group = rows[0].trajectory.group_id
    task = rows[0].trajectory.task_id
    scripted.script = back(group_ids=[group], trajectory_ids=[rows[0].trajectory.id])
    start_run(recipe, tmp_path / "second")
    reader = RunReader(tmp_path / "second")
    (event,) = reader.events("rollback")
    assert event.data["quarantined_tasks"] == [task]
    drawn = {row.trajectory.task_id for step in (3, 4) for row in reader.trajectories("rl", step)}
    assert task not in drawn
    whole = {
        row.trajectory.task_id for step in (3, 4) for row in RunReader(tmp_path / "first").trajectories("rl", step)
    }
    assert task in whole


@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_run_that_went_back_resumes_exactly(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path, stop_at: int
) -> None:
    """Stopped after the rollback, once between checkpoints and once where the steps that were given up had ended."""
    scripted.script = back()
    folder = tmp_path / "run"
    ask = StopAt("rl", stop_at)
    seen: list[int] = []

    def watch(progress: Any) -> None:
        if progress.phase == "rl":
            seen.append(progress.step)
        if seen.count(FROM) == 2 or (FROM in seen and seen[-1] < FROM):
            ask.watch(progress)

    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(tiny_recipe(*ACT), folder, watch=watch, stop=ask.stop)
    resume_run(folder)
    assert differences(comparable(folder), comparable(straight)) == []
    assert len(RunReader(folder).events("rollback")) == 1


def test_a_kill_while_going_back_leaves_a_run_that_goes_on(
    scripted: type[ScriptedLadder], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the checkpoint and the marking of the steps: the resume marks them."""
    scripted.script = back()
    folder = tmp_path / "run"

    class Killed(BaseException):
        pass

    def killed(session: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("burnish.store.writer.RunWriter.supersede_after", lambda self, last: killed(None))
        with pytest.raises(Killed):
            start_run(tiny_recipe(*ACT), folder)
    resume_run(folder)
    assert differences(comparable(folder), comparable(straight)) == []


def test_checkpoints_of_given_up_steps_are_gone(scripted: type[ScriptedLadder], tmp_path: Path) -> None:
    scripted.script = back()
    ask, folder = StopAt("rl", 3), tmp_path / "run"
    names: list[str] = []

    def watch(progress: Any) -> None:
        if progress.phase == "rl" and progress.step == 3 and RunReader(folder).events("rollback"):
            names.extend(ref.name for ref in list_checkpoints(folder / "checkpoints"))

    start_run(tiny_recipe(*ACT), folder, watch=watch, stop=ask.stop)
    assert "rl-000002" in names
    assert "rl-000004" not in names


def test_control_stops_a_run_with_a_checkpoint(scripted: type[ScriptedLadder], tmp_path: Path) -> None:
    scripted.script = {3: (decision(Act.STOP, 3, checkpoint=True),)}
    folder = tmp_path / "run"
    with pytest.raises(RunStopped, match="the test says so"):
        start_run(tiny_recipe(*ACT), folder)
    assert RunReader(folder).status().state is RunState.STOPPED
    assert (folder / "checkpoints" / "rl-000003").is_dir()
    (event,) = RunReader(folder).events("decision")
    assert (event.step, event.data["act"], event.data["dry_run"]) == (3, "stop", False)


def test_in_a_dry_run_nothing_is_carried_out(scripted: type[ScriptedLadder], straight: Path, tmp_path: Path) -> None:
    scripted.script = {**back(), 2: (decision(Act.LEARNING_RATE, 2, factor=0.1),)}
    folder = tmp_path / "run"
    start_run(tiny_recipe("health.on=true", "checkpoint.keep=9"), folder)
    found = {key for key in differences(comparable(folder), comparable(straight)) if "control/" not in key}
    assert found == set()
    assert [event.step for event in RunReader(folder).events("decision")] == [2, FROM]
    assert RunReader(folder).events("rollback") == []


def test_an_asynchronous_run_goes_back_too(scripted: type[ScriptedLadder], tmp_path: Path) -> None:
    scripted.script = back(knobs={"learning_rate": 0.5})
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ACT, "rollout.mode=async", "rollout.max_staleness=2"), folder)
    reader = RunReader(folder)
    assert reader.status().state is RunState.FINISHED
    assert [info.step for info in reader.steps("rl")] == list(range(1, RL_STEPS + 1))
    assert asynchronous_problems(folder) == []
    trained = [row.trajectory.id for step in range(1, RL_STEPS + 1) for row in reader.trajectories("rl", step)]
    assert len(trained) == len(set(trained)) == RL_STEPS * GROUPS * GROUP_SIZE
    assert len(reader.events("rollback")) == 1


def test_control_hears_of_evaluations_and_verified_checkpoints(scripted: type[ScriptedLadder], tmp_path: Path) -> None:
    start_run(tiny_recipe(*ACT, "evaluation.every=2"), tmp_path / "run")
    heard = {step: (outcome, marks) for step, outcome, marks, _ in scripted.heard}
    assert [step for step, (outcome, _) in heard.items() if outcome.heldout_success is not None] == [1, 3, 5]
    assert [mark.name for mark in heard[RL_STEPS][1]] == ["rl-000000", "rl-000002", "rl-000004"]
