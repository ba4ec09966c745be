"""kill -9 at random moments: acknowledged steps are whole, and at most one step more than was acknowledged exists."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from burnish.store.reader import RunReader
from burnish.store.writer import RunWriter

# Imports are paid once: a child is forked for each round, writes until it is killed, and its parent reaps it.
NURSERY = """
import os, sys
from array import array
from burnish.core.message import Message
from burnish.core.outcome import COMPLETED
from burnish.core.trajectory import Node, Trajectory
from burnish.store import files
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory
from burnish.store.writer import RunWriter
import time

def stored(step, sample):
    node = Node(parent=-1, messages=(Message.assistant("x" * 200),), token_ids=array("i", range(step, step + 60)),
                action_mask=array("b", [1] * 60), logprobs=array("f", [-0.5] * 60), versions=array("i", [0] * 60),
                is_action=True)
    trajectory = Trajectory(id=f"rl/{step}/{sample}", task_id="t", task_hash="h", group_id="g", sample_index=sample,
                            seed=0, nodes=(node,), outcome=COMPLETED)
    return StoredTrajectory(trajectory=trajectory, phase="rl", step=step, policy_version=0, fate=Fate.TRAINED)

def write(path, broken):
    writer = RunWriter.open(path)
    later = []
    durable = files.write_durably
    if broken:
        files.write_durably = lambda path, data: later.append((path, data))
    steps = RunReader(path).steps()
    step = steps[-1].step + 1 if steps else 0
    while True:
        writer.commit_step(StepRecord(phase="rl", step=step, rows=[stored(step, s) for s in range(16)],
                                      scalars={"v": step / 7}))
        if broken:
            time.sleep(0.02)
            durable(*later.pop())
        os.write(1, f"{step}\\n".encode())
        step += 1

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write(sys.argv[1], sys.argv[2] == "broken")
    os.write(1, f"pid {child}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"gone\\n")
"""


class Nursery:
    """A process that forks writers on request."""

    def __init__(self, run: Path, mode: str) -> None:
        command = [sys.executable, "-c", NURSERY, str(run), mode]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        assert self.stdout.readline() == "ready\n"

    def round(self, rng: random.Random) -> list[int]:
        """Start a writer, kill it some time after its first acknowledgement, return the acknowledged steps."""
        self.stdin.write("go\n")
        pid, acknowledged = 0, []
        while not (pid and acknowledged):
            word = self.stdout.readline().split()
            if word[0] == "pid":
                pid = int(word[1])
            else:
                acknowledged.append(int(word[0]))
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        for line in self.stdout:
            if line == "gone\n":
                break
            acknowledged.append(int(line))
        return acknowledged

    def close(self) -> None:
        self.stdin.close()
        self.process.wait(timeout=10)
        self.stdout.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    RunWriter.create(tmp_path / "run", {}).close()
    return tmp_path / "run"


def rounds(run: Path, mode: str, count: int) -> Iterator[tuple[list[int], RunReader]]:
    nursery = Nursery(run, mode)
    rng = random.Random(1)
    try:
        for _ in range(count):
            yield nursery.round(rng), RunReader(run)
    finally:
        nursery.close()


def faults(acknowledged: list[int], reader: RunReader) -> list[str]:
    """What the store promises and does not hold, given every step that was ever acknowledged."""
    found = list(reader.verify())
    steps = [info.step for info in reader.steps()]
    if steps != list(range(len(steps))):
        found.append(f"steps are not in a row: {steps}")
    if not len(acknowledged) <= len(steps) <= len(acknowledged) + 1:
        found.append(f"{len(steps)} steps exist, {len(acknowledged)} were acknowledged")
    for step in steps[-3:]:
        if reader.step_scalars("rl", step) != {"v": step / 7}:
            found.append(f"step {step} lost its scalars")
        if not found and [r.trajectory.nodes[0].token_ids[0] for r in reader.trajectories("rl", step)] != [step] * 16:
            found.append(f"step {step} lost trajectories")
    return found


def test_ten_kills_lose_nothing_acknowledged(run: Path) -> None:
    acknowledged: list[int] = []
    for new, reader in rounds(run, "sound", 10):
        acknowledged += new
        assert faults(acknowledged, reader) == []
        assert not reader.status().live
        # A step that was committed and not acknowledged counts from now on: its writer's successor goes on after it.
        acknowledged = [info.step for info in reader.steps()]
    RunWriter.open(run).close()
    reader = RunReader(run)
    assert {path.name for path in reader.layout.segments.iterdir()} == {info.segment for info in reader.steps()}
    assert len(reader.query("SELECT DISTINCT step FROM trajectories").to_pylist()) == len(acknowledged)


def test_the_check_sees_a_writer_that_commits_before_the_segment_is_durable(run: Path) -> None:
    acknowledged: list[int] = []
    for new, reader in rounds(run, "broken", 10):
        acknowledged += new
        if faults(acknowledged, reader):
            return
        acknowledged = [info.step for info in reader.steps()]
    pytest.fail("ten kills of a broken writer went unseen")
