"""Level 1: one or two tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from burnish.environments.shop.database import added, updated
from burnish.environments.shop.templates import (
    DONE,
    Changes,
    Job,
    Question,
    Slots,
    Steps,
    Template,
    ask,
    calculate,
    cancelled,
    each_order,
    each_pair,
    each_product,
    look,
)
from burnish.environments.shop.world import AMOUNTS, World, pick

SMALL = range(2, 10)
"""Chosen so that sums of this level have two digits, as every other number of it has."""

BATCH = range(11, 41)


class Price(Question):
    name, level, entity = "price", 1, ("product",)
    wordings = ("What is the price of {product}?", "How much is {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[slots["product"]].price

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        return str(found["price"])


class Stock(Question):
    name, level, entity = "stock", 1, ("product",)
    wordings = ("How many units of {product} are in stock?", "What is the stock of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[slots["product"]].units

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_stock", product=slots["product"])
        return str(found["units"])


class Arrival(Question):
    name, level, entity = "arrival", 1, ("product",)
    calculates = True
    wordings = (
        "How many units of {product} are there if {units} more arrive?",
        "What is the stock of {product} after {units} more units?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, SMALL)}

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[slots["product"]].units + int(slots["units"])

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_stock", product=slots["product"])
        return str((yield from calculate(f"{found['units']}+{slots['units']}")))


class Cost(Question):
    name, level, entity = "cost", 1, ("product",)
    calculates = True
    wordings = ("What do {units} units of {product} cost?", "Total price of {units} units of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [{"product": name} for name, product in world.products.items() if product.price < 50]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, [n for n in SMALL if n * world.products[slots["product"]].price < 100])}

    def answer(self, world: World, slots: Slots) -> int:
        return int(slots["units"]) * world.products[slots["product"]].price

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        return str((yield from calculate(f"{slots['units']}*{found['price']}")))


class Points(Question):
    name, level, entity = "points", 1, ("order",)
    wordings = ("How many points has the customer of order {order}?", "Points of the customer of order {order}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world)

    def answer(self, world: World, slots: Slots) -> int:
        return world.customers[world.orders[slots["order"]].customer].points

    def script(self, slots: Slots) -> Steps:
        order = yield from look("get_order", order=slots["order"])
        customer = yield from look("get_customer", customer=order["customer"])
        return str(customer["points"])


class Cancel(Job):
    name, level, entity = "cancel", 1, ("order",)
    wordings = ("Cancel order {order} for a fee of {fee}.", "Cancel order {order} and charge {fee}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [slots for slots in each_order(world) if world.orders[slots["order"]].status != "delivered"]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"fee": pick(rng, BATCH)}

    def changes(self, world: World, slots: Slots) -> Changes:
        return [cancelled(world, slots["order"], slots["fee"])]

    def script(self, slots: Slots) -> Steps:
        yield ask("cancel_order", order=slots["order"], fee=slots["fee"])
        return DONE


class Restock(Job):
    name, level, entity = "restock", 1, ("product",)
    wordings = ("Add {units} units of {product} to the stock.", "Put {units} more units of {product} in stock.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, BATCH)}

    def changes(self, world: World, slots: Slots) -> Changes:
        units = world.products[slots["product"]].units
        return [updated("stock", slots["product"], {"units": units}, {"units": units + slots["units"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("add_stock", product=slots["product"], units=slots["units"])
        return DONE


class Reprice(Job):
    name, level, entity = "reprice", 1, ("product",)
    wordings = ("Set the price of {product} to {price}.", "Make {product} cost {price}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        now = world.products[slots["product"]].price
        return {"price": pick(rng, [price for price in AMOUNTS if price != now])}

    def changes(self, world: World, slots: Slots) -> Changes:
        before = {"price": world.products[slots["product"]].price}
        return [updated("products", slots["product"], before, {"price": slots["price"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("set_price", product=slots["product"], price=slots["price"])
        return DONE


class Credit(Job):
    name, level, entity = "credit", 1, ("customer", "points")
    wordings = ("Give {points} points to customer {customer}.", "Add {points} to the points of customer {customer}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [{"customer": key, "points": points} for key in world.customers for points in BATCH]

    def changes(self, world: World, slots: Slots) -> Changes:
        points = world.customers[slots["customer"]].points
        return [updated("customers", slots["customer"], {"points": points}, {"points": points + slots["points"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("add_points", customer=slots["customer"], points=slots["points"])
        return DONE


class Refund(Job):
    name, level, entity = "refund", 1, ("order",)
    wordings = ("Refund {amount} for order {order}.", "Pay back {amount} on order {order}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"amount": pick(rng, BATCH)}

    def changes(self, world: World, slots: Slots) -> Changes:
        return [added("refunds", {"order_id": slots["order"], "amount": slots["amount"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("create_refund", order=slots["order"], amount=slots["amount"])
        return DONE


class Weight(Question):
    name, level, entity, unseen = "weight", 1, ("product",), True
    calculates = True
    wordings = ("What do {units} units of {product} weigh?", "How heavy are {units} units of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [{"product": name} for name, product in world.products.items() if product.weight < 50]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, [n for n in SMALL if n * world.products[slots["product"]].weight < 100])}

    def answer(self, world: World, slots: Slots) -> int:
        return int(slots["units"]) * world.products[slots["product"]].weight

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        return str((yield from calculate(f"{slots['units']}*{found['weight']}")))


class Day(Question):
    name, level, entity, unseen = "day", 1, ("order",), True
    wordings = ("On which day was order {order} placed?", "What is the day of order {order}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world)

    def answer(self, world: World, slots: Slots) -> int:
        return world.orders[slots["order"]].day

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_order", order=slots["order"])
        return str(found["day"])


class NameAndCity(Question):
    """Both together: a city alone is guessed right one time in twelve."""

    name, level, entity, unseen = "name_and_city", 1, ("order",), True
    wordings = ("Name and city for order {order}?", "Who gets order {order}, and in which city?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world)

    def answer(self, world: World, slots: Slots) -> str:
        customer = world.customers[world.orders[slots["order"]].customer]
        return f"{customer.name} {customer.city}"

    def script(self, slots: Slots) -> Steps:
        order = yield from look("get_order", order=slots["order"])
        customer = yield from look("get_customer", customer=order["customer"])
        return f"{customer['name']} {customer['city']}"


class CreditBuyer(Job):
    name, level, entity, unseen = "credit_buyer", 1, ("order", "points"), True
    wordings = ("Give {points} points to the customer of order {order}.", "Whoever placed order {order} won {points}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [{"order": order, "points": points} for order in world.orders for points in BATCH]

    def changes(self, world: World, slots: Slots) -> Changes:
        key = world.orders[slots["order"]].customer
        points = world.customers[key].points
        return [updated("customers", key, {"points": points}, {"points": points + slots["points"]})]

    def script(self, slots: Slots) -> Steps:
        order = yield from look("get_order", order=slots["order"])
        yield ask("add_points", customer=order["customer"], points=slots["points"])
        return DONE


class MatchPrice(Job):
    name, level, entity, unseen = "match_price", 1, ("product", "other"), True
    wordings = ("Give {product} the price of {other}.", "Sell {product} at what {other} costs.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_pair(world)

    def changes(self, world: World, slots: Slots) -> Changes:
        before, after = (world.products[slots[name]].price for name in ("product", "other"))
        return [updated("products", slots["product"], {"price": before}, {"price": after})]

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["other"])
        yield ask("set_price", product=slots["product"], price=found["price"])
        return DONE


TEMPLATES: tuple[Template, ...] = (
    Price(),
    Cancel(),
    Stock(),
    Restock(),
    Arrival(),
    Reprice(),
    Cost(),
    Credit(),
    Points(),
    Refund(),
    Weight(),
    CreditBuyer(),
    NameAndCity(),
    Day(),
    MatchPrice(),
)
