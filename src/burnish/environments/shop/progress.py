"""How far an episode got, whatever its score: the share of the task's facts that it established.

    progress = max(0, facts established - rows changed that should not have been) / facts

The facts of a task are its expert's lookups (tool and arguments), the values of its sums, and what it ends in: each row
that should change, or the answer.  A lookup counts once it was made and answered, a sum once the calculator gave its
value.  A right answer found without any of them has progress 1.  For example, a price gap has four facts (two prices,
their difference, the answer); an episode that looks up both prices and subtracts in its head, wrongly, has 2 of 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from burnish.core.hashing import canonical_json
from burnish.core.message import Message, Role, ToolCall
from burnish.core.task import Task
from burnish.environments.shop.arithmetic import evaluate
from burnish.environments.shop.catalogue import BY_NAME
from burnish.environments.shop.mistakes import WRITES
from burnish.environments.shop.world import World, build_world

CALCULATOR = "calculator"


def needed_facts(task: Task) -> frozenset[str] | None:
    """What has to be found out on the way, as comparable texts; None for a task that is not one of the shop's own."""
    template, seed, slots = task.tags.get("template"), task.setup.get("seed"), task.reference.get("slots")
    if template not in BY_NAME or not isinstance(seed, int) or slots is None:
        return None
    return _needed(template, seed, canonical_json(slots))


def established_facts(messages: Iterable[Message]) -> frozenset[str]:
    """What an episode found out: its lookups and calculations that were not answered with an error."""
    facts: set[str] = set()
    asked: tuple[ToolCall, ...] = ()
    for message in messages:
        if message.role is Role.ASSISTANT:
            asked = message.tool_calls
        elif message.role is Role.TOOL:
            call = next((one for one in asked if one.id == message.tool_call_id), None)
            if call is not None and not message.is_error and call.name not in WRITES:
                facts.add(_fact(call, message.text))
    return frozenset(facts)


def read_progress(needed: frozenset[str], established: frozenset[str], *, right: bool, n_extra: int) -> float:
    """Progress of a question: its answer is one fact more; rows that changed are taken off."""
    if right and n_extra == 0:
        return 1.0
    return max(0, len(needed & established) + right - n_extra) / (len(needed) + 1)


def write_progress(
    needed: frozenset[str], established: frozenset[str], *, n_rows: int, n_missing: int, n_extra: int
) -> float:
    """Progress of a job: each of its `n_rows` rows is one fact more; extra rows are taken off."""
    if n_missing == n_extra == 0:
        return 1.0
    return max(0, len(needed & established) + n_rows - n_missing - n_extra) / max(1, len(needed) + n_rows)


def _fact(call: ToolCall, text: str) -> str:
    return f"= {text.strip()}" if call.name == CALCULATOR else canonical_json([call.name, call.arguments])


@lru_cache(maxsize=4096)
def _needed(template: str, seed: int, slots: str) -> frozenset[str]:
    """Cached: the members of a group share one task."""
    world = build_world(seed)
    facts: set[str] = set()
    script = BY_NAME[template].script(json.loads(slots))
    text: str | None = None
    while True:
        try:
            call = next(script) if text is None else script.send(text)
        except StopIteration:
            return frozenset(facts)
        text = canonical_json(_result(world, call))
        if call.name not in WRITES:
            facts.add(_fact(call, text))


def _result(world: World, call: ToolCall) -> Any:
    """What the tool answers at the start of the episode.  No expert looks up what it has changed."""
    given: Any = call.arguments
    match call.name:
        case "get_product" | "get_stock":
            return asdict(world.products[given["product"]])
        case "get_customer":
            return asdict(world.customers[given["customer"]])
        case "get_order":
            return asdict(world.orders[given["order"]])
        case "get_lines":
            lines = sorted(world.orders[given["order"]].lines.items())
            return [{"product": product, "units": units} for product, units in lines]
        case "latest_order":
            return world.latest_order(given["customer"])
        case "get_refunds":
            return world.refunded(given["order"])
        case "calculator":
            return evaluate(given["expression"])
        case _:
            return None
