from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import StopAt, differences, facts, resume_run, start_run, tiny_recipe

from burnish.core.errors import ConfigError, RunStopped
from burnish.core.finding import Act, Decision
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.graders.aggregate import WeightedSum
from burnish.loop.knobs import Knobs, post_tool_factor
from burnish.loop.objective import check_objective, held_out_aggregator, step_aggregator
from burnish.loop.task_queue import TaskQueue
from burnish.store.reader import RunReader

STAGED = ("staged.weights={exact=0.5,taste=0.5}", 'staged.preference=["taste"]', "staged.end=1.0")
SHORT = ("rl.steps=4", "evaluation.before=false", "health.softmax_every=1", "rl.filter_zero_signal=false")


def grades() -> list[Grade]:
    return [Grade(grader="exact", version="1", score=1.0), Grade(grader="taste", version="1", score=0.5)]


def test_preferences_come_in_with_the_steps_and_never_into_held_out_success():
    recipe = tiny_recipe("rl.steps=10", *STAGED, "staged.start=0.5")
    default = WeightedSum()
    assert step_aggregator(recipe, default, 1).rewards([grades()]) == [0.5]
    assert step_aggregator(recipe, default, 6).rewards([grades()]) == [0.5]
    assert step_aggregator(recipe, default, 11).rewards([grades()]) == [0.75]
    assert held_out_aggregator(recipe, default).rewards([grades()]) == [1.0]
    assert step_aggregator(tiny_recipe(), default, 3) is default


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (('staged.preference=["taste"]',), "have no weight"),
        ((*STAGED[:2],), "staged.end"),
        (("rl.normalise=vl", "rl.aggregation=sequence"), "already divides by length"),
        (("rl.normalise=variance", "health.on=false"), "learns from score norms"),
    ],
)
def test_objectives_that_cannot_be_carried_out_are_refused(words: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        check_objective(tiny_recipe(*words))


@pytest.mark.parametrize("how", ["vl", "variance"])
def test_weights_of_length_and_noise_are_in_the_stored_advantages(tmp_path: Path, how: str):
    start_run(tiny_recipe(*SHORT, f"rl.normalise={how}"), tmp_path / "weighed")
    start_run(tiny_recipe(*SHORT), tmp_path / "plain")
    first, second = (RunReader(tmp_path / name).trajectories("rl", 1) for name in ("weighed", "plain"))
    ratios = {
        one.trajectory.action_tokens: one.advantage / other.advantage
        for one, other in zip(first, second, strict=True)
        if other.advantage
    }
    lengths = sorted(ratios)
    assert len(lengths) > 1
    assert [ratios[n] for n in lengths] == sorted(ratios.values(), reverse=True), "longer ones weigh less"


def test_the_variance_normaliser_resumes_exactly(tmp_path: Path):
    recipe = tiny_recipe(*SHORT, "rl.normalise=variance", "rl.balance_skills=true")
    start_run(recipe, tmp_path / "whole")
    ask = StopAt("rl", 2)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, tmp_path / "stopped", watch=ask.watch, stop=ask.stop)
    resume_run(tmp_path / "stopped")
    assert differences(facts(tmp_path / "stopped"), facts(tmp_path / "whole")) == []


def tasks() -> list[Task]:
    return [Task(prompt=str(n), id=str(n), tags={"source": "mail" if n % 4 == 0 else "phone"}) for n in range(40)]


def test_a_queue_without_knobs_is_the_plain_order_and_resumes_with_them():
    plain, knobs = TaskQueue(tasks(), 3), Knobs()
    order = [plain.next(1, step=1, knobs=knobs)[0] for _ in range(80)]
    assert sorted(order[:40]) == list(range(40))
    weighed = Knobs(source_shares={"mail": 0.9, "phone": 0.1})
    queue = TaskQueue(tasks(), 3)
    assert queue.next(10, step=1, knobs=knobs) == order[:10]
    drawn = queue.next(200, step=2, knobs=weighed)
    assert 0.8 < sum(n % 4 == 0 for n in drawn) / 200 < 0.97
    other = TaskQueue(tasks(), 3)
    other.restore(queue.state())
    assert other.next(20, step=3, knobs=weighed) == queue.next(20, step=3, knobs=weighed)
    assert other.next(9, step=3, knobs=knobs) == queue.next(9, step=3, knobs=knobs) == order[10:19]


def test_a_queue_passes_over_quarantined_tasks_until_their_time_is_over():
    queue = TaskQueue(tasks(), 3)
    knobs = Knobs(quarantine={str(n): 5 for n in range(20)})
    assert min(queue.next(20, step=5, knobs=knobs)) >= 20
    assert min(queue.next(40, step=6, knobs=knobs)) == 0
    everything = Knobs(quarantine={str(n): 5 for n in range(40)})
    assert len(queue.next(3, step=1, knobs=everything)) == 3


def test_every_gentle_decision_turns_one_knob_and_its_release_turns_it_back():
    cases = {
        Act.MASK_TAIL: {"slice": "", "moment_cap": 0.02},
        Act.LEARNING_RATE: {"factor": 0.5},
        Act.KL_WEIGHT: {"weight": 0.1},
        Act.POST_TOOL_CAP: {"share": 0.3},
        Act.NEAR_MISSES: {"count": 2},
        Act.CURRICULUM: {"probabilities": {"a": 1.0}},
    }
    for act, values in cases.items():
        knobs = Knobs()
        knobs.turn(Decision(act=act, step=1, reason="r", values=values))
        assert knobs.scalars()["control/knobs_turned"] == 1.0, act
        assert Knobs.from_json(knobs.to_json()) == knobs
        knobs.turn(Decision(act=act, step=2, reason="r", values=values, release=True))
        assert knobs == Knobs(), act


def test_the_post_tool_factor_brings_the_share_down_to_the_cap():
    factor = post_tool_factor(80.0, 20.0, 0.5)
    assert factor * 80.0 / (factor * 80.0 + 20.0) == pytest.approx(0.5)
