"""A run directory against a model of it in memory, through commits, refusals, resumes, clean and sudden ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from array import array
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from burnish.core.errors import StoreError
from burnish.core.message import Message
from burnish.core.outcome import COMPLETED
from burnish.core.trajectory import Node, Trajectory
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory, step_order
from burnish.store.writer import RunWriter

PHASES = st.sampled_from(["sft", "rl"])
STEPS = st.integers(0, 3)


def stored(phase: str, step: int, sample: int) -> StoredTrajectory:
    only = Node(
        parent=-1,
        messages=(Message.assistant("33"),),
        token_ids=array("i", [sample, step]),
        action_mask=array("b", [1, 1]),
        logprobs=array("f", [-0.5, -0.25]),
        versions=array("i", [0, 0]),
        is_action=True,
    )
    trajectory = Trajectory(
        id=f"{phase}/{step}/{sample}",
        task_id="t",
        task_hash="h",
        group_id="g",
        sample_index=sample,
        seed=0,
        nodes=(only,),
        outcome=COMPLETED,
    )
    return StoredTrajectory(trajectory=trajectory, phase=phase, step=step, policy_version=0, fate=Fate.TRAINED)


class StoreMachine(RuleBasedStateMachine):
    """The model: acknowledged steps by (phase, step), each with its attempt, number of trajectories and one scalar."""

    @initialize()
    def create(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="burnish-store-")) / "run"
        self.writer = RunWriter.create(self.root, {"seed": 1})
        self.reader = RunReader(self.root)
        self.live: dict[tuple[str, int], tuple[int, int, float]] = {}
        self.superseded = 0
        self.attempt = 0

    @rule(phase=PHASES, step=STEPS, n=st.integers(0, 3), value=st.floats(allow_nan=False))
    def commit(self, phase: str, step: int, n: int, value: float) -> None:
        rows = [stored(phase, step, sample) for sample in range(n)]
        record = StepRecord(phase=phase, step=step, rows=rows, scalars={"v": value})
        if (phase, step) in self.live:
            with pytest.raises(StoreError, match="already committed"):
                self.writer.commit_step(record)
        else:
            self.writer.commit_step(record)
            self.live[phase, step] = (self.attempt, n, value)

    @rule(phase=PHASES, step=STEPS)
    def fail_to_commit(self, phase: str, step: int) -> None:
        record = StepRecord(phase=phase, step=step, rows=[stored(phase, step, 0)], scalars={"v": "high"})  # type: ignore[dict-item]
        with pytest.raises(StoreError):
            self.writer.commit_step(record)

    @rule(last=st.dictionaries(PHASES, st.integers(-1, 3)))
    def resume(self, last: dict[str, int]) -> None:
        gone = [(phase, step) for phase, step in self.live if step > last.get(phase, -1)]
        assert self.writer.supersede_after(last) == len(gone)
        for key in gone:
            del self.live[key]
        self.superseded += len(gone)
        self.attempt += 1

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.writer = RunWriter.open(self.root)

    @rule(phase=PHASES, step=STEPS)
    def die_between_segment_and_commit(self, phase: str, step: int) -> None:
        """What a kill leaves: a whole segment or a torn one, an open transaction, a lock that the kernel frees."""
        layout = self.writer.layout
        for name in (f"{phase}-{step:06d}.{self.attempt + 1}.parquet", "torn.parquet.tmp"):
            layout.segment(name).write_bytes(b"torn")
        self.writer._connection.execute("BEGIN IMMEDIATE")
        self.writer._connection.execute("DELETE FROM scalars")
        self.writer._connection.close()
        os.close(self.writer._lock)
        self.writer._closed = True
        self.writer = RunWriter.open(self.root)

    @invariant()
    def what_was_acknowledged_is_what_is_read(self) -> None:
        steps = self.reader.steps()
        assert {(i.phase, i.step): (i.attempt, i.n_trajectories) for i in steps} == {
            key: (attempt, n) for key, (attempt, n, _) in self.live.items()
        }
        assert [step_order(i.phase, i.step) for i in steps] == sorted(step_order(*key) for key in self.live)
        assert len(self.reader.steps(include_superseded=True)) == len(self.live) + self.superseded
        for (phase, step), (attempt, n, value) in self.live.items():
            rows = self.reader.trajectories(phase, step)
            assert [(r.trajectory.id, r.attempt) for r in rows] == [(f"{phase}/{step}/{s}", attempt) for s in range(n)]
            assert self.reader.step_scalars(phase, step) == {"v": value}

    @invariant()
    def nothing_is_damaged_or_orphaned(self) -> None:
        assert self.reader.verify() == []
        named = {info.segment for info in self.reader.steps(include_superseded=True) if info.segment}
        assert {path.name for path in self.writer.layout.segments.iterdir()} == named

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()
            shutil.rmtree(self.root.parent)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=14, deadline=None)
TestStore = StoreMachine.TestCase


def test_the_model_sees_a_step_that_was_lost() -> None:
    machine = StoreMachine()
    machine.create()
    machine.commit("rl", 1, 2, 0.5)
    machine.what_was_acknowledged_is_what_is_read()
    machine.writer._connection.execute("DELETE FROM scalars")
    with pytest.raises(AssertionError):
        machine.what_was_acknowledged_is_what_is_read()
    machine.teardown()
