"""Oversight by itself: when monitors warm up anew, what the reservoir hears, columns and sums that make one whole."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from scripted_control import ScriptedLadder
from tiny_runs import tiny_recipe
from token_streams import make_step

from burnish.core.finding import Act, Decision
from burnish.core.streams import TokenColumns, TokenStream
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.loop import oversight
from burnish.loop.grading import open_world
from burnish.loop.oversight import Oversight, merged
from burnish.loop.state import LoopState
from burnish.loop.step_order import Seen
from burnish.loop.worlds import World, mistaken_expert
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.group import GroupResult
from burnish.rollout.runner import run_scripted

WARM_UP, CHANGE, LAST = 50, 60, 80
CURRICULUM = {"probabilities": {"a": 0.2, "b": 0.8}}


def watched(monkeypatch: pytest.MonkeyPatch, script: dict[int, Sequence[Decision]], mode: str = "act") -> set[str]:
    """The monitors that speak of longer trajectories after step 60, which have more turns, under a ladder that does
    what `script` says by step."""
    monkeypatch.setattr(oversight, "Ladder", ScriptedLadder)
    monkeypatch.setattr(ScriptedLadder, "script", script)
    recipe = tiny_recipe("health.on=true", f"health.baseline_steps={WARM_UP}", f"control.mode={mode}")
    seeing, found = Oversight(recipe, open_world(recipe), LoopState()), set[str]()
    for step in range(1, LAST):
        streams = make_step(step, 96 if step <= CHANGE else 192, step=step)
        streams = sorted(streams, key=lambda stream: stream.length)[-96:]
        observed = seeing.observe(step, [Seen(columns=TokenColumns.of(streams))], {}, [])
        found |= {str(event.data["monitor"]) for event in observed.events if event.kind == "finding"}
        seeing.carry_out(observed)
    return found


def decided(act: Act, step: int, values: dict[str, object], *, release: bool = False) -> Decision:
    return Decision(act=act, step=step, reason="r", values=values, release=release, dry_run=False)


def test_another_mixture_is_another_world_for_the_monitors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not watched(monkeypatch, {CHANGE: (decided(Act.CURRICULUM, CHANGE, CURRICULUM),)})


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ({}, "act"),
        ({CHANGE: (decided(Act.MASK_TAIL, CHANGE, {"slice": "all", "moment_cap": 1.0}),)}, "act"),
        ({CHANGE: (decided(Act.LEARNING_RATE, CHANGE, {"factor": 0.5}),)}, "act"),
        # a curriculum that is already there and follows its sources
        ({1: (decided(Act.CURRICULUM, 1, CURRICULUM),), CHANGE: (decided(Act.CURRICULUM, CHANGE, CURRICULUM),)}, "act"),
        # a decision that is only written down
        ({CHANGE: (decided(Act.CURRICULUM, CHANGE, CURRICULUM),)}, "dry_run"),
    ],
)
def test_nothing_else_makes_them_forget(
    monkeypatch: pytest.MonkeyPatch, script: dict[int, Sequence[Decision]], mode: str
) -> None:
    assert "post_tool_share" in watched(monkeypatch, script, mode)


def test_the_end_of_a_curriculum_is_another_world_too(monkeypatch: pytest.MonkeyPatch) -> None:
    end = decided(Act.CURRICULUM, CHANGE, {}, release=True)
    assert not watched(monkeypatch, {1: (decided(Act.CURRICULUM, 1, CURRICULUM),), CHANGE: (end,)})


def test_columns_and_sums_of_shards_make_one_whole() -> None:
    names = SliceNames(tools=("search",), sources=("shop",))
    streams: list[TokenStream] = make_step(3, 40)
    seen = [
        Seen(columns=TokenColumns.of(streams[:10])),
        Seen(),
        Seen(sums=HealthSums.of(streams[10:25], names).to_bytes()),
        Seen(columns=TokenColumns.of(streams[25:])),
    ]
    whole, found = HealthSums.of(streams, names), merged(seen, names)
    np.testing.assert_array_equal(found.histograms, whole.histograms)
    np.testing.assert_allclose(found.moments, whole.moments, rtol=1e-9, atol=1e-12)
    assert found.table.texts == whole.table.texts
    assert len(merged([Seen()], names).table) == 0
    assert (merged(seen[1:], names).histograms != whole.histograms).any()


@pytest.mark.parametrize("source", ["graders", "diagnosis"])
def test_a_diagnosis_says_how_near_a_failure_came_where_no_grader_does(source: str) -> None:
    recipe = tiny_recipe("environment.name=shop", "environment.options.level=2", f"control.progress_from={source}")
    world = open_world(recipe)
    task = world.tasks("train", 1)[0]
    played = [_played(world, task, mistake, member) for member, mistake in enumerate((None, "skip_calculator"))]
    assert [trajectory.answer == played[0].answer for trajectory in played] == [True, False]
    group = GroupResult(
        group_id="g",
        task_id=task.id,
        trajectories=tuple(played),
        grades_G=((), ()),
        rewards_G=(1.0, 0.0),
        charges_G=(0.0, 0.0),
        signal=True,
    )
    oversight_ = Oversight(recipe, world, LoopState())
    unknown = {trajectory.id: (float(reward), float("nan")) for trajectory, reward in zip(played, (1, 0), strict=True)}
    found = oversight._candidates(group, 1, unknown, oversight_._distances(group, 1))
    assert found[0].progress is None
    assert (found[1].progress is not None) == (source == "diagnosis")
    told = {trajectory.id: (0.0, 0.25) for trajectory in played}
    assert [one.progress for one in oversight._candidates(group, 1, told, {played[1].id: 0.9})] == [0.25, 0.25]


def _played(world: World, task: Task, mistake: str | None, member: int) -> Trajectory:
    plan = EpisodePlan(id=f"g/{member}", group_id="g", task=task, sample_index=member, seed=member)
    done = run_scripted([plan], make_environment=world.make, policy=mistaken_expert(mistake))
    return asyncio.run(done)[0]
