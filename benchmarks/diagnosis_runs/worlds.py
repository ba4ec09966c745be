"""Where faults are injected: the shop, telephone calls to it, and repositories to repair; each with its expert."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from burnish.core.environment import Script
from burnish.core.hashing import derive_seed
from burnish.core.message import Message, Role, ToolCall
from burnish.core.task import Task
from burnish.core.trajectory import Trajectory
from burnish.diagnosis.record import Call, Item, Label, Record, Reference, Tool
from burnish.environments.shop import Shop, ShopGrader
from burnish.environments.shop.mistakes import WRITES
from burnish.environments.shop.world import CITIES, build_world
from burnish.environments.shop_dialogue import Customer, DialogueGrader, ShopDialogue
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted
from diagnosis_runs.faults import (
    TRUTH,
    Failing,
    Kind,
    Plan,
    calls,
    first_departure,
    results,
    with_fault,
    without_asking,
)

READS = ("get_product", "get_stock", "get_refunds", "calculator")
"""Reads whose value a script may make up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """A run with its truth.  kind: None for a run of the expert without a fault."""

    world: str
    kind: Kind | None
    record: Record


Judge = Callable[[Task, Trajectory], float | None]
Policy = Callable[[Any], Script]


def play(task: Task, make: Callable[[], Any], policy: Policy) -> Trajectory:
    """One episode."""
    plan = EpisodePlan(id=task.id, group_id=task.id, task=task, sample_index=0, seed=0)
    played = asyncio.run(
        run_scripted([plan], make_environment=lambda task: make(), policy=lambda world, task, rng: policy(world))
    )
    return played[0]


def record_of(task: Task, run: Trajectory, world: Any, name: str, reference: Reference, passed: bool) -> Record:
    """What a stranger would see of a run, its reference beside it."""
    return Record(
        id=name,
        task_id=task.id,
        items=tuple(_item(message, index) for index, message in enumerate(run.messages, start=1)),
        source="burnish",
        tools=tuple(
            Tool(name=tool.spec.name, description=tool.spec.description, parameters=tool.spec.parameters)
            for tool in type(world).tools(world)
        ),
        reference=reference,
        passed=passed,
        outcome=run.outcome.label,
    )


def _item(message: Message, index: int) -> Item:
    return Item(
        index=index,
        role=str(message.role),
        text=message.text,
        calls=tuple(Call(id=call.id, name=call.name, arguments=dict(call.arguments)) for call in message.tool_calls),
        call_id=message.tool_call_id,
        name=message.name,
        is_error=message.is_error if message.role is Role.TOOL else None,
    )


def labelled(record: Record, index: int, kind: Kind) -> Record:
    """The record with its truth."""
    category, owner, _ = TRUTH[kind]
    return replace(record, labels=(Label(index=index, category=category, owner=owner, is_root=True),))


def _gold(run: Trajectory, told: Sequence[str], writes: frozenset[str]) -> Reference:
    actions = tuple(Call(name=call.name, arguments=dict(call.arguments)) for call in calls(run) if call.name in writes)
    return Reference(actions=actions, outputs=tuple(told))


# -- the shop ----------------------------------------------------------------------------------------------------------


def shop_runs(seed: int, split: str = "train") -> Iterator[Injected]:
    """Runs of one seed: ten tasks of each level, the kinds of fault in turn; those that fail, and the clean ones."""
    grader = ShopGrader()
    kinds = [kind for kind in Kind if kind is not Kind.CONTRADICT]
    for level in (1, 2, 3):
        tasks = Shop(level=level, train=10, unseen=10).tasks(split, Random(derive_seed("inject", seed, level)))
        for number, task in enumerate(tasks):
            kind = kinds[(number + seed) % len(kinds)]
            name = f"shop/{seed}/{level}/{number}"
            rng = Random(derive_seed(name))
            world = Shop()
            clean = play(task, Shop, lambda world: world.solve())
            told = (task.reference["answer"],) if "answer" in task.reference else ()
            reference = _gold(clean, told, WRITES)
            yield Injected(world="shop", kind=None, record=record_of(task, clean, world, name, reference, True))
            at = _target(clean, kind, rng)
            if at is None:
                continue
            plan = Plan(kind=kind, at=at, rng=rng, heard=results(clean))
            if kind is Kind.OUTAGE:
                run = play(
                    task,
                    lambda plan=plan: Failing(Shop(), plan.at, plan.rng),
                    lambda world, plan=plan: with_fault(world.inner.solve(), plan),
                )
            else:
                run = play(task, Shop, lambda world, plan=plan: with_fault(world.solve(), plan))
            if grader.judge(task, run).score == 0.0:
                yield from _kept("shop", kind, task, clean, run, world, name, reference)


def _kept(
    where: str, kind: Kind, task: Task, clean: Trajectory, run: Trajectory, world: Any, name: str, reference: Reference
) -> Iterator[Injected]:
    index = first_departure(clean, run, TRUTH[kind][2])
    if index is not None:
        record = record_of(task, run, world, f"{name}/{kind}", reference, False)
        yield Injected(world=where, kind=kind, record=labelled(record, index, kind))


def _target(clean: Trajectory, kind: Kind, rng: Random) -> int | None:
    """Number of the call that a fault of this kind hits; None where the run has none that fits."""
    made, heard = calls(clean), results(clean)

    def fits(number: int) -> bool:
        name = made[number].name
        if kind is Kind.DROP:
            return name in WRITES
        if kind is Kind.INVENT:
            return name in READS
        if kind is Kind.MISREAD:
            return name not in WRITES and bool(re.search(r"\d\d", heard[number]))
        return True

    fitting = [number for number in range(len(made)) if fits(number)]
    return rng.choice(fitting) if fitting else None


# -- the telephone -----------------------------------------------------------------------------------------------------


