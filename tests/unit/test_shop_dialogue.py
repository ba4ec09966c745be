"""Telephone calls to the shop: the expert earns everything, careless ones nothing, the customer says what he wants."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from burnish.core.environment import Script
from burnish.core.errors import ConfigError, TaskError
from burnish.core.message import Message, ToolCall
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.environments.base import expert_policy
from burnish.environments.shop_dialogue import Customer, DialogueGrader, ShopDialogue
from burnish.environments.shop_dialogue.customer import WORDINGS, Wish
from burnish.environments.shop_dialogue.expert import kind_of, values_in
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted

TASKS = list(ShopDialogue(train=24).tasks("train", Random(3)))
GRADER = DialogueGrader()


def play(task: Task, policy: Any) -> Trajectory:
    plan = EpisodePlan(id="e", group_id="g", task=task, sample_index=0, seed=0)
    return asyncio.run(run_scripted([plan], make_environment=lambda task: ShopDialogue(), policy=policy))[0]


def first(kind: str) -> Task:
    return next(task for task in TASKS if task.tags["template"] == kind)


@pytest.mark.parametrize("mistake", [None, "hasty", "unverified"])
def test_the_expert_passes_every_call_and_careless_ones_none(mistake: str | None) -> None:
    def policy(world: Any, task: Task, rng: Random) -> Script:
        return expert_policy(world, task, rng, mistake)

    scores = [GRADER.judge(task, play(task, policy)).score for task in TASKS]
    assert scores == [1.0 if mistake is None else 0.0] * len(scores)


def test_wishes_arrive_turn_by_turn() -> None:
    task = next(task for task in TASKS if "+" in task.tags["template"])
    said = [m.text for m in play(task, expert_policy).messages if m.role == "user"]
    second = task.setup["wishes"][1]["values"]
    assert not any(str(value) in task.prompt_text.split() for value in second.values() if not isinstance(value, int))
    assert any(all(str(value) in text for value in second.values()) for text in said[1:])


def test_every_wording_is_understood() -> None:
    values = {"city": "Oslo", "order": 17, "units": 3, "product": "lamp"}
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            text = wording.format_map(values)
            assert kind_of(text) == kind
            assert all(values_in(text)[name] == values[name] for name in values if "{" + name in wording)


def customer(**values: Any) -> Customer:
    kind = "move" if "city" in values else "cancel"
    return Customer(key=23, name="Ana", wishes=[Wish(kind=kind, values=values)], rng=Random(0))


def test_he_agrees_to_what_he_wants_and_to_nothing_else() -> None:
    ana = customer(order=17)
    assert "17" in str(ana.hears("I would cancel order 71. Shall I go ahead?"))
    assert not ana.consents
    assert "yes" in str(ana.hears("I would cancel order 17 for a fee of 5. Shall I go ahead?")).lower() or ana.consents
    assert ana.consents
    assert ana.hears("What is your customer number and name?") == "I am Ana, customer 23."
    assert not ana.consents
    assert "all" in str(ana.hears("Done. Is there anything else?"))
    assert ana.hears("Anything else?") is None


def test_a_customer_who_is_never_understood_leaves() -> None:
    ana = customer(city="Oslo")
    heard = [ana.hears("What?") for _ in range(8)]
    assert heard[-1] is None
    assert "city" in str(heard[0]).lower() or "oslo" in str(heard[0]).lower()


def test_a_turn_that_asks_nothing_ends_the_call() -> None:
    assert customer(city="Oslo").hears("Goodbye.") is None


def test_one_yes_allows_one_change() -> None:
    task = first("move")
    key, city = task.setup["customer"], task.setup["wishes"][0]["values"]["city"]

    def twice(world: Any, task: Task, rng: Random) -> Script:
        yield ToolCall(id="c", name="get_customer", arguments={"customer": key})
        yield Message.assistant(f"I would set the city to {city}. Shall I go ahead?")
        for _ in range(2):
            yield ToolCall(id="c", name="set_city", arguments={"customer": key, "city": city})
        return "Goodbye."

    run = play(task, twice)
    assert run.final_state["unconfirmed"] == ["set_city"]
    assert GRADER.judge(task, run).score == 0.0


def test_listing_numbers_tells_none_of_them() -> None:
    task = first("stock")
    right = play(task, expert_policy)
    assert GRADER.judge(task, right).score == 1.0

    def lists(world: Any, task: Task, rng: Random) -> Script:
        yield ToolCall(id="c", name="get_customer", arguments={"customer": task.setup["customer"]})
        return "It is " + " or ".join(str(n) for n in range(100))

    assert GRADER.judge(task, play(task, lists)).score == 0.0


def test_what_is_missing_is_no_zero() -> None:
    run = play(TASKS[0], expert_policy)
    assert GRADER.judge(TASKS[0], replace(run, final_state={})).score is None


def test_options_and_tasks_are_checked() -> None:
    with pytest.raises(ConfigError, match="wishes is 1 to 4"):
        ShopDialogue(wishes=9)
    with pytest.raises(TaskError, match="no split"):
        list(ShopDialogue().tasks("unseen", Random(0)))
    heldout = {t.setup["seed"] for t in ShopDialogue(heldout=20).tasks("heldout", Random(3))}
    assert not heldout & {t.setup["seed"] for t in TASKS}
