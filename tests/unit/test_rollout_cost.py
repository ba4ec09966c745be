"""What episodes cost: counted from the record, the same in Python and in SQL, and charged to a group."""

from __future__ import annotations

import asyncio
import math
from array import array
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from synthetic_run import SyntheticRun, trajectory

from burnish.core.cost import EpisodeCost
from burnish.core.grade import Grade
from burnish.core.outcome import Ending, Outcome, Owner
from burnish.core.sampling import SamplingParams
from burnish.core.task import Limits, Task
from burnish.core.trajectory import Node, Trajectory
from burnish.graders.aggregate import WeightedSum
from burnish.graders.cost import ChargeMode, TokenCost
from burnish.graders.rules import ExactGrader
from burnish.rollout.cost import cost_scalars, mean_charge
from burnish.rollout.group import assemble_groups, plan_groups
from burnish.rollout.runner import run_episodes
from burnish.store.reader import RunReader
from burnish.store.rows import Fate, StepRecord, StoredTrajectory
from burnish.testing.fakes import FakeEnvironment, FakeRenderer, ScriptedSampler


def node(parent: int, tokens: int, *, is_action: bool) -> Node:
    return Node(
        parent=parent,
        messages=(),
        token_ids=array("i", [7] * tokens),
        action_mask=array("b", [int(is_action)] * tokens),
        logprobs=array("f", [-0.5 if is_action else math.nan] * tokens),
        versions=array("i", [0 if is_action else -1] * tokens),
        is_action=is_action,
    )


