"""Each always-on check stops the run, and names itself, when the thing that it guards is broken."""

from __future__ import annotations

import copy
import dataclasses
import re
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from tiny_runs import accounting_problems, orphans_after, resume_run, start_run, tiny_recipe, workers_of

from burnish.algorithms.grpo import GrpoLoss
from burnish.core.errors import InvariantViolation
from burnish.core.message import Message
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.aggregate import WeightedSum
from burnish.loop import conductor, reinforce, shard_episodes
from burnish.loop.executor import Executor, LocalExecutor
from burnish.loop.policy import Policy
from burnish.loop.setup import make_own_shard
from burnish.loop.shard import Shard, SyncEcho
from burnish.policies.sampler import EmbeddedSampler
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, RunState

Copy = Callable[[], Path]
Break = Callable[[Node], Node]


def violation(folder: Path, name: str) -> InvariantViolation:
    """Resume the run, which must end with the invariant `name` in its status."""
    with pytest.raises(InvariantViolation) as caught:
        resume_run(folder)
    assert caught.value.name == name
    status = RunReader(folder).status()
    assert status.state is RunState.FAILED
    assert f"invariant {name} violated" in status.detail
    return caught.value


# -- what was sampled is what is trained -----------------------------------------------------------------------------


def break_nodes(monkeypatch: pytest.MonkeyPatch, which: Callable[[Node], bool], broken: Break) -> None:
    """Every rollout comes back with the first node for which `which` holds replaced by `broken` of it."""
    run_episodes = shard_episodes.run_episodes

    def change(trajectory: Trajectory) -> Trajectory:
        nodes = list(trajectory.nodes)
        index = next((index for index, node in enumerate(nodes) if which(node)), None)
        if index is not None:
            nodes[index] = broken(nodes[index])
        return dataclasses.replace(trajectory, nodes=tuple(nodes))

    async def run(plans: Sequence[Any], **options: Any) -> list[Trajectory]:
        return [change(trajectory) for trajectory in await run_episodes(plans, **options)]

    monkeypatch.setattr(shard_episodes, "run_episodes", run)


def is_action(node: Node) -> bool:
    return node.is_action and len(node.token_ids) > 0


def is_observation(node: Node) -> bool:
    return not node.is_action


def one_token(name: str, code: str, value: float) -> Break:
    """A node with the last entry of one of its streams set to `value`."""

    def broken(node: Node) -> Node:
        stream = array(code, getattr(node, name))
        stream[-1] = value
        return dataclasses.replace(node, **{name: stream})

    return broken


@pytest.mark.parametrize(
    ("name", "which", "broken"),
    [
        ("action_mask", is_action, one_token("action_mask", "b", 0)),
        ("action_mask", is_observation, one_token("action_mask", "b", 1)),
        ("action_mask", is_observation, one_token("logprobs", "f", -0.5)),
        ("policy_version", is_action, one_token("versions", "i", 7)),
        ("logprobs", is_action, one_token("logprobs", "f", float("nan"))),
        ("logprobs", is_action, one_token("logprobs", "f", 0.5)),
        ("message_graph", is_action, lambda node: dataclasses.replace(node, parent=5)),
        (
            "token_round_trip",
            is_action,
            lambda node: dataclasses.replace(node, messages=(Message.assistant("something else"),)),
        ),
    ],
)
def test_a_trajectory_that_is_not_what_was_sampled_stops_the_run(
    stopped: Copy, monkeypatch: pytest.MonkeyPatch, name: str, which: Callable[[Node], bool], broken: Break
) -> None:
    folder = stopped()
    break_nodes(monkeypatch, which, broken)
    assert "node" in violation(folder, name).detail


# -- samplers follow the learner -------------------------------------------------------------------------------------


def with_second_shard(monkeypatch: pytest.MonkeyPatch, change: Callable[[Shard, Policy], Shard]) -> None:
    """Runs in this process have `change(shard, policy)` as their second shard."""

    def make(recipe: Any, policy: Policy, world: Any, folder: Path, server: Any) -> Executor:
        first, second = (make_own_shard(recipe, policy, world) for _ in range(2))
        return LocalExecutor([first, change(second, policy)])

    monkeypatch.setattr(conductor, "make_executor", make)


def detached(second: Shard, policy: Policy) -> Shard:
    """A shard on weights of its own, which no update reaches."""
    second.policy = dataclasses.replace(policy, model=copy.deepcopy(policy.model))
    return second


def stale_sampler(second: Shard, policy: Policy) -> Shard:
    """A shard whose weights are new and whose sampler computes with old ones."""
    second._sampler = second._player.sampler = EmbeddedSampler(copy.deepcopy(policy.model), pad_id=policy.pad_id)
    return second


