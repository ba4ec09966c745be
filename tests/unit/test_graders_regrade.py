"""Regrading a stored run: what is compared, what is streamed, and what the command prints."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from burnish.cli import main
from burnish.cli.regrade import tasks_by_hash
from burnish.core.cost import EpisodeCost
from burnish.core.errors import StoreError
from burnish.core.grade import Grade
from burnish.core.outcome import Ending, Outcome, Owner
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.graders.aggregate import WeightedSum
from burnish.graders.cost import TokenCost
from burnish.graders.function import FunctionGrader
from burnish.graders.graph import graph_from
from burnish.graders.node import GraderNode
from burnish.graders.regrade import BATCH, Regrade, Regraded, stored_batches
from burnish.graders.rules import ExactGrader
from burnish.loop.config import Recipe
from burnish.loop.worlds import load_world
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory
from burnish.store.writer import RunWriter
from burnish.testing.grader import answered

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
ANSWERS = ("4", "5", "four", "4.0")
BROKEN = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="crash")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two RL steps of one group each, the second with a member that may not carry a reward, and an evaluation."""
    tasks = tmp_path / "sums.jsonl"
    tasks.write_text('{"prompt": "2 + 2?", "answer": "4"}\n')
    options = {"heldout_share": 0.0}
    recipe = Recipe.model_validate({"environment": {"name": str(tasks), "options": options}, "rl": {"steps": 2}})
    task = load_world(str(tasks), options, seed=0).tasks("train")[0]
    folder = tmp_path / "runs" / "stored"
    with RunWriter.create(folder, {"recipe": recipe.model_dump(mode="json")}) as writer:
        for phase, step in (("rl", 1), ("rl", 2), ("eval", 1)):
            rows = [
                row(task, phase, step, index, text, BROKEN if (step, index) == (2, 3) else None)
                for index, text in enumerate(ANSWERS)
            ]
            writer.commit_step(StepRecord(phase=phase, step=step, policy_version=step, rows=rows))
    return folder


def row(task: Task, phase: str, step: int, index: int, text: str, outcome: Outcome | None) -> StoredTrajectory:
    made = dataclasses.replace(
        answered(task, text, **({"outcome": outcome} if outcome else {})),
        id=f"{phase}/{step:06d}/0000/{index:02d}",
        group_id=f"{phase}/{step:06d}/0000",
        sample_index=index,
    )
    grade: Grade = ExactGrader().judge(task, made)
    return StoredTrajectory(
        trajectory=made,
        phase=phase,
        step=step,
        policy_version=step,
        fate=Fate.FAILED if outcome else Fate.TRAINED,
        grades=(grade,),
        reward=grade.score,
    )


def regraded(run: Path, data: dict[str, Any], **fields: Any) -> Regraded:
    reader = RunReader(run)
    recipe = Recipe.model_validate(reader.manifest()["recipe"])
    world = load_world(recipe.environment.name, recipe.environment.options, seed=0)
    graph = graph_from(data)
    setting = Regrade(
        graders=graph.graders,
        aggregator=graph.aggregator,
        tasks=fields.pop("tasks", tasks_by_hash(world)),
        share=lambda step: step / 2,
        **fields,
    )
    return asyncio.run(setting.run(reader.layout, reader.steps()))


def test_equal_graders_change_nothing(run: Path) -> None:
    found = regraded(run, {"graders": {"exact": {"use": "exact"}}})
    exact = found.graders["exact"]
    assert (found.trajectories, found.excluded, found.unknown_tasks) == (12, 1, 0)
    assert (exact.n, exact.changed, exact.mean_old, exact.mean_new) == (11, 0, exact.mean_new, 3 / 11)
    assert (found.reward.changed, found.groups, found.signal_old, found.signal_new) == (0, 2, 2, 2)


def test_a_wider_grader_flips_what_it_accepts(run: Path) -> None:
    found = regraded(run, {"graders": {"exact": {"use": "numeric"}}})
    exact = found.graders["exact"]
    assert (exact.up, exact.down, exact.changed) == (2, 0, 2), "4.0 counts, except where its world crashed"
    assert [example[0] for example in exact.examples] == ["rl/000001/0000/03", "eval/000001/0000/03"] or [
        example[0] for example in exact.examples
    ] == ["eval/000001/0000/03", "rl/000001/0000/03"]
    assert exact.examples[0][1:] == (0.0, 1.0)


def test_old_and_new_graders_stand_side_by_side(run: Path) -> None:
    found = regraded(run, {"graders": {"numeric": {"use": "numeric"}}})
    old, new = found.graders["exact"], found.graders["numeric"]
    assert (old.mean_old, old.mean_new, old.n_new) == (3 / 11, None, 0)
    assert (new.mean_old, new.mean_new, new.up, new.changed) == (None, 5 / 11, 0, 11)


def test_gates_and_failures_are_told_apart(run: Path) -> None:
    data = {"graders": {"number": {"use": "numeric", "gate": 1.0, "weight": 0.0},
                        "exact": {"use": "exact", "requires": ["number"]},
                        "state": {"use": "state", "weight": 0.0}}}  # fmt: skip
    found = regraded(run, data)
    assert (found.graders["exact"].skipped, found.graders["exact"].causes) == (6, {"skipped:gate": 6})
    assert found.graders["state"].causes == {"task_cannot_be_judged": 11}
    assert found.reward.n_new == 11, "a closed gate excludes nobody"
    assert found.reward.changed == 0