def episode(index: int, action_tokens: int, **fields: object) -> Trajectory:
    made = Trajectory(
        id=f"rl/000001/0000/{index:02d}",
        task_id="t",
        task_hash="t",
        group_id="rl/000001/0000",
        sample_index=index,
        seed=0,
        nodes=(node(-1, 5, is_action=False), node(0, action_tokens, is_action=True)),
        outcome=Outcome(ending=Ending.COMPLETED),
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def graded(score: float | None) -> tuple[Grade, ...]:
    return (Grade(grader="exact", version="1", score=score, cause="" if score is not None else "broken"),)


FORKED = (
    node(-1, 10, is_action=False),
    node(0, 3, is_action=True),
    node(1, 4, is_action=False),
    node(0, 20, is_action=True),
    node(-1, 6, is_action=False),
    node(4, 2, is_action=True),
)


def test_the_context_is_the_longest_path_and_not_the_sum() -> None:
    cost = EpisodeCost.of(episode(0, 1, nodes=FORKED, counters={"tool_calls": 4}, tool_s=0.5, total_s=2.0))
    expected = {"action_tokens": 25, "context_tokens": 30, "turns": 3, "tool_calls": 4, "tool_s": 0.5, "total_s": 2.0}
    assert cost == EpisodeCost(**expected)  # type: ignore[arg-type]
    assert EpisodeCost.of(episode(0, 1, nodes=())).context_tokens == 0


def test_sql_counts_the_same(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    episodes = [
        episode(0, 1, nodes=FORKED),
        episode(1, 9, counters={"tool_calls": 2}),
        episode(2, 0, nodes=()),
        trajectory("rl/000001/0000/03", Random(1)),
    ]
    rows = [
        StoredTrajectory(trajectory=one, phase="rl", step=1, policy_version=0, fate=Fate.TRAINED, grades=(), reward=1.0)
        for one in episodes
    ]
    run.writer.commit_step(StepRecord(phase="rl", step=1, rows=rows))
    run.writer.close()
    found = RunReader(run.folder).query(
        "SELECT action_tokens, context_tokens, turns, tool_calls, tool_s, total_s FROM trajectories "
        "ORDER BY trajectory_id"
    )
    assert [EpisodeCost(**row) for row in found.to_pylist()] == [EpisodeCost.of(one) for one in episodes]


def test_an_empty_run_has_the_columns(tmp_path: Path) -> None:
    run = SyntheticRun(tmp_path / "run")
    found = RunReader(run.folder).query("SELECT action_tokens, context_tokens, turns, tool_calls FROM trajectories")
    assert found.num_rows == 0
    run.writer.close()


def test_a_group_is_charged_after_it_is_known_who_has_a_reward() -> None:
    crash = Outcome(ending=Ending.ERROR, owner=Owner.ENVIRONMENT, cause="tool_raised")
    trajectories = [episode(0, 100), episode(1, 300), episode(2, 5), episode(3, 50, outcome=crash)]
    grades = [graded(1.0), graded(1.0), graded(0.0), graded(1.0)]
    (group,) = assemble_groups(trajectories, grades, WeightedSum(), TokenCost(per_1k_tokens=0.3))
    # Two of the three members that count are right: the crashed one raises no solved share.
    assert group.rewards_G == pytest.approx((1 - 2 / 3 * 0.03, 1 - 2 / 3 * 0.09, 0.0, None))
    assert group.charges_G == pytest.approx((0.02, 0.06, 0.0, 0.0))
    assert mean_charge([group]) == pytest.approx(0.08 / 3)
    assert mean_charge([]) == 0.0


def test_without_a_charge_rewards_are_what_they_were() -> None:
    trajectories, grades = [episode(0, 100), episode(1, 300)], [graded(1.0), graded(0.1)]
    (plain,) = assemble_groups(trajectories, grades, WeightedSum())
    (free,) = assemble_groups(trajectories, grades, WeightedSum(), TokenCost(per_1k_tokens=0.0))
    assert plain == free
    assert plain.charges_G == (0.0, 0.0)


def test_a_charge_gives_signal_to_a_group_that_is_all_right_and_none_to_one_that_is_all_wrong() -> None:
    trajectories = [episode(0, 100), episode(1, 300)]
    (right,) = assemble_groups(trajectories, [graded(1.0)] * 2, WeightedSum(), TokenCost(per_1k_tokens=0.3))
    (wrong,) = assemble_groups(trajectories, [graded(0.0)] * 2, WeightedSum(), TokenCost(per_1k_tokens=0.3))
    assert right.signal
    assert not wrong.signal


def test_a_charge_that_loses_a_member_is_named() -> None:
    class Short:
        def charged(self, rewards_G, costs_G):
            return rewards_G[1:]

    with pytest.raises(ValueError, match="the charge gave 1 rewards for the 2 members"):
        assemble_groups([episode(0, 1), episode(1, 2)], [graded(1.0)] * 2, WeightedSum(), Short())


def played(reply: str, index: int) -> tuple[Trajectory, Grade]:
    """A scripted policy answers the question, and the grader judges what it said."""
    task = Task(prompt="What is 2 + 2?", reference={"answer": "4"}, id="sum")
    plan = plan_groups([task], phase="rl", step=1, group_size=4, run_seed=0)[index]
    (done,) = asyncio.run(
        run_episodes(
            [plan],
            make_environment=lambda _: FakeEnvironment(),
            renderer=FakeRenderer(),
            sampler=ScriptedSampler([reply]),
            params=SamplingParams(),
            limits=Limits(max_turns=1, max_turn_tokens=200, max_episode_tokens=200),
        )
    )
    return done, ExactGrader().judge(task, done)


@pytest.mark.parametrize("mode", ChargeMode)
def test_a_scripted_policy_earns_most_by_the_short_right_answer_and_least_by_none(mode: ChargeMode) -> None:
    short, long = "4", f"<think>{'two and two is four, ' * 6}</think>4"
    episodes = [played(reply, index) for index, reply in enumerate((long, short, "5", f"{long} or 5"))]
    assert [grade.score for _, grade in episodes] == [1.0, 1.0, 0.0, 0.0]
    charge = TokenCost(per_1k_tokens=4.0, mode=mode)
    charge.check_limit(200)
    trajectories, grades = [done for done, _ in episodes], [(grade,) for _, grade in episodes]
    (group,) = assemble_groups(trajectories, grades, WeightedSum(), charge)
    right_long, right_short, wrong_short, wrong_long = group.rewards_G
    assert right_short > right_long > max(wrong_short, wrong_long)
    assert (wrong_short > wrong_long) == (mode is ChargeMode.ALWAYS), "only there does giving up early pay"
    (free,) = assemble_groups(trajectories, grades, WeightedSum())
    assert free.rewards_G == (1.0, 1.0, 0.0, 0.0), "the negative control: without a cost length makes no difference"


def test_quantiles_of_a_step() -> None:
    costs = [EpisodeCost.of(episode(index, n, total_s=n / 10)) for index, n in enumerate((10, 20, 30, 40))]
    scalars = cost_scalars(costs)
    assert scalars["cost/action_tokens_p50"] == 25.0
    assert scalars["cost/action_tokens_p90"] == pytest.approx(37.0)
    assert scalars["time/episode_s_p50"] == pytest.approx(2.5)
    assert scalars["cost/turns_p90"] == 1.0
    assert cost_scalars([]) == {}
