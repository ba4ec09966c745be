"""A curriculum from diagnosis: what a kind is worth, what is drawn, and that a stopped run goes on the same."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import StopAt, differences, facts, resume_run, start_run, tiny_recipe

from burnish.control.teachable import Tally, Teachable
from burnish.core.errors import ConfigError, RunStopped
from burnish.core.message import Message, ToolCall
from burnish.core.outcome import Ending, Outcome
from burnish.core.task import Task
from burnish.core.trajectory import Node, Trajectory
from burnish.diagnosis.built_in import engine_of
from burnish.diagnosis.record import Call, Item, Record
from burnish.diagnosis.tags import lessons
from burnish.loop.curriculum import Curriculum, records_of
from burnish.loop.grading import open_world
from burnish.loop.knobs import Knobs
from burnish.loop.preflight import check_recipe
from burnish.loop.state import LoopState
from burnish.loop.task_queue import TaskQueue
from burnish.rollout.group import GroupResult
from burnish.store.reader import RunReader

KINDS = ("done", "wrong", "down")
EVEN = dict.fromkeys(KINDS, 1 / 3)
SHOP = ("environment.name=shop", "environment.options={train=40}", "model.tiny.max_positions=1024")


# -- worth -----------------------------------------------------------------------------------------------------------


def test_lessons_draw_and_what_others_spoil_does_not() -> None:
    seen = Teachable(memory_steps=5.0)
    assert seen.probabilities(EVEN, floor=0.1) == pytest.approx(EVEN), "nothing is known, so nothing is preferred"
    seen.learn(
        {
            "done": Tally(runs=80),
            "wrong": Tally(runs=80, lessons=60.0),
            "down": Tally(runs=80, lessons=20.0, others=60),
        }
    )
    found = seen.probabilities(EVEN, floor=0.1)
    assert found["wrong"] > 0.7
    assert found["done"] == pytest.approx(0.1 * found["wrong"]), "the floor"
    assert found["down"] < 0.15 * found["wrong"]
    blind = Teachable(memory_steps=5.0)
    blind.learn({"done": Tally(runs=80), "wrong": Tally(runs=80, lessons=60.0), "down": Tally(runs=80, lessons=80.0)})
    assert blind.probabilities(EVEN, floor=0.1)["down"] > 0.5, "the control: blame is what keeps it down"


def test_worth_is_shrunk_forgotten_and_kept() -> None:
    seen = Teachable(memory_steps=1.0)
    seen.learn({"a": Tally(runs=8, lessons=8.0), "b": Tally(runs=8)})
    # (8 + 4) / 16 against (0 + 4) / 16
    assert seen.probabilities({"a": 1, "b": 1}, floor=0.1) == pytest.approx({"a": 0.75, "b": 0.25})
    unseen = seen.probabilities({"a": 1, "b": 1, "c": 1}, floor=0.1)
    assert unseen["b"] < unseen["c"] < unseen["a"]
    copy = Teachable.restore(1.0, json.loads(json.dumps(seen.state())))
    assert copy == seen
    for _ in range(12):
        seen.learn({"a": Tally(runs=8), "b": Tally(runs=8, lessons=8.0)})
    assert seen.probabilities({"a": 1, "b": 1}, floor=0.1)["b"] > 0.7, "what was long ago is forgotten"
    assert seen.kinds["a"].runs == pytest.approx(16.0, abs=0.01), "halved every step: 8 + 4 + 2 + ..."


# -- lessons of a group ----------------------------------------------------------------------------------------------


def record(name: str, *turns: str | Call, passed: bool | None = False) -> Record:
    roles = ("user", *("assistant" if n % 2 == 0 else "tool" for n in range(len(turns) - 1)))
    items = tuple(
        Item(index=n, role=role, text=turn) if isinstance(turn, str) else Item(index=n, role=role, calls=(turn,))
        for n, (role, turn) in enumerate(zip(roles, turns, strict=True), start=1)
    )
    return Record(id=name, items=items, passed=passed)


ASKED = "Cancel order 1234."
LOOK = Call(id="a", name="get_order", arguments={"order": 1234})
RIGHT = Call(id="b", name="cancel_order", arguments={"order": 1234})
INVENTED = Call(id="b", name="cancel_order", arguments={"order": 9876})
DOWN = "Error: 503 service unavailable, try again later"


def test_a_failure_teaches_the_more_the_nearer_it_came_and_an_outage_nothing() -> None:
    passed = record("p", ASKED, LOOK, "pending", RIGHT, "ok", "done", passed=True)
    late = record("late", ASKED, LOOK, "pending", INVENTED, "ok", "done")
    early = record("early", ASKED, INVENTED, "ok", "done")
    down = record("down", ASKED, RIGHT, DOWN, "I could not do it.")
    lost = record("lost", ASKED, passed=None)
    engine = engine_of()
    (near, _), (far, _) = lessons(engine, [passed, late]), lessons(engine, [passed, early])
    assert 1.0 > near > far >= 0.5
    assert lessons(engine, [passed, late, early]) == (near + far, 0)
    assert lessons(engine, [passed, down]) == (0.0, 1)
    assert lessons(engine, [passed, lost]) == (0.0, 1)
    assert lessons(engine, [passed]) == (0.0, 0)


# -- in the loop -----------------------------------------------------------------------------------------------------


def tasks() -> list[Task]:
    return [Task(prompt=str(n), id=str(n), tags={"skill": KINDS[n % 3], "source": "ab"[n % 2]}) for n in range(60)]


def group(kind: str, number: int, reward: float, charge: float = 0.0) -> GroupResult:
    order = 9876 if kind == "wrong" else 1234
    call = ToolCall(id="a", name="cancel_order", arguments={"order": order})
    heard, is_down = (DOWN, True) if kind == "down" else ("ok", False)
    played = (
        Message.user(ASKED),
        Message.assistant("", (call,)),
        Message.tool(heard, call=call, is_error=is_down),
        Message.assistant("done"),
    )
    streams = {"token_ids": "i", "action_mask": "b", "logprobs": "f", "versions": "i"}
    empty: dict[str, Any] = {name: array(code) for name, code in streams.items()}
    node = Node(parent=-1, messages=played, is_action=False, **empty)
    members = tuple(
        Trajectory(
            id=f"{kind}/{number}/{member}",
            task_id=str(number),
            group_id=f"{kind}/{number}",
            sample_index=member,
            seed=member,
            task_hash="",
            nodes=(node,),
            outcome=Outcome(ending=Ending.COMPLETED),
            tags={"skill": kind},
        )
        for member in range(8)
    )
    return GroupResult(
        group_id=f"{kind}/{number}",
        task_id=str(number),
        trajectories=members,
        grades_G=((),) * 8,
        rewards_G=(reward,) * 8,
        charges_G=(charge,) * 8,
        signal=False,
    )


def drawn(draw: str, steps: int = 4) -> dict[str, float]:
    recipe, state = tiny_recipe(f"curriculum.draw={draw}"), LoopState()
    taught = Curriculum(recipe, tasks(), state, engine_of())
    for step in range(steps):
        taught.learn([group(kind, step, float(kind == "done")) for kind in KINDS], step)
    again = Curriculum(recipe, tasks(), LoopState.from_json(json.loads(json.dumps(state.to_json()))), engine_of())
    assert again.probabilities() == taught.probabilities()
    return taught.probabilities()


def test_diagnosis_leaves_an_outage_alone_and_counting_failures_chases_it() -> None:
    by_diagnosis, by_failures = drawn("diagnosis"), drawn("failures")
    assert by_diagnosis["wrong"] > 3 * by_diagnosis["down"]
    assert by_failures["down"] == pytest.approx(by_failures["wrong"])
    assert by_failures["down"] > 3 * by_failures["done"]


def test_what_a_success_costs_is_no_failure() -> None:
    assert all(one.passed for one in records_of(group("done", 0, 0.75, charge=0.25), 1))
    assert not any(one.passed for one in records_of(group("done", 0, 0.75), 1))


def test_a_queue_draws_kinds_resumes_with_them_and_lets_control_go_first() -> None:
    queue, shares = TaskQueue(tasks(), 3, "skill"), {"done": 0.05, "wrong": 0.9, "down": 0.05}
    found = queue.next(300, step=1, knobs=Knobs(), kind_shares=shares)
    assert 0.85 < sum(n % 3 == 1 for n in found) / 300 < 0.95
    often = Counter(n for n in found if n % 3 == 1)
    assert len(often) == 20
    assert max(often.values()) - min(often.values()) <= 1, "each in turn"
    other = TaskQueue(tasks(), 3, "skill")
    other.restore(json.loads(json.dumps(queue.state())))
    assert other.next(20, step=2, knobs=Knobs(), kind_shares=shares) == queue.next(
        20, step=2, knobs=Knobs(), kind_shares=shares
    )
    assert "kinds" not in TaskQueue(tasks(), 3, "skill").state(), "a run without kinds stores none"
    weighed = Knobs(source_shares={"a": 1.0, "b": 0.0})
    assert all(n % 2 == 0 for n in queue.next(40, step=3, knobs=weighed, kind_shares=shares))


@pytest.mark.parametrize("tag", ["nothing", "template"])
def test_a_tag_that_tells_no_kinds_is_refused_before_the_run(tag: str) -> None:
    recipe = tiny_recipe(*SHOP, "curriculum.draw=diagnosis", f"curriculum.tag={tag}")
    world = open_world(recipe)
    if tag == "template":
        check_recipe(recipe, world)
        return
    with pytest.raises(ConfigError, match=r"curriculum\.tag 'nothing' has 1 values .* skill"):
        check_recipe(recipe, world)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_draws_by_what_it_saw(tmp_path: Path, mode: str) -> None:
    recipe = shop_recipe("curriculum.draw=diagnosis", f"rollout.mode={mode}")
    start_run(recipe, tmp_path / "run")
    shares = RunReader(tmp_path / "run").all_scalars("rl")
    kinds = {name: values for name, values in shares.items() if name.startswith("curriculum/")}
    assert set(kinds) == {"curriculum/lookup", "curriculum/calculation", "curriculum/change"}
    assert sum(values[-1][1] for values in kinds.values()) == pytest.approx(1.0)
    plain = shop_recipe(f"rollout.mode={mode}")
    start_run(plain, tmp_path / "plain")
    assert not any(name.startswith("curriculum/") for name in RunReader(tmp_path / "plain").scalar_names("rl"))


def test_a_stopped_run_draws_the_same(tmp_path: Path) -> None:
    recipe = shop_recipe("curriculum.draw=diagnosis", "rl.steps=4")
    start_run(recipe, tmp_path / "whole")
    ask = StopAt("rl", 2)
    with pytest.raises(RunStopped, match="stopped on request"):
        start_run(recipe, tmp_path / "stopped", watch=ask.watch, stop=ask.stop)
    resume_run(tmp_path / "stopped")
    assert differences(facts(tmp_path / "stopped"), facts(tmp_path / "whole")) == []


def shop_recipe(*words: str) -> Any:
    limits = ("limits.max_context_tokens=400", "limits.max_turn_tokens=24", "model.tiny.max_positions=512")
    quick = ("evaluation.every=0", "evaluation.before=false", "rl.steps=2", "rl.filter_zero_signal=false")
    return tiny_recipe(*SHOP[:2], *limits, *quick, "stop.no_signal_groups=0", *words)
