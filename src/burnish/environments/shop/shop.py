"""The shop: a retail world in SQLite with read and write tools, questions and jobs of three levels."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from random import Random, uniform
from typing import Any

from burnish.core.errors import ConfigError, TaskError, ToolError
from burnish.core.grade import Grader
from burnish.core.hashing import derive_seed
from burnish.core.task import Limits, Task
from burnish.core.text import clean_text
from burnish.core.tool import Tool
from burnish.environments.base import Environment
from burnish.environments.shop.arithmetic import evaluate
from burnish.environments.shop.catalogue import BY_NAME, Sources, draw, level_shares, templates_in_turn
from burnish.environments.shop.database import (
    Tables,
    open_image,
    row_changes,
    shared_tables,
    snapshot,
    start_snapshot,
    world_image,
)
from burnish.environments.shop.grader import ShopGrader
from burnish.environments.shop.mistakes import MISTAKES, Case
from burnish.environments.shop.preference import PreferenceGrader
from burnish.environments.shop.templates import Slots, Steps, Template
from burnish.environments.shop.world import CITIES, World, build_world, pick
from burnish.environments.tool import tool

MAX_AMOUNT = 99_999
MAX_WORLDS_TRIED = 1_000
INSTRUCTIONS = (
    "You run a shop through tools. Answer a question with the value alone, such as 42. "
    "Change only what a job asks for and then answer: done."
)
"""A system text for models that were not trained here; `Shop(instructions=INSTRUCTIONS)`."""


class Shop(Environment):
    """Questions and jobs in a small shop.

    Options: level 1 (one or two tool calls), 2 (three or four) or 3 (five or six), or weights by level such as
    {"2": 3, "3": 1}; sources, by name of where tasks are said to come from (the tag `source`, "shop" by default), a
    weight or {"weight": 1, "noise": 0.3}; preference_seed, which adds a `PreferenceGrader` with the noise of the
    sources to the graders (heard, and counted only where a recipe gives it a weight); the number of tasks in each
    split; instructions, a system text for every task (none by default: a model trained here needs none); latency_s, the
    least and most seconds that a tool call takes (drawn uniformly; none by default), for trying out slow tools.

    Splits: "train"; "heldout" has pairs of template and entity that train never has, though it has each of the two;
    "unseen" has templates that train never has.  Each task has its own prices, stocks and statuses, so that no
    remembered answer is worth anything.
    """

    name = "shop"
    splits = ("train", "heldout", "unseen")
    graders: tuple[str | Grader, ...] = (ShopGrader(),)
    chance = 0.0
    mistakes = tuple(MISTAKES)

    def __init__(
        self,
        *,
        level: int | Mapping[str, float] = 1,
        sources: Mapping[str, float | Mapping[str, float]] | None = None,
        preference_seed: int | None = None,
        train: int = 2000,
        heldout: int = 300,
        unseen: int = 200,
        instructions: str = "",
        latency_s: Sequence[float] = (),
    ) -> None:
        self.levels = level_shares(level)
        self.sources = Sources.of(sources or {})
        if preference_seed is not None:
            self.graders = (ShopGrader(), PreferenceGrader(seed=preference_seed, noise=self.sources.noise))
            self.weights = {ShopGrader.name: 1.0}
        self.sizes = {"train": train, "heldout": heldout, "unseen": unseen}
        for split, size in self.sizes.items():
            if size < 0:
                raise ConfigError(f"shop: the size of {split} is 0 or more, got {size!r}")
        self.instructions = instructions
        if latency_s and not (len(latency_s) == 2 and 0 <= latency_s[0] <= latency_s[1]):
            raise ConfigError(f"shop: latency_s is the least and the most seconds of a call, got {latency_s!r}")
        self.latency_s = tuple(latency_s)
        highest = max(self.levels)
        self.limits = Limits(
            max_turns=2 * highest + 3,
            max_turn_tokens=64,
            max_episode_tokens=128 * (highest + 1),
            max_context_tokens=4096,
        )
        self._connection: Tables | None = None

    def tasks(self, split: str, rng: Random) -> Iterator[Task]:
        """The tasks of a split, its templates in turn; all randomness from `rng`."""
        if split not in self.sizes:
            raise TaskError(f"shop has no split {split!r}; it has {', '.join(self.sizes)}")
        templates = templates_in_turn(self.levels, unseen=split == "unseen")
        for template in islice(templates, self.sizes[split]):
            yield self._make_task(template, split, rng)

    def _make_task(self, template: Template, split: str, rng: Random) -> Task:
        for _ in range(MAX_WORLDS_TRIED):
            seed = int(rng.random() * 2**48)
            world = build_world(seed)
            choices = _of_split(template, template.candidates(world), split)
            if not choices:
                continue
            slots = pick(rng, choices)
            slots = slots | template.details(world, slots, rng)
            reference = template.reference(world, slots)
            if reference.get("answer") in [str(value) for value in slots.values()]:
                continue  # Such an answer could be read off the prompt.
            return Task(
                prompt=pick(rng, template.wordings).format_map(slots),
                system=self.instructions,
                setup={"seed": seed},
                reference=reference | {"slots": slots},
                tags={
                    "source": draw(rng, self.sources.shares) if self.sources.shares else "shop",
                    "level": str(template.level),
                    "template": template.name,
                    "kind": template.kind,
                    "skill": template.skill,
                },
            )
        raise TaskError(f"shop: no world has entities for template {template.name} in split {split}")

    def tools(self) -> Sequence[Tool]:
        """The tools of the shop, slowed down where it has a latency."""
        return [slowed(tool, self.latency_s) for tool in super().tools()] if self.latency_s else super().tools()

    def setup(self, task: Task) -> None:
        if not isinstance(task.setup.get("seed"), int):
            raise TaskError(f'task {task.id}: the shop needs setup {{"seed": whole number}}, got {dict(task.setup)!r}')
        self._seed: int = task.setup["seed"]

    @property
    def database(self) -> Tables:
        """This episode's own copy of the tables, opened at the first call that writes."""
        if self._connection is None:
            self._connection = open_image(world_image(self._seed))
        return self._connection

    @property
    def _tables(self) -> sqlite3.Connection:
        """Where to read: the own copy once there is one, until then what all episodes of this world share."""
        return self._connection if self._connection is not None else shared_tables(self._seed)

    def final_state(self) -> dict[str, Any]:
        """`{"changes": rows}`: the canonical row difference from the start."""
        own = self._connection
        if own is None or own.total_changes == 0:
            return {"changes": []}
        return {"changes": row_changes(start_snapshot(self._seed), snapshot(own, own.written))}

    def teardown(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def vocabulary(self) -> list[str | int]:
        """Every value of this episode's world that an argument may take: what a policy without skill draws from."""
        world = build_world(self._seed)
        return [*world.products, *world.customers, *world.orders, *CITIES]

    def solve(self, mistake: str | None = None, rng: Random | None = None) -> Steps:
        """The expert of the task at hand, or one of its `mistakes`, each of which fails the task."""
        reference = self.task.reference
        script = BY_NAME[self.task.tags["template"]].script(dict(reference["slots"]))
        if mistake is not None:
            rng = rng or Random(derive_seed(self.task.id, mistake))
            case = Case(answer=reference.get("answer"), rows=_rows(build_world(self._seed)), rng=rng)
            script = MISTAKES[mistake](script, case)
        return (yield from script)

    @tool(inline=True)
    def get_product(self, product: str) -> dict[str, int]:
        """Look up price and weight of a product.

        Args:
            product: name of the product
        """
        return self._row("SELECT price, weight FROM products WHERE name = ?", "product", product)

    @tool(inline=True)
    def get_stock(self, product: str) -> dict[str, Any]:
        """Look up how many units of a product are in stock, and on which shelf.

        Args:
            product: name of the product
        """
        return self._row("SELECT units, shelf FROM stock WHERE product = ?", "product", product)

    @tool(inline=True)
    def get_customer(self, customer: int) -> dict[str, Any]:
        """Look up name, city and points of a customer.

        Args:
            customer: id of the customer
        """
        return self._row("SELECT name, city, points FROM customers WHERE id = ?", "customer", customer)

    @tool(inline=True)
    def get_order(self, order: int) -> dict[str, Any]:
        """Look up customer, status and day of an order.

        Args:
            order: id of the order
        """
        return self._row("SELECT customer, status, day FROM orders WHERE id = ?", "order", order)

    @tool(inline=True)
    def get_lines(self, order: int) -> list[dict[str, Any]]:
        """Look up the products of an order with their units.

        Args:
            order: id of the order
        """
        self.get_order(order)
        rows = self._tables.execute("SELECT product, units FROM lines WHERE order_id = ?", (order,))
        return [{"product": product, "units": units} for product, units in rows.fetchall()]

    @tool(inline=True)
    def latest_order(self, customer: int) -> int:
        """Find the id of a customer's latest order.

        Args:
            customer: id of the customer
        """
        self.get_customer(customer)
        query = "SELECT id FROM orders WHERE customer = ? ORDER BY day DESC LIMIT 1"
        found = self._tables.execute(query, (customer,)).fetchone()
        if found is None:
            raise ToolError(f"customer {customer} has no order")
        return int(found[0])

    @tool(inline=True)
    def get_refunds(self, order: int) -> int:
        """Look up how much has been refunded for an order.

        Args:
            order: id of the order
        """
        self.get_order(order)
        query = "SELECT coalesce(sum(amount), 0) FROM refunds WHERE order_id = ?"
        return int(self._tables.execute(query, (order,)).fetchone()[0])

    @tool(inline=True)
    def calculator(self, expression: str) -> int:
        """Calculate with whole numbers, + - * and parentheses.

        Args:
            expression: what to calculate, such as 3*47
        """
        return evaluate(expression)

    @tool(inline=True)
    def cancel_order(self, order: int, fee: int) -> None:
        """Cancel an order that has not been delivered.

        Args:
            order: id of the order
            fee: what the customer is charged for it, at least 1
        """
        status = self.get_order(order)["status"]
        if status in ("delivered", "cancelled"):
            raise ToolError(f"order {order} is {status}")
        self.database.execute("UPDATE orders SET status = 'cancelled', fee = ? WHERE id = ?", (_amount(fee), order))

    @tool(inline=True)
    def add_stock(self, product: str, units: int) -> None:
        """Add units of a product to the stock.

        Args:
            product: name of the product
            units: how many to add, at least 1
        """
        self.get_product(product)
        self.database.execute("UPDATE stock SET units = units + ? WHERE product = ?", (_amount(units), product))

    @tool(inline=True)
    def set_price(self, product: str, price: int) -> None:
        """Set the price of a product.

        Args:
            product: name of the product
            price: the new price, at least 1
        """
        self.get_product(product)
        self.database.execute("UPDATE products SET price = ? WHERE name = ?", (_amount(price), product))

    @tool(inline=True)
    def set_city(self, customer: int, city: str) -> None:
        """Change the city of a customer.

        Args:
            customer: id of the customer
            city: the new city
        """
        self.get_customer(customer)
        if city not in CITIES:
            raise ToolError(f"the shop does not deliver to {clean_text(city)[:40]}")
        self.database.execute("UPDATE customers SET city = ? WHERE id = ?", (city, customer))

    @tool(inline=True)
    def add_points(self, customer: int, points: int) -> None:
        """Give points to a customer.

        Args:
            customer: id of the customer
            points: how many to give, at least 1
        """
        self.get_customer(customer)
        self.database.execute("UPDATE customers SET points = points + ? WHERE id = ?", (_amount(points), customer))

    @tool(inline=True)
    def create_refund(self, order: int, amount: int) -> dict[str, int]:
        """Refund an amount for an order.

        Args:
            order: id of the order
            amount: how much, at least 1
        """
        self.get_order(order)
        values = (order, _amount(amount))
        cursor = self.database.execute("INSERT INTO refunds (order_id, amount) VALUES (?, ?)", values)
        return {"refund": int(cursor.lastrowid or 0)}

    def _row(self, query: str, what: str, key: str | int) -> dict[str, Any]:
        """The one row of a key by column name.  ToolError where there is none; no key can be too odd to look up."""
        if isinstance(key, str):
            key = clean_text(key)
        known = isinstance(key, str) or abs(key) <= MAX_AMOUNT
        cursor = self._tables.execute(query, (key if known else 0,))
        row = cursor.fetchone()
        if row is None:
            raise ToolError(f"no {what} {str(key)[:40] if known else 'with so large an id'}")
        return dict(zip((column[0] for column in cursor.description), row, strict=True))


def slowed(tool: Tool, latency_s: tuple[float, ...]) -> Tool:
    """The tool with a wait in front of every call; the wait shows in nothing but time, so it needs no seed."""

    async def call(arguments: Mapping[str, Any]) -> str:
        await asyncio.sleep(uniform(*latency_s))
        return await tool.call(arguments)

    return replace(tool, call=call)


def _amount(value: int) -> int:
    if not 1 <= value <= MAX_AMOUNT:
        raise ToolError(f"an amount lies between 1 and {MAX_AMOUNT}")
    return value


def _of_split(template: Template, choices: Iterable[Slots], split: str) -> Sequence[Slots]:
    if split == "unseen":
        return list(choices)
    return [slots for slots in choices if template.is_held_out(slots) == (split == "heldout")]


def _rows(world: World) -> dict[str, Sequence[Any]]:
    return {"order": list(world.orders), "product": list(world.products), "customer": list(world.customers)}
