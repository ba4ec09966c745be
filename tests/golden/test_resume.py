"""Exact resume: a run that was killed, stopped or damaged ends with the bits of one that nothing happened to."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from tiny_runs import (
    GROUPS,
    HOSTED,
    RL_STEPS,
    SFT_STEPS,
    SLEEPY,
    StopAt,
    accounting_problems,
    descendants,
    differences,
    facts,
    orphans_after,
    resume_run,
    start_run,
    tiny_recipe,
)

from burnish.cli import main
from burnish.core.errors import RunStopped, StoreError
from burnish.loop.conductor import Outside
from burnish.loop.fork import fork_run, forked_recipe
from burnish.loop.manifest import machine_notice, stored_recipe
from burnish.loop.replay import replay_step
from burnish.loop.standalone import export_run
from burnish.store.layout import RunLayout
from burnish.store.reader import RunReader
from burnish.store.rows import RunState
from burnish.tasks.cursor import TaskCursor
from burnish.training import checkpoint
from burnish.training.optimizer import Optimizer

Copy = Callable[[], Path]


def test_the_reference_is_worth_comparing_with(finished_run: Path, reference: dict[str, Any]) -> None:
    """Tools were called, every step learned, and the tasks went over into a second epoch."""
    scalars = {key: float.fromhex(value) for key, value in reference.items() if key.startswith("scalar rl/")}
    for step in range(1, RL_STEPS + 1):
        assert scalars[f"scalar rl/{step} count/tool_calls"] > 10
        assert scalars[f"scalar rl/{step} episodes/trained"] > 0
        assert scalars[f"scalar rl/{step} grad_norm"] > 0
    assert reference["status"] is RunState.FINISHED
    epoch = [task for step in range(1, 5) for task in tasks_of(finished_run, step)]
    assert len(set(epoch)) == 4 * GROUPS
    assert len(set(epoch) & set(tasks_of(finished_run, 5))) == GROUPS - 2


def tasks_of(folder: Path, step: int) -> list[str]:
    rows = RunReader(folder).trajectories("rl", step)
    return [row.trajectory.task_id for row in rows if row.trajectory.sample_index == 0]


def test_hosts_of_its_environments_change_nothing(tmp_path: Path, reference: dict[str, Any]) -> None:
    start_run(tiny_recipe(HOSTED, "environment.hosts=2"), tmp_path / "hosted")
    assert differences(facts(tmp_path / "hosted"), reference) == []


# Where the main process is killed: after this line of its progress, and up to so many seconds later.  A step of RL
# takes longer than that, since its tools sleep, so that no moment can be passed over.
MOMENTS = (
    (f"sft {SFT_STEPS // 4} ", 0.02),
    (f"sft {SFT_STEPS // 2} ", 0.05),
    ("evaluate 0 after_sft", 0.1),
    ("rl 2 ", 0.03),
    ("rl 3 ", 0.03),
    ("rl 4 ", 0.1),
    ("rl 5 ", 0.08),
    ("evaluate 0 after_rl", 0.02),
)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(nursery: Nursery, tmp_path: Path, reference: dict[str, Any]) -> None:
    """Two worker processes that are killed give the bits of one process that is not."""
    folder = tmp_path / "killed"
    attempt = nursery.attempt(folder, tiny_recipe("run.in_process=false", HOSTED).model_dump_json())
    rng = random.Random(20)
    kills = 0
    for moment, later_s in MOMENTS:
        if not attempt.wait_for(moment):
            pytest.fail(f"the run ended before {moment!r}: {attempt.lines[-1:]}")
        time.sleep(rng.uniform(0.0, later_s))
        workers = descendants(attempt.pid)
        assert len(workers) >= 2
        attempt.kill()
        kills += attempt.end == -9
        assert orphans_after(workers, 5.0) == [], f"workers outlived their main process after {moment!r}"
        assert RunReader(folder).status().state is RunState.INTERRUPTED
        assert RunReader(folder).verify() == []
        attempt = nursery.attempt(folder)
    attempt.wait_for("")
    assert attempt.end == 0
    assert kills == len(MOMENTS)
    assert differences(facts(folder), reference) == []
    assert accounting_problems(folder) == []
    reader = RunReader(folder)
    starts = {event.detail for event in reader.events("resumed")}
    assert {"from the start", "from sft-000012"} < starts
    assert any(start.startswith("from rl-") for start in starts)
    assert len(reader.steps(include_superseded=True)) > len(reader.steps())
    assert {row.name for row in reader.checkpoints()} >= {
        f"sft-{SFT_STEPS:06d}",
        "rl-000000",
        f"rl-{RL_STEPS:06d}",
        "final",
    }


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(stopped: Copy, reference: dict[str, Any]) -> None:
    folder = stopped()
    checkpoints = folder / "checkpoints"
    flip_a_bit(checkpoints / "rl-000003" / "model.safetensors")
    shutil.copytree(checkpoints / "rl-000002", checkpoints / ".tmp_rl-000004")
    resume_run(folder)
    assert (checkpoints / "corrupt_rl-000003").is_dir()
    assert not (checkpoints / ".tmp_rl-000004").exists()
    (event,) = RunReader(folder).events("corrupt_checkpoints")
    assert event.data == {"names": ["corrupt_rl-000003"]}
    assert [event.detail for event in RunReader(folder).events("resumed")] == ["from rl-000002"]
    assert differences(facts(folder), reference) == []


def test_the_comparison_sees_damage_that_is_not_noticed(
    stopped: Copy, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    flip_a_bit(folder / "checkpoints" / "rl-000003" / "model.safetensors")
    monkeypatch.setattr(checkpoint, "verify", lambda path: "")
    resume_run(folder)
    assert "final model.safetensors" in differences(facts(folder), reference)


def test_a_checkpoint_without_its_row_gets_it_on_resume(stopped: Copy) -> None:
    """As after a kill between the two."""
    folder, ask = stopped(), StopAt("rl", 4)
    connection = sqlite3.connect(RunLayout(folder).control)
    connection.execute("DELETE FROM checkpoints WHERE name = 'rl-000003'")
    connection.commit()
    connection.close()
    with pytest.raises(RunStopped, match="stopped on request"):
        resume_run(folder, watch=ask.watch, stop=ask.stop)
    rows = {row.name: row.sha256 for row in RunReader(folder).checkpoints()}
    on_disk = {ref.name: ref.sha256 for ref in checkpoint.list_checkpoints(folder / "checkpoints")}
    assert {"rl-000003", "rl-000004"} <= on_disk.keys()
    assert {name: rows.get(name) for name in on_disk} == on_disk


@pytest.mark.parametrize("kind", [Optimizer, TaskCursor])
def test_the_comparison_sees_state_that_was_left_out(
    stopped: Copy, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    folder = stopped()
    monkeypatch.setattr(kind, "restore", lambda self, state: None)
    resume_run(folder)
    found = differences(facts(folder), reference)
    assert "final model.safetensors" in found
    assert "scalar rl/3 reward/mean" not in found


# -- other recipes ----------------------------------------------------------------------------------------------------


def half_precision(parent: Path, folder: Path, outside: dict[str, Any]) -> None:
    """Stopped after SFT step 2, it must still store the means over steps 1 to 3."""
    short = ("warm_start.steps=3", "rl.steps=1", "evaluation.before=false", "evaluation.tasks=2")
    start_run(tiny_recipe("model.dtype=bfloat16", *short), folder, **outside)


def fork_with_reference(parent: Path, folder: Path, outside: dict[str, Any]) -> None:
    changes = ("rl.kl_weight=0.1", "rl.updates=2", "rl.schedule=cosine", "rl.baseline=leave_one_out", "rl.steps=3")
    recipe = forked_recipe(parent, [*changes, "evaluation.tasks=2"])
    fork_run(parent, recipe, folder, checkpoint="rl-000000", outside=Outside(**outside))


def adapters(parent: Path, folder: Path, outside: dict[str, Any]) -> None:
    """Adapters on a model from elsewhere: that of the warm start, exported."""
    model = folder.parent / "exported"
    if not model.exists():
        export_run(parent, model, f"sft-{SFT_STEPS:06d}")
    changes = ("model.lora.rank=4", "rl.kl_weight=0.1", "rl.lr=1e-2", "rl.steps=3", "warm_start.steps=0")
    recipe = tiny_recipe(f"model.path={model}", *changes, "evaluation.before=false", "evaluation.tasks=2")
    start_run(recipe, folder, **outside)


@pytest.mark.parametrize(
    ("start", "moment"), [(half_precision, ("sft", 2)), (fork_with_reference, ("rl", 2)), (adapters, ("rl", 2))]
)
def test_resume_is_exact_with(
    finished_run: Path, tmp_path: Path, start: Callable[..., None], moment: tuple[str, int]
) -> None:
    start(finished_run, tmp_path / "whole", {})
    ask = StopAt(*moment)
    with pytest.raises(RunStopped, match="stopped on request"):
        start(finished_run, tmp_path / "stopped", {"watch": ask.watch, "stop": ask.stop})
    status = RunReader(tmp_path / "stopped").status()
    assert (status.state, status.live) == (RunState.STOPPED, False)
    resume_run(tmp_path / "stopped")
    whole = facts(tmp_path / "whole")
    assert differences(facts(tmp_path / "stopped"), whole) == []
    if start is not half_precision:
        assert float.fromhex(whole["scalar rl/3 kl_reference_nats_mean"]) > 0


@pytest.mark.parametrize("step", [1, 6])
def test_a_stored_step_replays_to_the_same_loss(finished_run: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    found = replay_step(finished_run, step, lambda text: None)
    assert found.bit_equal
    assert found.stored_loss != 0.0
    if step > 1:
        assert (found.checkpoint, found.replayed_steps) == ("rl-000004", 2)
        monkeypatch.setattr(Optimizer, "restore", lambda self, state: None)
        assert not replay_step(finished_run, step, lambda text: None).same


# -- runs that are not resumed ----------------------------------------------------------------------------------------


def test_a_finished_run_is_left_as_it_is(finished_run: Path) -> None:
    def stamps() -> dict[str, int]:
        passing = ("-wal", "-shm", RunLayout(finished_run).lock.name)
        files = (path for path in finished_run.rglob("*") if path.is_file() and not path.name.endswith(passing))
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = stamps()
    said: list[str] = []
    resume_run(finished_run, watch=lambda progress: said.append(progress.message))
    assert said == ["the run is finished; there is nothing left to do"]
    assert stamps() == before
    assert RunReader(finished_run).status().state is RunState.FINISHED


def test_resuming_a_finished_run_by_command_ends_with_0(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run, tmp_path / "done")
    assert main(["resume", "done", "--root", str(tmp_path)]) == 0
    assert "the run is finished; there is nothing left to do" in capsys.readouterr().out


def test_changed_tasks_are_refused_and_another_change_of_the_source_is_said(
    stopped: Copy, tmp_path: Path, reference: dict[str, Any]
) -> None:
    folder, source = stopped(), tmp_path / "own_env.py"
    shutil.copy(SLEEPY, source)
    point_at(folder, source)
    text = source.read_text()
    source.write_text(text.replace('"train": 26', '"train": 27') + "\n")
    before = RunReader(folder).status().state
    with pytest.raises(StoreError, match=r"tasks of split 'train' have changed.*fork"):
        resume_run(folder)
    assert RunReader(folder).status().state is before is RunState.STOPPED
    source.write_text(text + "\n# Another comment.\n")
    said: list[str] = []
    resume_run(folder, watch=lambda progress: said.append(progress.message))
    (event,) = RunReader(folder).events("source_changed")
    assert event.detail in said
    assert "own_env.py has changed" in event.detail
    assert differences(facts(folder), reference) == []


def test_other_arithmetic_is_said(stopped: Copy) -> None:
    folder = stopped()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert machine_notice(folder, stored_recipe(folder)) == ""
    del manifest["hardware"]["processor"]  # Of a run that an earlier version wrote.
    manifest["versions"]["torch"] = "1.0"
    manifest["hardware"]["compiled_decode"] ^= True
    (folder / "manifest.json").write_text(json.dumps(manifest))
    said: list[str] = []
    resume_run(folder, watch=lambda progress: said.append(progress.message))
    (event,) = RunReader(folder).events("machine_changed")
    assert event.detail in said
    assert "torch: 1.0 then" in event.detail
    assert "compiled decode: " in event.detail
    assert "processor" not in event.detail


def point_at(folder: Path, source: Path) -> None:
    """Let a stored run believe that it was started with another file of the same content."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"]["environment"]["name"] = str(source)
    (folder / "manifest.json").write_text(json.dumps(manifest))
