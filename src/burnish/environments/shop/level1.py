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
    each_order,
    each_pair,
    each_product,
    look,
)
from burnish.environments.shop.world import AMOUNTS, CITIES, REASONS, World, pick

SMALL = range(2, 10)
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


class Status(Question):
    """Status and day together: a status alone is guessed right one time in four."""

    name, level, entity = "status", 1, ("order",)
    wordings = ("What is the status of order {order}, since which day?", "Status and day of order {order}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world)

    def answer(self, world: World, slots: Slots) -> str:
        order = world.orders[slots["order"]]
        return f"{order.status} {order.day}"

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_order", order=slots["order"])
        return f"{found['status']} {found['day']}"


class Cost(Question):
    name, level, entity = "cost", 1, ("product",)
    wordings = ("What do {units} units of {product} cost?", "Total price of {units} units of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, SMALL)}

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
    wordings = ("Cancel order {order} because it is {reason}.", "Order {order} is {reason}, cancel it.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [slots for slots in each_order(world) if world.orders[slots["order"]].status != "delivered"]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"reason": pick(rng, REASONS)}

    def changes(self, world: World, slots: Slots) -> Changes:
        before = {"status": world.orders[slots["order"]].status, "reason": ""}
        return [updated("orders", slots["order"], before, {"status": "cancelled", "reason": slots["reason"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("cancel_order", order=slots["order"], reason=slots["reason"])
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


class Move(Job):
    name, level, entity = "move", 1, ("customer", "city")
    wordings = ("Move {customer} to {city}.", "{customer} now lives in {city}, change the city.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [
            {"customer": name, "city": city}
            for name, customer in world.customers.items()
            for city in CITIES
            if city != customer.city
        ]

    def changes(self, world: World, slots: Slots) -> Changes:
        before = {"city": world.customers[slots["customer"]].city}
        return [updated("customers", slots["customer"], before, {"city": slots["city"]})]

    def script(self, slots: Slots) -> Steps:
        yield ask("set_city", customer=slots["customer"], city=slots["city"])
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
    wordings = ("What do {units} units of {product} weigh?", "How heavy are {units} units of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"units": pick(rng, SMALL)}

    def answer(self, world: World, slots: Slots) -> int:
        return int(slots["units"]) * world.products[slots["product"]].weight

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        return str((yield from calculate(f"{slots['units']}*{found['weight']}")))


class Shelf(Question):
    name, level, entity, unseen = "shelf", 1, ("product",), True
    wordings = ("Which shelf holds {product}?", "Where is {product} kept?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def answer(self, world: World, slots: Slots) -> str:
        return world.products[slots["product"]].shelf

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_stock", product=slots["product"])
        return str(found["shelf"])


class MoveBuyer(Job):
    name, level, entity, unseen = "move_buyer", 1, ("order", "city"), True
    wordings = ("Move the customer of order {order} to {city}.", "Whoever placed order {order} went to {city}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [
            {"order": key, "city": city}
            for key, order in world.orders.items()
            for city in CITIES
            if city != world.customers[order.customer].city
        ]

    def changes(self, world: World, slots: Slots) -> Changes:
        name = world.orders[slots["order"]].customer
        return [updated("customers", name, {"city": world.customers[name].city}, {"city": slots["city"]})]

    def script(self, slots: Slots) -> Steps:
        order = yield from look("get_order", order=slots["order"])
        yield ask("set_city", customer=order["customer"], city=slots["city"])
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
    Status(),
    Reprice(),
    Cost(),
    Move(),
    Points(),
    Refund(),
    Weight(),
    MoveBuyer(),
    Shelf(),
    MatchPrice(),
)