def test_weights_are_those_of_the_step(run: Path) -> None:
    data = {"graders": {"exact": {"use": "exact"},
                        "numeric": {"use": "numeric", "weight": [[0.5, 0.0], [1.0, 2.0]]}}}  # fmt: skip
    rewards: dict[str, float] = {}
    regraded(run, data, sink=lambda row: rewards.update({row["id"]: row["reward"]}))
    assert [rewards[f"rl/00000{step}/0000/00"] for step in (1, 2)] == [1.0, 3.0]
    assert rewards["eval/000001/0000/00"] == 1.0, "evaluations are on a scale from 0 to 1"
    assert rewards["rl/000002/0000/03"] is None


def test_costs_are_charged_as_in_training(run: Path) -> None:
    class Fixed(TokenCost):
        def price(self, action_tokens: int) -> float:
            return 0.25

    charge = Fixed(per_1k_tokens=1.0, mode="always")
    assert EpisodeCost is not None
    found = regraded(run, {"graders": {"exact": {"use": "exact"}}}, charge=charge)
    assert found.reward.mean_new == pytest.approx((3 - 7 * 0.25) / 11)


def test_tasks_that_are_gone_are_counted_and_nothing_else(run: Path) -> None:
    found = regraded(run, {"graders": {"exact": {"use": "exact"}}}, tasks={})
    assert (found.trajectories, found.unknown_tasks, found.reward.n, found.graders) == (12, 12, 0, {})


def test_a_grader_that_fails_gives_none_and_the_rest_goes_on(run: Path) -> None:
    def fails(task: Task, trajectory: Trajectory) -> float:
        raise OSError("no judge")

    reader = RunReader(run)
    recipe = Recipe.model_validate(reader.manifest()["recipe"])
    world = load_world(recipe.environment.name, recipe.environment.options, seed=0)
    nodes: Any = [GraderNode(grader=ExactGrader()), GraderNode(name="judge", grader=FunctionGrader(fails))]
    setting = Regrade(
        graders=nodes, aggregator=WeightedSum({"exact": 1.0}), tasks=tasks_by_hash(world), share=lambda step: 1.0
    )
    found = asyncio.run(setting.run(reader.layout, reader.steps()))
    assert found.graders["judge"].causes == {"grader_error:OSError": 11}
    assert found.reward.changed == 0


def test_a_segment_that_was_changed_is_refused(run: Path) -> None:
    reader = RunReader(run)
    info = reader.steps("rl")[0]
    assert [len(batch) for batch in stored_batches(reader.layout, info, 3)] == [3, 1]
    path = reader.layout.segment(info.segment)
    os.chmod(path, 0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="not as it was written"):
        next(stored_batches(reader.layout, info))
    path.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        next(stored_batches(reader.layout, info))
    assert BATCH > 0


GRAPH = '[graders.exact]\nuse = "numeric"\n[graders.a_grader_with_a_very_long_name]\nuse = "exact"\nweight = 0.0\n'


def command(run: Path, *words: str) -> int:
    return main(["regrade", run.name, "--root", str(run.parent), *words])


def test_the_command_prints_a_table_that_fits(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.toml").write_text(GRAPH)
    out = tmp_path / "new.jsonl"
    assert command(run, "--graders", str(tmp_path / "new.toml"), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert "12 trajectories" in printed
    assert "1 excluded" in printed
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12
    assert {grade["grader"] for grade in rows[0]["grades"]} == {"exact", "a_grader_with_a_very_long_name"}
    assert command(run, "--out", str(out)) == 2, "nothing is overwritten"


def test_the_command_gives_json_and_takes_the_runs_own_graders(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(run, "--json", "--phase", "rl") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trajectories"], found["reward"]["changed"], found["graders"]["exact"]["changed"]) == (8, 0, 0)
    assert command(run, "--phase", "sft") == 1
    assert command(run, "--graders", "no.toml") == 2


def test_regrading_needs_no_torch(run: Path) -> None:
    program = (
        "import sys; from burnish.cli import main;"
        f"code = main(['regrade', {run.name!r}, '--root', {str(run.parent)!r}, '--json']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_the_benchmark_runs_and_its_right_answers_are_right(tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "regrade.py"), "--quick", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["holds"] is None
    assert found["results"][0]["math_none"] == 0
    assert found["results"][0]["math_mean"] == found["results"][0]["truth_mean"]
    assert max(len(line) for line in done.stdout.splitlines()[:-1]) <= 80


def test_problems_of_the_benchmark_can_be_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from random import Random

    from burnish.graders.mathematics import compare, stated

    monkeypatch.syspath_prepend(str(FOLDER))
    bench = importlib.import_module("regrade")
    rng = Random(3)
    for _ in range(12):
        _, reference, right, wrong = bench.problem(rng)
        assert compare([reference], stated(right))["score"] == 1.0
        assert compare([reference], stated(wrong[0]))["score"] == 0.0