class Contradicting(Customer):
    """A customer who says something else than before when he is to agree for the `at`-th time, and agrees to that."""

    def __init__(self, inner: Customer, at: int, rng: Random, orders: Sequence[int] = ()) -> None:
        super().__init__(key=inner.key, name=inner.name, wishes=inner.wishes, rng=inner.rng)
        self.orders = orders
        self.fault_at, self.fault_rng, self.number = at, rng, -1

    def proposed(self, text: str) -> str:
        """Agrees to what he has come to say."""
        self.number += 1
        changed = self._changed() if self.number == self.fault_at else ""
        if changed:
            return changed
        if self.number == self.fault_at + 1:
            self.consents = True
            return "Yes, please go ahead."
        return super().proposed(text)

    def _changed(self) -> str:
        """Words that take back what he had said, "" where his wish has nothing to take back."""
        values, rng = self.wish.values, self.fault_rng
        if "city" in values:
            other = rng.choice([city for city in CITIES if city != values["city"]])
            return rng.choice(CONTRADICTIONS["city"]).format(old=values["city"], new=other)
        if "units" in values:
            other = rng.choice([n for n in range(2, 10) if n != values["units"]])
            return rng.choice(CONTRADICTIONS["units"]).format(old=values["units"], new=other)
        others = [order for order in self.orders if order != values.get("order")]
        if "order" not in values or not others:
            return ""
        return rng.choice(CONTRADICTIONS["order"]).format(old=values["order"], new=rng.choice(others))


CONTRADICTIONS: Mapping[str, Sequence[str]] = {
    "city": (
        "Not {old}. I said {new}.",
        "Actually, make that {new}.",
        "Sorry, the city is {new}.",
        "That is not {old} any more. It should be {new} instead.",
        "Yes, but to {new}, please.",
    ),
    "units": (
        "Actually, it is {new} units.",
        "I meant {new} units, sorry.",
        "Wait, there are {new} units that broke.",
        "Yes, all {new} units of them.",
    ),
    "order": (
        "No, I said order {new}.",
        "Wait, I meant order {new}.",
        "Sorry, it is order {new}.",
        "Yes, order {new}, go ahead.",
    ),
}
"""What a customer who contradicts himself says in place of a yes; the last value is what an agent will take."""


def dialogue_runs(seed: int) -> Iterator[Injected]:
    """Runs of one seed: a call for each kind of fault and each first wish; those that fail, and the clean ones."""
    grader = DialogueGrader()
    kinds = list(Kind)
    tasks = ShopDialogue(train=4 * len(kinds)).tasks("train", Random(derive_seed("inject", "dialogue", seed)))
    for number, task in enumerate(tasks):
        kind = kinds[number // 4 % len(kinds)]
        name = f"shop_dialogue/{seed}/{number}"
        rng = Random(derive_seed(name))
        clean = play(task, ShopDialogue, lambda world: world.solve())
        reference = replace(_gold(clean, task.reference["told"], WRITES), instruction=json.dumps(task.setup["wishes"]))
        world = _offering(task)
        yield Injected(world="shop_dialogue", kind=None, record=record_of(task, clean, world, name, reference, True))
        run = _dialogue(task, clean, kind, rng)
        if run is not None and grader.judge(task, run).score == 0.0:
            yield from _kept("shop_dialogue", kind, task, clean, run, world, name, reference)


def _offering(task: Task) -> Any:
    world = ShopDialogue()
    asyncio.run(world.start(task))
    return world


def _dialogue(task: Task, clean: Trajectory, kind: Kind, rng: Random) -> Trajectory | None:
    proposals = sum("Shall I go ahead?" in m.text for m in clean.messages if m.role is Role.ASSISTANT)
    made, heard = calls(clean), results(clean)
    if kind is Kind.CONTRADICT:
        at = rng.randrange(proposals) if proposals else 0

        def make() -> ShopDialogue:
            return _Contradicted(at, Random(derive_seed(task.id, at)))

        return play(task, make, lambda world: world.solve()) if proposals else None
    options: list[tuple[str, int]] = [
        ("call", number) for number in range(len(made)) if _dialogue_fits(kind, made[number], heard[number])
    ]
    if kind is Kind.DROP:
        options += [("proposal", number) for number in range(proposals)]
    if not options:
        return None
    what, at = rng.choice(options)
    plan = Plan(kind=kind, at=at, rng=rng, heard=heard)
    if what == "proposal":
        return play(task, ShopDialogue, lambda world: without_asking(world.solve(), plan))
    if kind is Kind.OUTAGE:
        return play(task, lambda: Failing(ShopDialogue(), at, rng), lambda world: with_fault(world.inner.solve(), plan))
    return play(task, ShopDialogue, lambda world: with_fault(world.solve(), plan))


def _dialogue_fits(kind: Kind, call: ToolCall, heard: str) -> bool:
    if kind is Kind.DROP:
        return call.name in WRITES or call.name == "get_customer"
    if kind is Kind.INVENT:
        return call.name in ("get_product", "get_stock", "calculator")
    if kind is Kind.MISREAD:
        return call.name in ("get_product", "get_stock", "calculator", "get_order")
    return True


class _Contradicted(ShopDialogue):
    """A call of a customer who contradicts himself."""

    def __init__(self, at: int, rng: Random) -> None:
        super().__init__()
        self._fault = at, rng

    def setup(self, task: Task) -> None:
        super().setup(task)
        world = build_world(task.setup["seed"])
        own = [key for key, order in world.orders.items() if order.customer == self.customer.key]
        self.customer = Contradicting(self.customer, *self._fault, orders=own)


WORLDS: Mapping[str, Callable[..., Iterator[Injected]]] = {"shop": shop_runs, "shop_dialogue": dialogue_runs}
