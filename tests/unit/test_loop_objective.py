from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_runs import StopAt, differences, facts, resume_run, start_run, tiny_recipe

from burnish.core.errors import ConfigError, RunStopped
from burnish.core.finding import Act, Decision
from burnish.core.grade import Grade
from burnish.core.task import Task
from burnish.graders.graph import aggregator_at, for_evaluation
from burnish.loop.grading import judged, open_world, share_done
from burnish.loop.knobs import Knobs, post_tool_factor
from burnish.loop.objective import check_objective, entropy_weight, learn_entropy
from burnish.loop.state import LoopState
from burnish.loop.task_queue import TaskQueue
from burnish.rollout.streams import Judgement
from burnish.store.reader import RunReader

SHOP = ("environment.name=shop", "environment.options={train=20,preference_seed=0}")
STAGED = (*SHOP, "staged.weights={shop=0.5,preference=0.5}", 'staged.preference=["preference"]', "staged.end=1.0")
SHORT = ("rl.steps=4", "evaluation.before=false", "health.softmax_every=1", "rl.filter_zero_signal=false")


def grades() -> list[Grade]:
    return [Grade(grader="shop", version="1", score=1.0), Grade(grader="preference", version="1", score=0.5)]


def test_preferences_come_in_with_the_steps_and_never_into_held_out_success():
    recipe = tiny_recipe("rl.steps=10", *STAGED, "staged.start=0.5")
    aggregator = open_world(recipe).aggregator
    rewards = [aggregator_at(aggregator, share_done(recipe, step)).rewards([grades()])[0] for step in (1, 5, 6, 10, 14)]
    assert rewards == pytest.approx([0.5, 0.5, 0.55, 0.75, 0.75])
    assert for_evaluation(aggregator).rewards([grades()]) == [1.0]


def test_health_hears_of_success_as_evaluations_do():
    aggregator = open_world(tiny_recipe(*SHOP)).aggregator
    taste_first = grades()[::-1]
    assert judged(aggregator, taste_first, reward=1.0, advantage=None).success == 1.0
    assert Judgement.of(taste_first, reward=1.0, advantage=None).success == 0.0, "it is the first grade that it reads"
    unknown = [Grade(grader="shop", version="1", score=None, cause="down"), grades()[1]]
    assert judged(aggregator, unknown, reward=None, advantage=None).success is None


def test_a_preference_scorer_without_a_weight_is_heard_and_not_counted():
    world = open_world(tiny_recipe(*SHOP))
    assert [grader.name for grader in world.graders] == ["shop", "preference"]
    for aggregator in (aggregator_at(world.aggregator, 0.5), for_evaluation(world.aggregator)):
        assert aggregator.rewards([grades()]) == [1.0]
    failed = [grades()[0], Grade(grader="preference", version="1", score=None, cause="down")]
    assert world.aggregator.rewards([failed]) == [1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (('staged.preference=["taste"]',), "have no weight"),
        ((*STAGED[:4],), "staged.end"),
        ((*SHOP, "staged.weights={shop=0.5,preferense=0.5}"), "did you mean 'preference'"),
        ((*STAGED, "graders.file=pyproject.toml"), "both staged.weights and graders.file"),
        (("graders.file=nowhere.toml",), "nowhere.toml cannot be read"),
    ],
)
def test_graders_that_cannot_be_are_refused(words: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        open_world(tiny_recipe(*words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("rl.normalise=vl", "rl.aggregation=sequence"), "already divides by length"),
        (("rl.normalise=variance", "health.on=false"), "learns from score norms"),
    ],
)
def test_objectives_that_cannot_be_carried_out_are_refused(words: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        check_objective(tiny_recipe(*words))


def test_the_entropy_floor_holds_only_below_its_share_of_the_first_steps():
    recipe, state = tiny_recipe("rl.entropy_floor=0.1", "rl.entropy_floor_steps=2"), LoopState()
    weights = []
    for entropy in (2.2, 1.8, math.nan, 1.1, 0.9, 0.5, 1.4):
        learn_entropy(recipe, state, entropy)
        weights.append(entropy_weight(recipe, state))
    assert weights == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.05, 0.1, 0.0])
    assert LoopState.from_json(state.to_json()) == state
    off = LoopState()
    learn_entropy(tiny_recipe(), off, 0.01)
    assert (entropy_weight(tiny_recipe(), off), off) == (0.0, LoopState())


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
