"""A full disk is a clear error: acknowledged steps stay readable, and the step can be written once there is space."""

from __future__ import annotations

import errno
import os
import subprocess
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from burnish.core.errors import StoreError
from burnish.core.message import Message
from burnish.core.outcome import COMPLETED
from burnish.core.trajectory import Node, Trajectory
from burnish.store import files
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, RunState, StepRecord, StoredTrajectory
from burnish.store.writer import RunWriter

FULL = "the disk is full; free some space"


def record(step: int, n_tokens: int = 50_000, n_scalars: int = 1) -> StepRecord:
    """A step whose tokens do not compress."""
    ids = array("i", np.random.default_rng(step).integers(0, 2**31 - 1, size=n_tokens, dtype=np.int32).tobytes())
    node = Node(
        parent=-1,
        messages=(Message.assistant("33"),),
        token_ids=ids,
        action_mask=array("b", [1]) * n_tokens,
        logprobs=array("f", [-0.5]) * n_tokens,
        versions=array("i", [0]) * n_tokens,
        is_action=True,
    )
    trajectory = Trajectory(
        id=f"rl/{step}",
        task_id="t",
        task_hash="h",
        group_id="g",
        sample_index=0,
        seed=0,
        nodes=(node,),
        outcome=COMPLETED,
    )
    row = StoredTrajectory(trajectory=trajectory, phase="rl", step=step, policy_version=0, fate=Fate.TRAINED)
    scalars = {f"metric/{index:05d}": 0.5 for index in range(n_scalars)}
    return StepRecord(phase="rl", step=step, rows=[row] if n_tokens else [], scalars=scalars)


def check(run: Path, committed: list[StepRecord]) -> None:
    """Exactly the committed steps exist, and each is whole."""
    reader = RunReader(run)
    assert [info.step for info in reader.steps()] == [step.step for step in committed]
    for step in committed:
        ids = [row.trajectory.nodes[0].token_ids for row in reader.trajectories("rl", step.step)]
        assert ids == [row.trajectory.nodes[0].token_ids for row in step.rows]
        assert len(reader.step_scalars("rl", step.step)) == len(step.scalars)
    assert reader.verify() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "disk"
    mount.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("filler", ["segments", "scalars"])
def test_a_full_disk_loses_nothing(small_disk: Path, filler: str) -> None:
    run = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 3_000_000)
    committed: list[StepRecord] = []

    def fill(writer: RunWriter) -> None:
        for step in range(200):
            new = record(step) if filler == "segments" else record(step, n_tokens=0, n_scalars=3000)
            writer.commit_step(new)
            committed.append(new)

    with RunWriter.create(run, {}) as writer:
        with pytest.raises(StoreError, match=FULL):
            fill(writer)
        assert committed, "some steps were meant to fit"
        check(run, committed)
        ballast.unlink()
        new = record(len(committed), *(() if filler == "segments" else (0, 3000)))
        writer.commit_step(new)
        committed.append(new)
        writer.set_status(RunState.STOPPED, "disk full")
        check(run, committed)
    with RunWriter.open(run):
        check(run, committed)


def test_a_finished_run_on_a_medium_that_cannot_be_written_is_readable(small_disk: Path) -> None:
    run = small_disk / "run"
    with RunWriter.create(run, {}) as writer:
        writer.commit_step(record(0, n_tokens=10))
        writer.set_status(RunState.FINISHED)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert RunReader(run).status().state is RunState.FINISHED
    assert RunReader(run).query("SELECT count(*) AS n FROM tokens").to_pylist() == [{"n": 10}]
    with pytest.raises(StoreError):
        RunWriter.open(run)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_segment_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first, second = record(0, 100), record(1, 100)
    with RunWriter.create(tmp_path / "run", {}) as writer:
        writer.commit_step(first)
        monkeypatch.setattr(*((files.os, "fsync", full) if call == "fsync" else (Path, "replace", full)))
        with pytest.raises(StoreError, match=FULL):
            writer.commit_step(second)
        monkeypatch.undo()
        assert len(list(writer.layout.segments.iterdir())) == 1
        check(tmp_path / "run", [first])
        writer.commit_step(second)
        check(tmp_path / "run", [first, second])


def test_a_database_that_cannot_grow_takes_the_segment_back(tmp_path: Path) -> None:
    first, second = record(0, 100), record(1, 100, n_scalars=5000)
    with RunWriter.create(tmp_path / "run", {}) as writer:
        writer.commit_step(first)
        pages = writer._connection.execute("PRAGMA page_count").fetchone()[0]
        writer._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError, match=FULL):
            writer.commit_step(second)
        assert len(list(writer.layout.segments.iterdir())) == 1
        check(tmp_path / "run", [first])
        writer._connection.execute("PRAGMA max_page_count = 1000000")
        writer.commit_step(second)
        check(tmp_path / "run", [first, second])


def test_the_check_sees_a_step_that_is_not_whole(tmp_path: Path) -> None:
    first = record(0, 100)
    with RunWriter.create(tmp_path / "run", {}) as writer:
        info = writer.commit_step(first)
        with pytest.raises(AssertionError):
            check(tmp_path / "run", [])
        writer.layout.segment(info.segment).write_bytes(b"torn")
    with pytest.raises(StoreError):
        check(tmp_path / "run", [first])


def test_another_error_of_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with RunWriter.create(tmp_path / "run", {}) as writer:
        monkeypatch.setattr(files.os, "fsync", broken)
        with pytest.raises(StoreError, match="Input/output error; check the disk"):
            writer.commit_step(record(0, 10))
