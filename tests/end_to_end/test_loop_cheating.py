"""Proven cheating in a run: what it costs, what is watched, and the tasks that leave the sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import StopAt, differences, facts, resume_run, start_run, tiny_recipe

from burnish.core.errors import ConfigError, RunStopped
from burnish.health.monitors import default_monitors
from burnish.health.slices import SliceNames
from burnish.health.sums import HealthSums
from burnish.health.watch import Watch
from burnish.loop.grading import integrity_monitors, open_world
from burnish.loop.oversight import watch_spec
from burnish.store.reader import RunReader

WORDS = ("evaluation.before=false", "rl.filter_zero_signal=false")
GRAPH = """
[aggregator]
integrity = "honest"
penalty = 1.0

[graders.answer]
use = "get_reward"

[graders.honest]
use = "mine.py:Honest"
"""
MINE = """
from burnish.core.grade import Grade

class Honest:
    name = "honest"
    version = "1"

    async def grade(self, task, trajectory):
        # What a policy that babbles says is now one, now the other.
        caught = trajectory.id.startswith("rl/") and trajectory.action_tokens % 2 == 1
        evidence = {"strength": "proven", "flags": [{"family": "tests"}]} if caught else {}
        return Grade(grader="honest", version="1", score=float(not caught), evidence=evidence)
"""


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    path = tmp_path / "graders.toml"
    path.write_text(GRAPH, encoding="utf-8")
    return path


def caught(row) -> bool:
    return any(grade.evidence.get("strength") == "proven" for grade in row.grades)


def test_the_recipe_sets_the_price_and_bars_the_tasks_that_paid(graph: Path, tmp_path: Path) -> None:
    words = (*WORDS, f"graders.file={graph}", "graders.penalty=2.5")
    recipe = tiny_recipe(*words, "graders.quarantine_steps=2")
    folder = tmp_path / "barred"
    start_run(recipe, folder)
    reader = RunReader(folder)
    until: dict[str, int] = {}
    drawn_again = False
    for info in reader.steps("rl"):
        rows = reader.trajectories("rl", info.step)
        assert not [row for row in rows if until.get(row.trajectory.task_id, 0) >= info.step], "barred, and drawn"
        drawn_again |= any(row.trajectory.task_id in until for row in rows)
        assert {row.reward for row in rows if caught(row)} <= {-2.5}
        paid = [row for row in rows if caught(row) and any(g.score for g in row.grades if g.grader == "answer")]
        until |= {row.trajectory.task_id: info.step + 2 for row in paid}
        share = sum(map(caught, rows)) / len(rows)
        assert reader.step_scalars("rl", info.step)["integrity/cheating_share"] == pytest.approx(share)
    assert drawn_again, "they come back"
    said = [event for event in reader.events() if event.kind == "quarantine"]
    assert {task for event in said for task in event.data["tasks"]} == set(until) != set()
    ask = StopAt("rl", 3)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, tmp_path / "cut", watch=ask.watch, stop=ask.stop)
    resume_run(tmp_path / "cut")
    assert differences(facts(folder), facts(tmp_path / "cut")) == []


def test_without_quarantine_every_task_is_drawn_on(graph: Path, tmp_path: Path) -> None:
    """The control: the tasks above were barred by the setting and nothing else."""
    start_run(tiny_recipe(*WORDS, f"graders.file={graph}"), tmp_path / "open")
    reader = RunReader(tmp_path / "open")
    assert not [event for event in reader.events() if event.kind == "quarantine"]
    rows = [row for info in reader.steps("rl") for row in reader.trajectories("rl", info.step)]
    assert {row.reward for row in rows if caught(row)} == {-1.0}


def test_a_price_needs_somebody_who_looks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"graders.penalty is 2, and no grader looks for cheating"):
        open_world(tiny_recipe("graders.penalty=2"))


@pytest.mark.parametrize("name", ["integrity/cheating_share", "integrity/exclusion_rate"])
def test_health_finds_what_rises(graph: Path, name: str) -> None:
    recipe = tiny_recipe(f"graders.file={graph}", "health.baseline_steps=20")
    aggregator = open_world(recipe).aggregator
    names = SliceNames()
    spec = watch_spec(recipe, names, aggregator)
    assert len(spec.all_monitors) == len(default_monitors(names)) + 2
    empty = HealthSums.of([], names)
    watch, found = Watch(spec), []
    for step in range(1, 61):
        share = 0.005 * (step % 2) if step <= 40 else 0.15
        found += [(one.monitor, one.step) for one in watch.step(step, empty, {name: share}).findings]
    assert {monitor for monitor, _ in found} == {name}
    assert 40 < min(step for _, step in found) <= 45


def test_runs_that_nobody_looks_at_keep_their_monitors() -> None:
    recipe = tiny_recipe()
    names = SliceNames()
    aggregator = open_world(recipe).aggregator
    assert integrity_monitors(aggregator) == ()
    assert watch_spec(recipe, names, aggregator).all_monitors == default_monitors(names)
