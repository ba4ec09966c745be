"""The synchronous runner is the specification: at staleness 0 the pool gives equal groups, tokens and all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import (
    GROUP_SIZE,
    GROUPS,
    HOSTED,
    RL_STEPS,
    StopAt,
    asynchronous_problems,
    resume_run,
    start_run,
    tiny_recipe,
)

from burnish.core.errors import RunStopped
from burnish.store.reader import RunReader
from burnish.store.rows import RunState, StoredTrajectory

ASYNC = ("rollout.mode=async",)


def rows(folder: Path, step: int) -> list[StoredTrajectory]:
    return sorted(RunReader(folder).trajectories("rl", step), key=lambda row: row.trajectory.id)


def tokens(row: StoredTrajectory) -> list[tuple[int, ...]]:
    return [tuple(node.token_ids) for node in row.trajectory.nodes]


@pytest.fixture(scope="module")
def synchronous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sync") / "run"
    start_run(tiny_recipe("rl.steps=2"), folder)
    return folder


@pytest.mark.parametrize("where", [("run.in_process=true",), ("run.in_process=false", HOSTED)], ids=["one", "workers"])
@pytest.mark.parametrize("weights", ["in_flight", "episode"])
def test_at_staleness_zero_groups_are_those_of_the_synchronous_run(
    synchronous: Path, tmp_path: Path, where: tuple[str, ...], weights: str
) -> None:
    folder = tmp_path / "run"
    start_run(
        tiny_recipe("rl.steps=2", *ASYNC, "rollout.max_staleness=0", f"rollout.weights={weights}", *where), folder
    )
    for one, other in zip(rows(synchronous, 1), rows(folder, 1), strict=True):
        assert one.trajectory.id == other.trajectory.id
        assert one.trajectory.seed == other.trajectory.seed
        assert tokens(one) == tokens(other)
        assert one.trajectory.messages == other.trajectory.messages
        assert (one.fate, one.reward, one.advantage) == (other.fate, other.reward, other.advantage)
        for a, b in zip(one.trajectory.nodes, other.trajectory.nodes, strict=True):
            # Batches differ, so the last bits do.
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=2e-5, equal_nan=True)
            assert a.versions == b.versions
    second = rows(folder, 2)
    assert [(r.trajectory.id, r.trajectory.task_id) for r in second] == [
        (r.trajectory.id, r.trajectory.task_id) for r in rows(synchronous, 2)
    ]
    assert asynchronous_problems(folder) == []
    assert RunReader(folder).scalars("staleness/max", "rl") == [(1, 0.0), (2, 0.0)]


def test_other_tasks_or_seeds_would_be_noticed(synchronous: Path, tmp_path: Path) -> None:
    """Negative control: the comparison above tells runs apart."""
    folder = tmp_path / "run"
    start_run(tiny_recipe("rl.steps=1", *ASYNC, "rollout.max_staleness=0", "run.seed=4"), folder)
    assert [tokens(row) for row in rows(folder, 1)] != [tokens(row) for row in rows(synchronous, 1)]


@pytest.mark.parametrize("settings", [(), ("rollout.weights=episode",), ("rollout.surplus=2", "rollout.max_running=3")])
def test_ahead_of_the_learner_everything_is_accounted_for(tmp_path: Path, settings: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    start_run(tiny_recipe(*ASYNC, "rollout.max_staleness=2", *settings), folder)
    reader = RunReader(folder)
    assert asynchronous_problems(folder) == []
    assert 0 < max(value for _, value in reader.scalars("staleness/max", "rl")) <= 2
    trained = [r.trajectory.id for step in range(1, RL_STEPS + 1) for r in rows(folder, step)]
    assert len(trained) == len(set(trained)) == RL_STEPS * GROUPS * GROUP_SIZE
    if "rollout.weights=episode" in settings:
        for step in range(1, RL_STEPS + 1):
            for row in rows(folder, step):
                versions = {v for node in row.trajectory.nodes if node.is_action for v in node.versions}
                assert len(versions) <= 1, "an episode that was finished on the old weights has one version"


def test_a_stopped_run_goes_on_without_training_anything_twice(tmp_path: Path) -> None:
    folder, stop = tmp_path / "run", StopAt("rl", 3)
    recipe = tiny_recipe(*ASYNC, "rollout.max_staleness=2")
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, folder, watch=stop.watch, stop=stop.stop)
    resume_run(folder)
    reader = RunReader(folder)
    assert reader.status().state is RunState.FINISHED
    trained = [r.trajectory.id for step in range(1, RL_STEPS + 1) for r in rows(folder, step)]
    assert len(trained) == len(set(trained)) == RL_STEPS * GROUPS * GROUP_SIZE
    assert asynchronous_problems(folder) == []