def deaf(second: Shard, policy: Policy) -> Shard:
    """A shard that answers an update with the version before it."""
    sync = second.sync

    async def late(version: int, canary: Sequence[array[int]]) -> SyncEcho:
        return dataclasses.replace(await sync(version, canary), version=version - 1)

    second.sync = late  # type: ignore[method-assign]
    return second


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (detached, "sampler 1 holds other weights.*the update did not reach it"),
        (stale_sampler, "canary log-probabilities of sampler and learner differ"),
        (deaf, "sampler 1 is at version"),
    ],
)
def test_an_update_that_does_not_reach_a_sampler_stops_the_run(
    stopped: Copy, monkeypatch: pytest.MonkeyPatch, change: Callable[[Shard, Policy], Shard], words: str
) -> None:
    folder = stopped()
    with_second_shard(monkeypatch, change)
    found = violation(folder, "sampler_freshness")
    assert re.search(words, found.detail)


@pytest.mark.parametrize("change", [None, detached])
def test_adapters_that_are_not_delivered_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Shard, Policy], Shard] | None
) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe(
        "model.lora.rank=4", "warm_start.steps=2", "warm_start.traces=16", "rl.steps=0", "evaluation.before=false"
    )
    if change is None:
        start_run(recipe, folder)
        return
    with_second_shard(monkeypatch, change)
    with pytest.raises(InvariantViolation, match="sampler 1 holds other weights") as caught:
        start_run(recipe, folder)
    assert caught.value.name == "sampler_freshness"


def test_a_worker_whose_weights_are_not_shared_stops_the_run(nursery: Nursery, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe("run.in_process=false", "warm_start.steps=2", "warm_start.traces=16", "evaluation.tasks=2")
    attempt = nursery.attempt(folder, recipe.model_dump_json(), fault="unshared weights")
    attempt.wait_for("sft")
    workers = workers_of(attempt.pid)
    attempt.wait_for("")
    assert attempt.end == 3
    assert "invariant sampler_freshness violated: sampler 0 holds other weights" in attempt.lines[-1]
    assert orphans_after(workers, 5.0) == []


# -- the gradient is that of the whole batch -------------------------------------------------------------------------


def test_samples_that_are_not_the_policys_own_stop_the_run(stopped: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()

    def colder(node: Node) -> Node:
        return dataclasses.replace(node, logprobs=array("f", [value - 0.01 for value in node.logprobs]))

    break_nodes(monkeypatch, is_action, colder)
    assert "on fresh samples" in violation(folder, "ratio_one").detail
    rows = RunReader(folder).trajectories("rl", 4)
    assert {Fate.DROPPED} <= {row.fate for row in rows} <= {Fate.DROPPED, Fate.FILTERED}
    assert accounting_problems(folder) == []


def test_a_loss_that_depends_on_micro_batches_stops_the_run(stopped: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()
    sound = GrpoLoss.__call__

    def of_its_own(self: GrpoLoss, inputs: Any) -> Any:
        return sound(self, dataclasses.replace(inputs, normaliser=float(len(inputs.logprobs_N))))

    monkeypatch.setattr(GrpoLoss, "__call__", of_its_own)
    found = violation(folder, "micro_batch_invariance")
    assert "divide by the normaliser of the whole batch" in found.detail


# -- everything is accounted for -------------------------------------------------------------------------------------


def test_an_episode_that_is_not_accounted_for_stops_the_run(stopped: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()
    decide = reinforce.decide

    def forgetful(*arguments: Any) -> reinforce.Batch:
        batch = decide(*arguments)
        lost = next(iter(batch.fates))
        return dataclasses.replace(batch, fates={**batch.fates, lost: Fate.HELD_OUT})

    monkeypatch.setattr(reinforce, "decide", forgetful)
    assert "1 episodes unaccounted for" in violation(folder, "accounting").detail


def test_a_reward_that_is_no_number_stops_the_run(stopped: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()
    monkeypatch.setattr(WeightedSum, "rewards", lambda self, grades: [float("nan")] * len(grades))
    assert "is nan" in violation(folder, "finite_rewards").detail


def test_nothing_stops_a_run_in_which_nothing_is_broken(finished_run: Path) -> None:
    reader = RunReader(finished_run)
    assert reader.status().state is RunState.FINISHED
    for name in ("check/canary_nats", "check/ratio_nats", "check/micro_batch"):
        values = [value for _, value in reader.scalars(name, "rl")]
        assert values
        assert max(values) < 1e-5, name
    assert [step for step, _ in reader.scalars("check/micro_batch", "rl")] == [1, 3, 6]
