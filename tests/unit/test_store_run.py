"""One writer, many readers: what is acknowledged can be read, and nothing else."""

from __future__ import annotations

import dataclasses
import math
import random
import re
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import StoreError
from burnish.core.grade import Grade
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import COMPLETED, Ending, Limit, Outcome
from burnish.core.trajectory import Node, Trajectory
from burnish.store import control
from burnish.store.layout import RunLayout
from burnish.store.query import _CONTROL
from burnish.store.reader import RunReader
from burnish.store.rows import EvaluationRow, Event, Fate, RunState, StepRecord, StoredTrajectory
from burnish.store.segments import GRADE_TYPE, NODE_TYPE, SCHEMA
from burnish.store.writer import RunWriter

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def node(parent: int, n_tokens: int, messages: tuple[Message, ...], *, is_action: bool) -> Node:
    return Node(
        parent=parent,
        messages=messages,
        token_ids=array("i", range(n_tokens)),
        action_mask=array("b", [int(is_action)] * n_tokens),
        logprobs=array("f", [-0.5 if is_action else math.nan] * n_tokens),
        versions=array("i", [2 if is_action else -1] * n_tokens),
        is_action=is_action,
    )


def stored(step: int, sample: int = 0, *, phase: str = "rl", fate: Fate = Fate.TRAINED) -> StoredTrajectory:
    """An episode of 64 tokens with two tool calls; reward 1 for even samples."""
    call = ToolCall(id="call_0", name="get_order", arguments={"order_id": step})
    trajectory = Trajectory(
        id=f"{phase}/{step:06d}/0000/{sample:02d}",
        task_id="orders-1",
        task_hash="ab" * 8,
        group_id=f"{phase}/{step:06d}/0000",
        sample_index=sample,
        seed=sample,
        nodes=(
            node(-1, 24, (Message.system("You run a shop."), Message.user("How much is order 12?")), is_action=False),
            node(0, 12, (Message.assistant("", (call,)),), is_action=True),
            node(1, 10, (Message.tool('{"total": 33}', call=call),), is_action=False),
            node(2, 8, (Message.assistant("", (call,)),), is_action=True),
            node(3, 6, (Message.tool("33", call=call),), is_action=False),
            node(4, 4, (Message.assistant("33"),), is_action=True),
        ),
        outcome=COMPLETED if sample else Outcome(ending=Ending.TRUNCATED, limit=Limit.TURNS),
        answer="33",
        tags={"level": "1"},
    )
    return StoredTrajectory(
        trajectory=trajectory,
        phase=phase,
        step=step,
        policy_version=2,
        fate=fate,
        grades=(Grade(grader="exact", version="1", score=float(sample % 2 == 0)),),
        reward=float(sample % 2 == 0),
        advantage=0.5,
    )


def record(step: int, n: int = 2, *, phase: str = "rl", **fields: Any) -> StepRecord:
    scalars = fields.pop("scalars", {"reward/mean": step / 10})
    rows = [stored(step, sample, phase=phase) for sample in range(n)]
    return StepRecord(phase=phase, step=step, policy_version=step + 1, rows=rows, scalars=scalars, **fields)


def evaluation(label: str, phase: str, step: int) -> EvaluationRow:
    return EvaluationRow(
        label=label,
        split="heldout",
        mode="greedy",
        phase=phase,
        step=step,
        n=10,
        successes=4.0,
        mean=0.4,
        low=0.2,
        high=0.7,
        details={"outcomes": {"completed": 10}},
    )


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {"seed": 3, "name": "é"}) as writer:
        event = Event(kind="finding", detail="drift", data={"max": 3e-3})
        evaluated = evaluation("after_sft", "sft", 9)
        scalars = {"loss": math.nan, "reward/mean": 0.1, "x": math.inf}
        info = writer.commit_step(record(1, events=[event], evaluations=[evaluated], scalars=scalars))
        reader = RunReader(tmp_path / "run")
        assert reader.manifest() == {"seed": 3, "name": "é"}
        assert reader.steps() == [info]
        assert (info.n_trajectories, info.n_tokens, info.policy_version) == (2, 128, 2)
        assert reader.evaluations() == [evaluated]
        assert [(e.kind, e.detail, e.data, e.phase, e.step) for e in reader.events()] == [
            ("finding", "drift", {"max": 3e-3}, "rl", 1)
        ]
        assert reader.scalars("reward/mean", "rl") == [(1, 0.1)]
        assert reader.scalars("reward/mean", "sft") == []
        assert math.isnan(reader.step_scalars("rl", 1)["loss"])
        assert reader.step_scalars("rl", 1)["x"] == math.inf
        assert reader.scalar_names("rl") == ["loss", "reward/mean", "x"]
        back = reader.trajectories("rl", 1)
        assert [row.trajectory.id for row in back] == ["rl/000001/0000/00", "rl/000001/0000/01"]
        assert reader.trajectory("rl/000001/0000/01").grades == back[1].grades
        assert reader.verify() == []


