"""Episodes in the shop: private, quick to start, with tools that take anything and graders that see every change."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import TaskError, ToolError
from burnish.core.message import ToolCall
from burnish.core.task import Task
from burnish.environments.base import expert_policy
from burnish.environments.shop import Shop, ShopGrader
from burnish.environments.shop.world import build_world
from burnish.environments.tool import schema_problems, tool_methods
from burnish.rollout.episode import EpisodePlan
from burnish.rollout.runner import run_scripted

TASKS = list(Shop(train=40).tasks("train", Random(2)))
OF = {task.tags["template"]: task for task in TASKS}


def play(task: Task, *extra: ToolCall, script: Callable[..., Any] = expert_policy) -> float | None:
    """Score of the expert, who makes the `extra` calls before anything else."""

    def policy(environment: Any, task: Task, rng: Random) -> Any:
        for call in extra:
            _ = yield call
        return (yield from script(environment, task, rng))

    plan = EpisodePlan(id="p", group_id="g", task=task, sample_index=0, seed=1)
    (found,) = asyncio.run(run_scripted([plan], make_environment=lambda task: Shop(), policy=policy))
    return ShopGrader().judge(task, found).score


def in_shop(task: Task, use: Callable[[Shop], Any]) -> dict[str, Any]:
    """The final state after `use` had its way with a started shop."""

    async def run() -> dict[str, Any]:
        shop = Shop()
        await shop.start(task)
        used = use(shop)
        if isinstance(used, Awaitable):
            await used
        state = dict(await shop.finish(""))
        await shop.close()
        return state

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["price", "cancel", "restock", "cost", "refund"])
def test_one_more_change_fails_and_one_more_look_does_not(name: str) -> None:
    task = OF[name]
    world = build_world(task.setup["seed"])
    product, customer, order = (list(rows)[-1] for rows in (world.products, world.customers, world.orders))
    writes = [
        ToolCall(id="x", name="add_stock", arguments={"product": product, "units": 1}),
        ToolCall(id="x", name="set_price", arguments={"product": product, "price": 99}),
        ToolCall(id="x", name="add_points", arguments={"customer": customer, "points": 1}),
        ToolCall(id="x", name="create_refund", arguments={"order": order, "amount": 1}),
    ]
    looks = [
        ToolCall(id="x", name="get_lines", arguments={"order": order}),
        ToolCall(id="x", name="get_product", arguments={"product": "unicorn"}),
    ]
    assert play(task, *looks) == 1.0
    for write in writes:
        assert play(task, write) == 0.0


def test_a_change_taken_back_is_no_change() -> None:
    task = OF["price"]
    product = task.reference["slots"]["product"]
    price = build_world(task.setup["seed"]).products[product].price
    there = ToolCall(id="x", name="set_price", arguments={"product": product, "price": 99})
    back = ToolCall(id="x", name="set_price", arguments={"product": product, "price": price})
    assert play(task, there, back) == 1.0


def test_two_episodes_at_once_share_nothing() -> None:
    task = OF["restock"]
    product = task.reference["slots"]["product"]

    async def run() -> None:
        one, two = Shop(), Shop()
        await asyncio.gather(one.start(task), two.start(task))
        before = two.get_stock(product)
        one.add_stock(product, 5)
        one.create_refund(next(iter(build_world(task.setup["seed"]).orders)), 9)
        assert two.get_stock(product) == before
        assert len((await one.finish(""))["changes"]) == 2
        assert (await two.finish(""))["changes"] == []
        await one.close()
        assert two.get_stock(product) == before
        await two.close()

    asyncio.run(run())
    # A later episode in the same world starts clean as well.
    assert in_shop(task, lambda shop: shop.get_stock(product)) == {"changes": []}


def test_tables_of_its_own_are_for_an_episode_that_writes() -> None:
    task = OF["restock"]
    product = task.reference["slots"]["product"]

    async def run() -> None:
        shop = Shop()
        await shop.start(task)
        shop.get_stock(product)
        assert shop._connection is None
        assert (await shop.finish(""))["changes"] == []
        shop.add_stock(product, 5)
        assert shop._connection is not None
        after = shop.get_stock(product)
        assert after["units"] == build_world(task.setup["seed"]).products[product].units + 5
        await shop.close()

    asyncio.run(run())


def test_the_same_script_twice_gives_the_same_record() -> None:
    def policy(environment: Any, task: Task, rng: Random) -> Any:
        heard = yield ToolCall(id="x", name="create_refund", arguments={"order": order, "amount": 12})
        return str(heard)

    task = OF["refund"]
    order = task.reference["slots"]["order"]
    plans = [EpisodePlan(id=f"{i}", group_id="g", task=task, sample_index=i, seed=i) for i in range(2)]
    one, two = asyncio.run(run_scripted(plans, make_environment=lambda task: Shop(), policy=policy))
    assert one.messages == two.messages
    assert one.final_state == two.final_state
    assert "created_at" not in str(one.final_state)
    assert len(one.final_state["changes"]) == 1


def test_starting_an_episode_is_cheap() -> None:
    async def run() -> list[float]:
        times = []
        for task in TASKS[:4] * 50:
            start = time.perf_counter()
            shop = Shop()
            await shop.start(task)
            shop.database.execute("SELECT price FROM products").fetchone()
            times.append(time.perf_counter() - start)
            await shop.close()
        return sorted(times)

    times = asyncio.run(run())
    assert times[len(times) // 2] < 0.3e-3


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda shop: shop.get_product("unicorn"), "no product unicorn"),
        (lambda shop: shop.get_product("a\ud800\x00"), "no product a"),
        (lambda shop: shop.get_order(7), "no order 7"),
        (lambda shop: shop.get_order(10**40), "so large an id"),
        (lambda shop: shop.get_lines(-(10**40)), "so large an id"),
        (lambda shop: shop.latest_order(7), "no customer 7"),
        (lambda shop: shop.add_stock(product_of(shop), 0), "between 1"),
        (lambda shop: shop.set_price(product_of(shop), 10**30), "between 1"),
        (lambda shop: shop.create_refund(order_of(shop), -5), "between 1"),
        (lambda shop: shop.set_city(customer_of(shop), "Atlantis\ud800"), "not deliver to Atlantis"),
        (lambda shop: shop.cancel_order(order_of(shop), 0), "between 1"),
        (lambda shop: shop.calculator("9**9**9"), "expected a number"),
    ],
)
def test_wrong_arguments_are_told_to_the_policy(use: Callable[[Shop], Any], message: str) -> None:
    def attempt(shop: Shop) -> None:
        with pytest.raises(ToolError, match=message) as caught:
            use(shop)
        assert len(str(caught.value)) < 120

    assert in_shop(OF["cancel"], attempt) == {"changes": []}


def product_of(shop: Shop) -> str:
    return next(iter(build_world(shop.task.setup["seed"]).products))


def customer_of(shop: Shop) -> int:
    return next(iter(build_world(shop.task.setup["seed"]).customers))


def order_of(shop: Shop) -> int:
    return int(shop.task.reference["slots"]["order"])


def test_an_order_is_cancelled_once_and_not_after_delivery() -> None:
    world = build_world(OF["cancel"].setup["seed"])
    delivered = [key for key, order in world.orders.items() if order.status == "delivered"]

    def attempt(shop: Shop) -> None:
        shop.cancel_order(order_of(shop), 12)
        for order in [order_of(shop), *delivered]:
            with pytest.raises(ToolError, match=r"is cancelled|is delivered"):
                shop.cancel_order(order, 12)

    assert len(in_shop(OF["cancel"], attempt)["changes"]) == 1


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_tools_take_any_value_of_their_types(data: st.DataObject) -> None:
    texts = st.one_of(st.text(max_size=60), st.sampled_from(["lamp", "Oslo", "'; DROP TABLE orders;--"]))
    values = {"string": texts, "integer": st.one_of(st.integers(), st.integers(0, 100))}

    async def attempt(shop: Shop) -> None:
        for tool in shop.tools():
            parts = tool.spec.parameters["properties"]
            arguments = {name: data.draw(values[part.get("type", "string")]) for name, part in parts.items()}
            with contextlib.suppress(ToolError):
                assert len(await tool.call(arguments)) < 200

    in_shop(OF["cancel"], attempt)


def test_tools_are_described() -> None:
    methods = tool_methods(Shop)
    assert len(methods) == 14
    assert [problem for method in methods.values() for problem in schema_problems(method)] == []


def test_a_task_without_a_seed_is_refused() -> None:
    with pytest.raises(TaskError, match="seed"):
        in_shop(Task(prompt="Hello"), lambda shop: None)


def test_the_vocabulary_is_the_world() -> None:
    world = build_world(OF["price"].setup["seed"])

    def attempt(shop: Shop) -> None:
        assert {*world.products, *world.customers, *world.orders} < set(shop.vocabulary())

    in_shop(OF["price"], attempt)
