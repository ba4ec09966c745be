"""What a template of shop tasks is; the templates themselves stand in one file for each level.

A template states its right outcome twice, from two sides that share nothing: `answer` or `changes` from the world's
values, `script` from tool results alone.  That both agree is what the oracle score of 1.0 says.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from random import Random
from typing import Any, ClassVar

from burnish.core.hashing import derive_seed
from burnish.core.message import ToolCall
from burnish.environments.shop.database import updated
from burnish.environments.shop.world import CUSTOMER_IDS, ORDER_IDS, PRODUCTS, World

Slots = dict[str, Any]
"""What fills the gaps of a wording, such as `{"product": "lamp", "units": 3}`."""

Steps = Generator[ToolCall, str, str]
"""An expert's episode: yields one call at a time, is sent the text of its result, returns the answer."""

Changes = list[Mapping[str, Any]]

HELD_OUT_ONE_IN = 5
DONE = "done"


FAMILIES: Mapping[str, Sequence[Any]] = {"product": PRODUCTS, "customer": CUSTOMER_IDS, "order": ORDER_IDS}


@lru_cache(maxsize=256)
def _place(slot: str, value: Any) -> int:
    """Place of an entity in a fixed shuffle of its family: with it each template holds out one in five, never none."""
    return sorted(FAMILIES[slot], key=lambda item: derive_seed("shop", slot, item)).index(value)


@lru_cache(maxsize=50_000)
def _is_held_out(template: str, entity: tuple[str, ...], values: tuple[Any, ...]) -> bool:
    place = _place(entity[0], values[0]) if len(values) == 1 else derive_seed("shop", *values)
    return (place + derive_seed("shop", template)) % HELD_OUT_ONE_IN == 0


class Template(ABC):
    """One kind of question or job.

    name: unique.  level: 1 to 3.  wordings: format strings over the slots.  entity: the slots whose values decide the
    split.  unseen: kept out of train and heldout altogether.  calculates: whether the way there has a sum in it.
    """

    name: ClassVar[str]
    level: ClassVar[int]
    kind: ClassVar[str]
    wordings: ClassVar[tuple[str, ...]]
    entity: ClassVar[tuple[str, ...]]
    unseen: ClassVar[bool] = False
    calculates: ClassVar[bool] = False

    @property
    def skill(self) -> str:
        """What solving it takes: "lookup", "calculation", "change" or "calculated_change"."""
        if self.kind == "read":
            return "calculation" if self.calculates else "lookup"
        return "calculated_change" if self.calculates else "change"

    @abstractmethod
    def candidates(self, world: World) -> Iterable[Slots]:
        """Every choice of entities in this world for which the task makes sense."""

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        """The remaining slots (amounts and the like)."""
        return {}

    @abstractmethod
    def reference(self, world: World, slots: Slots) -> dict[str, Any]:
        """The right outcome, `{"answer": text}` or `{"changes": rows}`."""

    @abstractmethod
    def script(self, slots: Slots) -> Steps:
        """The expert, from tool results alone."""

    def is_held_out(self, slots: Slots) -> bool:
        """Whether this template with these entities belongs to the held-out split, whatever the world."""
        return _is_held_out(self.name, self.entity, tuple(slots[name] for name in self.entity))


class Question(Template):
    """A read: an answer to find; nothing may change."""

    kind = "read"

    @abstractmethod
    def answer(self, world: World, slots: Slots) -> str | int: ...

    def reference(self, world: World, slots: Slots) -> dict[str, Any]:
        return {"answer": str(self.answer(world, slots))}


class Job(Template):
    """A write: exactly these rows change."""

    kind = "write"

    @abstractmethod
    def changes(self, world: World, slots: Slots) -> Changes: ...

    def reference(self, world: World, slots: Slots) -> dict[str, Any]:
        return {"changes": self.changes(world, slots)}


def ask(name: str, **arguments: Any) -> ToolCall:
    """A tool call as the expert makes it."""
    return ToolCall(id="call_0", name=name, arguments=arguments)


def look(name: str, **arguments: Any) -> Generator[ToolCall, str, Any]:
    """Call a tool and read its JSON result."""
    return json.loads((yield ask(name, **arguments)))


def calculate(expression: str) -> Generator[ToolCall, str, int]:
    """Call the calculator."""
    return int((yield ask("calculator", expression=expression)))


def order_sum(order: int, column: str = "price") -> Generator[ToolCall, str, str]:
    """Look up the lines of an order and each of their products; return the sum to calculate, such as "3*47+2*15"."""
    lines = yield from look("get_lines", order=order)
    terms = []
    for line in lines:
        found = yield from look("get_product", product=line["product"])
        terms.append(f"{line['units']}*{found[column]}")
    return "+".join(terms)


def each_product(world: World) -> list[Slots]:
    return [{"product": name} for name in world.products]


def each_pair(world: World) -> list[Slots]:
    """Every ordered pair of different products."""
    return [{"product": one, "other": two} for one, two in permutations(world.products, 2)]


THREE_DIGITS = range(100, 1000)
"""Sums keep one length within a template: small models copy by distance, long before they learn where a number ends."""


def each_order(world: World, *n_lines: int) -> list[Slots]:
    """Every order whose total has three digits and whose number of lines is among `n_lines`; every order without."""
    orders = world.orders.items()
    if not n_lines:
        return [{"order": key} for key in world.orders]
    return [{"order": key} for key, order in orders if len(order.lines) in n_lines and world.total(key) in THREE_DIGITS]


def each_buyer(world: World, *n_lines: int) -> list[Slots]:
    """Every customer whose latest order is one of `each_order(world, *n_lines)`."""
    orders = {slots["order"] for slots in each_order(world, *n_lines)}
    return [{"customer": key} for key in world.customers if world.latest_order(key) in orders]


def latest(world: World, slots: Slots) -> int:
    """The latest order of the customer in `slots`, who has one."""
    order = world.latest_order(slots["customer"])
    if order is None:
        raise ValueError(f"customer {slots['customer']} has no order")
    return order


def only_line(world: World, order: int) -> tuple[str, int]:
    """Product and units of an order with a single line."""
    ((product, units),) = world.orders[order].lines.items()
    return product, units


def cancelled(world: World, order: int, fee: int) -> Mapping[str, Any]:
    """The change of an order that is cancelled for a fee."""
    return updated(
        "orders", order, {"status": world.orders[order].status, "fee": 0}, {"status": "cancelled", "fee": fee}
    )