def test_a_step_without_trajectories_has_no_segment(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        info = writer.commit_step(record(1, n=0))
    assert (info.segment, RunReader(tmp_path / "run").trajectories("rl", 1)) == ("", [])


def test_phases_come_in_their_order(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        for phase, step in [("sft", 1), ("sft", 2), ("rl", 1), ("eval", 0), ("rl", 2)]:
            writer.commit_step(record(step, n=1, phase=phase))
    reader = RunReader(tmp_path / "run")
    assert [(i.phase, i.step) for i in reader.steps()] == [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2), ("eval", 0)]
    assert reader.all_scalars()["reward/mean"] == [(1, 0.1), (2, 0.2), (1, 0.1), (2, 0.2), (0, 0.0)]


def test_a_step_is_written_once(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        writer.commit_step(record(1))
        with pytest.raises(StoreError, match="step rl/1 is already committed"):
            writer.commit_step(record(1, n=1))
        assert len(RunReader(tmp_path / "run").trajectories("rl", 1)) == 2


def test_a_refused_step_leaves_nothing(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        for bad in (
            record(1, scalars={"loss": "high"}),
            record(1, events=[Event(kind="e", data={"k": {1}})]),
            record(1, evaluations=[dataclasses.replace(evaluation("a", "sft", 1), phase="warmup")]),
        ):
            with pytest.raises(StoreError):
                writer.commit_step(bad)
        assert RunReader(tmp_path / "run").steps() == []
        assert list(writer.layout.segments.iterdir()) == []
        writer.commit_step(record(1))


def test_resume_supersedes_and_keeps(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        for phase, step in [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2)]:
            writer.commit_step(record(step, phase=phase, events=[Event(kind="tick")]))
            writer.record_checkpoint(f"{phase}-{step}", phase=phase, step=step, sha256="ab")
    with RunWriter.open(tmp_path / "run") as writer:
        assert writer.supersede_after({"sft": 2}) == 2
        writer.event("resumed", "from sft/2")
        writer.commit_step(record(1, n=1))
    reader = RunReader(tmp_path / "run")
    assert [(i.phase, i.step, i.attempt) for i in reader.steps()] == [("sft", 1, 0), ("sft", 2, 0), ("rl", 1, 1)]
    assert len(reader.steps(include_superseded=True)) == 5
    assert [row.attempt for row in reader.trajectories("rl", 1)] == [1]
    assert [row.attempt for row in reader.trajectories("rl", 1, attempt=0)] == [0, 0]
    assert [row.attempt for row in reader.trajectories("rl", 2, attempt=0)] == [0, 0]
    with pytest.raises(StoreError, match=re.escape("has no step rl/2; it has sft/1 to sft/2, rl/1 to rl/1")):
        reader.trajectories("rl", 2)
    assert [row.name for row in reader.checkpoints()] == ["sft-1", "sft-2"]
    assert [event.kind for event in reader.events()] == ["tick", "tick", "resumed"]
    assert reader.query("SELECT count(*) AS n FROM trajectories").to_pylist() == [{"n": 5}]
    assert reader.status().attempt == 1
    assert reader.verify() == []


def test_there_is_one_writer(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", {})
    with pytest.raises(StoreError, match=r"is being written by process \d+; wait"):
        RunWriter.open(tmp_path / "run")
    assert RunReader(tmp_path / "run").status().state is RunState.RUNNING
    writer.close()
    writer.close()
    assert RunReader(tmp_path / "run").status().state is RunState.INTERRUPTED
    with RunWriter.open(tmp_path / "run") as again:
        again.set_status(RunState.FINISHED, "all steps done")
    status = RunReader(tmp_path / "run").status()
    assert (status.state, status.detail, status.live) == (RunState.FINISHED, "all steps done", False)
    with pytest.raises(StoreError, match="is closed"):
        writer.commit_step(record(1))
    with pytest.raises(ValueError, match="what a reader concludes"):
        again.set_status(RunState.INTERRUPTED)


def test_a_directory_is_created_once_and_opened_only_if_it_is_a_run(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "run", {}).close()
    with pytest.raises(StoreError, match="already holds a run"):
        RunWriter.create(tmp_path / "run", {})
    for use in (RunWriter.open, RunReader):
        with pytest.raises(StoreError, match="is no run directory"):
            use(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="manifest is not JSON-able"):
        RunWriter.create(tmp_path / "other", {"k": object()})


def test_a_creation_cut_short_is_made_anew(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    layout.manifest.write_text("{}")
    control.connect_writer(layout.control).close()
    with pytest.raises(StoreError, match="store version 0"):
        RunReader(layout.root)
    with RunWriter.create(layout.root, {"seed": 1}):
        assert RunReader(layout.root).manifest() == {"seed": 1}


def test_orphan_segments_are_set_aside(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        info = writer.commit_step(record(1))
        for name in ("rl-000002.0.parquet", "rl-000003.0.parquet.tmp"):
            writer.layout.segment(name).write_bytes(b"torn")
    with RunWriter.open(tmp_path / "run") as writer:
        assert [path.name for path in writer.layout.segments.iterdir()] == [info.segment]
        assert len(list(writer.layout.set_aside.iterdir())) == 2
        writer.commit_step(record(2))
    events = RunReader(tmp_path / "run").events("orphan_segments")
    assert [event.data["segments"] for event in events] == [["rl-000002.0.parquet", "rl-000003.0.parquet.tmp"]]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_segment_is_never_read(tmp_path: Path, damage: str) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        info = writer.commit_step(record(1))
        writer.commit_step(record(2))
    reader = RunReader(tmp_path / "run")
    path = reader.layout.segment(info.segment)
    data = bytearray(path.read_bytes())
    for place in random.Random(0).sample(range(len(data)), 20) if damage == "flip" else [0]:
        if damage == "flip":
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        elif damage == "truncate":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
        with pytest.raises(StoreError, match="segment rl-000001"):
            reader.trajectories("rl", 1)
        assert len(reader.verify()) == 1
    assert len(reader.trajectories("rl", 2)) == 2
    if damage == "remove":
        with pytest.raises(StoreError, match=r"1 segments of .* are missing"):
            reader.query("SELECT 1")


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    RunWriter.create(tmp_path / "run", {}).close()
    RunLayout(tmp_path / "run").control.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        RunReader(tmp_path / "run")


def test_artefacts_are_kept_by_hash(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        sha256 = writer.put_artefact(b"pixels")
        assert writer.put_artefact(b"pixels") == sha256
        reader = RunReader(tmp_path / "run")
        assert reader.artefact(sha256) == b"pixels"
        writer.layout.artefact(sha256).write_bytes(b"pixelz")
        with pytest.raises(StoreError, match="does not hold the bytes"):
            reader.artefact(sha256)
        with pytest.raises(StoreError, match="cannot be read"):
            reader.artefact("00" * 32)


def test_summaries_are_light_and_newest_first(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "run", {}) as writer:
        writer.commit_step(record(1, phase="sft"))
        held_out = [stored(1, sample, fate=Fate.HELD_OUT) for sample in (0, 1)]
        writer.commit_step(StepRecord(phase="rl", step=1, rows=held_out))
        writer.commit_step(record(2))
    reader = RunReader(tmp_path / "run")
    rows = reader.summaries()
    assert [row.id for row in rows][::2] == ["rl/000002/0000/00", "rl/000001/0000/00", "sft/000001/0000/00"]
    first = rows[0]
    assert (first.n_nodes, first.n_tokens, first.action_tokens) == (6, 64, 24)
    assert (first.outcome, rows[1].outcome, first.scores) == ("truncated:turns", "completed", {"exact": 1.0})
    assert len(reader.summaries(limit=3)) == 3
    assert {row.step for row in reader.summaries(fate=Fate.HELD_OUT)} == {1}
    assert {row.phase for row in reader.summaries("sft")} == {"sft"}
    assert len(reader.summaries("rl", step=2)) == 2


def test_views_answer_sql(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path / "o'run", {}) as writer:
        reader = RunReader(tmp_path / "o'run")
        assert reader.query("SELECT count(*) AS n FROM tokens").to_pylist() == [{"n": 0}]
        writer.commit_step(record(1, events=[Event(kind="tick")], evaluations=[evaluation("a", "rl", 1)]))
        writer.commit_step(record(2, scalars={"loss": math.nan}))
    tokens = reader.query(
        "SELECT step, count(*) AS n, sum(is_action::INT) AS actions, avg(logprob) FILTER (is_action) AS mean, "
        "max(position) AS last FROM tokens GROUP BY step ORDER BY step"
    ).to_pylist()
    assert tokens[0] == {"step": 1, "n": 128, "actions": 48, "mean": -0.5, "last": 63}
    assert reader.query("SELECT value FROM scalars WHERE name = ?", ["reward/mean"]).to_pylist() == [{"value": 0.1}]
    assert reader.query("SELECT value FROM scalars WHERE step = 2").to_pylist() == [{"value": None}]
    assert reader.query("SELECT tags->>'$.level' AS level FROM trajectories LIMIT 1").to_pylist() == [{"level": "1"}]
    assert reader.query("SELECT kind, step FROM events").to_pylist() == [{"kind": "tick", "step": 1}]
    assert reader.query("SELECT label, n FROM evaluations").to_pylist() == [{"label": "a", "n": 10}]
    with pytest.raises(StoreError, match="the query failed"):
        reader.query("SELECT nothing FROM nowhere")


def test_documented_columns_and_queries_are_the_real_ones(tmp_path: Path) -> None:
    text = DOCS.read_text()
    documented = set(re.findall(r"`([a-z_0-9]+)`", text))
    columns = set(SCHEMA.names) | {field.name for kind in (GRADE_TYPE, NODE_TYPE) for field in kind}
    for _, schema in _CONTROL.values():
        columns |= set(schema.names)
    assert columns <= documented, f"docs/metrics.md does not name {sorted(columns - documented)}"
    assert not columns | {"a_new_column"} <= documented
    with RunWriter.create(tmp_path / "run", {}) as writer:
        writer.commit_step(record(1))
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert len(queries) >= 2
    for query in queries:
        assert RunReader(tmp_path / "run").query(query).num_rows > 0


def test_readers_see_whole_steps_while_the_writer_writes(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", {})
    done = threading.Event()
    seen: list[int] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            reader = RunReader(tmp_path / "run")
            while not done.is_set():
                steps = reader.steps()
                assert [info.step for info in steps] == list(range(len(steps)))
                assert len(reader.scalars("reward/mean", "rl")) >= len(steps)
                if steps:
                    assert len(reader.trajectories("rl", steps[-1].step)) == 2
                seen.append(len(steps))
        except BaseException as error:  # noqa: BLE001 - a failed assertion in a thread has to reach the test
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(15):
        writer.commit_step(record(step))
        writer.heartbeat()
    done.set()
    for thread in threads:
        thread.join()
    writer.close()
    assert errors == []
    assert len(set(seen)) > 2, "the readers were meant to see the run grow"


def test_a_step_of_256_trajectories_is_committed_in_40_ms_of_cpu_time(tmp_path: Path) -> None:
    rows = [stored(0, sample) for sample in range(256)]
    with RunWriter.create(tmp_path / "run", {}) as writer:
        took = []
        for step in range(8):
            moved = [dataclasses.replace(row, step=step) for row in rows]
            begin = time.process_time()
            writer.commit_step(StepRecord(phase="rl", step=step, rows=moved, scalars={f"m{i}": 0.5 for i in range(40)}))
            took.append(time.process_time() - begin)
    # CPU time, and the fastest: a busy neighbour can slow any of them but speed none up.
    assert min(took) < 0.040, f"fastest of 8 took {min(took) * 1e3:.0f} ms"
