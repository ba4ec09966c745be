"""Finding runs, and keeping them within a disk budget without touching what is alive."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from burnish.core.errors import StoreError
from burnish.store import runs
from burnish.store.layout import RunLayout
from burnish.store.rows import RunState, StepRecord
from burnish.store.runs import find_run, list_runs, prune
from burnish.store.writer import RunWriter

CHECKPOINT_BYTES = 100_000


def make_run(root: Path, name: str, *, checkpoints: int = 2, state: RunState = RunState.FINISHED) -> None:
    with RunWriter.create(root / name, {"name": name}) as writer:
        for step in range(1, checkpoints + 1):
            folder = writer.layout.checkpoints / f"rl-{step}"
            folder.mkdir()
            (folder / "weights").write_bytes(b"\0" * CHECKPOINT_BYTES)
            writer.commit_step(StepRecord(phase="rl", step=step))
            writer.record_checkpoint(folder.name, phase="rl", step=step, sha256="ab")
        writer.set_status(state)
    time.sleep(0.002)  # Creation times order the runs.


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("able", "baker", "charlie"):
        make_run(tmp_path, name)
    (tmp_path / "notes").mkdir()
    return tmp_path


def left(root: Path) -> dict[str, list[str]]:
    return {
        path.name: sorted(folder.name for folder in RunLayout(path).checkpoints.iterdir())
        for path in sorted(root.iterdir())
        if RunLayout(path).control.exists()
    }


def test_runs_are_listed_oldest_first_with_their_state_and_size(root: Path) -> None:
    listed = list_runs(root)
    assert [run.name for run in listed] == ["able", "baker", "charlie"]
    assert {run.status.state for run in listed} == {RunState.FINISHED}
    assert all(run.size_bytes > 2 * CHECKPOINT_BYTES for run in listed)
    assert [(run.n_steps, run.last_step) for run in listed] == [(2, "rl/2")] * 3
    assert list_runs(root / "absent") == []


def test_a_run_is_found_by_name_beginning_path_or_latest(root: Path) -> None:
    assert find_run(root, "baker") == root / "baker"
    assert find_run(root, "ch") == root / "charlie"
    assert find_run(root, "latest") == root / "charlie"
    assert find_run("elsewhere", str(root / "able")) == root / "able"


def test_what_is_not_found_gets_a_suggestion(root: Path) -> None:
    with pytest.raises(StoreError, match=r"no run 'bakr' .*did you mean baker\?"):
        find_run(root, "bakr")
    with pytest.raises(StoreError, match="runs list"):
        find_run(root, "zzzzzz")
    with pytest.raises(StoreError, match="runs list"):
        find_run(root, "")
    make_run(root, "bach")
    with pytest.raises(StoreError, match="'ba' fits 2 runs: bach, baker"):
        find_run(root, "ba")
    with pytest.raises(StoreError, match="there are no runs"):
        find_run(root / "absent", "latest")


def budget(root: Path, checkpoints_to_lose: float) -> int:
    return sum(run.size_bytes for run in list_runs(root)) - int(checkpoints_to_lose * CHECKPOINT_BYTES)


def test_within_its_budget_nothing_is_removed(root: Path) -> None:
    assert prune(root, max_bytes=budget(root, 0), keep_last=0) == []


def test_older_checkpoints_go_first_then_the_newest_then_runs(root: Path) -> None:
    removed = prune(root, max_bytes=budget(root, 0.5), keep_last=0)
    assert [(r.run, r.what) for r in removed] == [("able", "checkpoint rl-1")]
    prune(root, max_bytes=budget(root, 2.5), keep_last=0)
    assert left(root) == {"able": [], "baker": ["rl-2"], "charlie": ["rl-2"]}
    removed = prune(root, max_bytes=0, keep_last=1)
    assert [(r.run, r.what) for r in removed] == [("baker", "checkpoint rl-2"), ("able", "run"), ("baker", "run")]
    assert left(root) == {"charlie": ["rl-2"]}
    assert list(root.glob(".deleted*")) == []


def test_a_dry_run_removes_nothing_and_says_the_same(root: Path) -> None:
    before = left(root)
    planned = prune(root, max_bytes=0, keep_last=1, dry_run=True)
    assert left(root) == before
    assert prune(root, max_bytes=0, keep_last=1) == planned
    assert sum(removal.size_bytes for removal in planned) > 4 * CHECKPOINT_BYTES


def test_a_run_that_is_written_to_is_never_touched(root: Path) -> None:
    with RunWriter.open(root / "able"):
        prune(root, max_bytes=0, keep_last=0)
        assert left(root) == {"able": ["rl-1", "rl-2"]}
    assert [removal.run for removal in prune(root, max_bytes=0, keep_last=0)] == ["able"] * 3, "the lock was the reason"


def test_a_run_that_comes_alive_while_pruning_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = list_runs(root)
    monkeypatch.setattr(runs, "list_runs", lambda _: stale)
    with RunWriter.open(root / "able"):
        removed = prune(root, max_bytes=0, keep_last=0)
    assert {removal.run for removal in removed} == {"baker", "charlie"}
    assert "able" in left(root)


def test_an_interrupted_removal_is_finished_later(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: Path, **_: object) -> None:
        if Path(path).exists():
            raise PermissionError("interrupted")

    monkeypatch.setattr(runs.shutil, "rmtree", stop)
    with pytest.raises(StoreError, match=re.escape(str(root / "able" / "checkpoints" / "rl-1"))):
        prune(root, max_bytes=budget(root, 0.5), keep_last=0)
    monkeypatch.undo()
    assert left(root)["able"] == ["rl-1.tmp", "rl-2"], "what was half removed must not look whole"
    prune(root, max_bytes=0, keep_last=0)
    assert left(root) == {}


def test_nonsense_is_refused(root: Path) -> None:
    with pytest.raises(StoreError, match="max_bytes >= 0"):
        prune(root, max_bytes=-1)
