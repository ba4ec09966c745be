"""Level 3: five or six tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import permutations
from random import Random

from burnish.environments.shop.database import added, in_order, updated
from burnish.environments.shop.templates import (
    DONE,
    THREE_DIGITS,
    Changes,
    Job,
    Question,
    Slots,
    Steps,
    Template,
    ask,
    calculate,
    cancelled,
    each_buyer,
    each_order,
    each_pair,
    latest,
    look,
    only_line,
    order_sum,
)
from burnish.environments.shop.world import World, pick

FULL_STOCK = range(90, 100)
FOUR_DIGITS = range(1000, 10_000)
RISE = range(2, 10)
GIFT = range(11, 41)
FEE = range(11, 41)


class LatestTotal(Question):
    name, level, entity = "latest_total", 3, ("customer",)
    calculates = True
    wordings = (
        "What does the last order of customer {customer} cost?",
        "Total price of the last order of customer {customer}?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_buyer(world, 2)

    def answer(self, world: World, slots: Slots) -> int:
        return world.total(latest(world, slots))

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        expression = yield from order_sum(order)
        return str((yield from calculate(expression)))


class PairValue(Question):
    name, level, entity = "pair_value", 3, ("product", "other")
    calculates = True
    wordings = ("What is all {product} and {other} in stock worth?", "Value of the stock of {product} and {other}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        worth = {name: product.units * product.price for name, product in world.products.items()}
        return [s for s in each_pair(world) if worth[s["product"]] + worth[s["other"]] in FOUR_DIGITS]

    def answer(self, world: World, slots: Slots) -> int:
        pair = (world.products[slots[name]] for name in ("product", "other"))
        return sum(product.units * product.price for product in pair)

    def script(self, slots: Slots) -> Steps:
        terms = []
        for name in (slots["product"], slots["other"]):
            stock = yield from look("get_stock", product=name)
            found = yield from look("get_product", product=name)
            terms.append(f"{stock['units']}*{found['price']}")
        return str((yield from calculate("+".join(terms))))


class OrderGap(Question):
    name, level, entity = "order_gap", 3, ("order", "other")
    calculates = True
    wordings = ("How much more is order {order} than order {other}?", "Price gap from order {other} up to {order}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        orders = [slots["order"] for slots in each_order(world, 1)]
        pairs = permutations(orders, 2)
        return [
            {"order": one, "other": two} for one, two in pairs if world.total(one) - world.total(two) in THREE_DIGITS
        ]

    def answer(self, world: World, slots: Slots) -> int:
        return world.total(slots["order"]) - world.total(slots["other"])

    def script(self, slots: Slots) -> Steps:
        one = yield from order_sum(slots["order"])
        two = yield from order_sum(slots["other"])
        return str((yield from calculate(f"{one}-{two}")))


class RefundLatest(Job):
    name, level, entity = "refund_latest", 3, ("customer",)
    calculates = True
    wordings = (
        "Refund the last order of customer {customer} in full.",
        "Pay back all of the last order of customer {customer}.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_buyer(world, 2)

    def changes(self, world: World, slots: Slots) -> Changes:
        order = latest(world, slots)
        return [added("refunds", {"order_id": order, "amount": world.total(order)})]

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        expression = yield from order_sum(order)
        amount = yield from calculate(expression)
        yield ask("create_refund", order=order, amount=amount)
        return DONE


class CloseLatest(Job):
    name, level, entity = "close_latest", 3, ("customer",)
    calculates = True
    wordings = (
        "Refund the last order of customer {customer} in full and cancel it for a fee of {fee}.",
        "Pay back and cancel the last order of customer {customer}, charge {fee}.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        buyers = each_buyer(world, 1)
        return [slots for slots in buyers if world.orders[latest(world, slots)].status != "delivered"]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"fee": pick(rng, FEE)}

    def changes(self, world: World, slots: Slots) -> Changes:
        order = latest(world, slots)
        return in_order(
            [
                added("refunds", {"order_id": order, "amount": world.total(order)}),
                cancelled(world, order, slots["fee"]),
            ]
        )

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        expression = yield from order_sum(order)
        amount = yield from calculate(expression)
        yield ask("create_refund", order=order, amount=amount)
        yield ask("cancel_order", order=order, fee=slots["fee"])
        return DONE


class RaiseBoth(Job):
    name, level, entity = "raise_both", 3, ("product", "other")
    calculates = True
    wordings = ("Raise the prices of {product} and {other} by {rise}.", "Make {product} and {other} cost {rise} more.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_pair(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"rise": pick(rng, RISE)}

    def changes(self, world: World, slots: Slots) -> Changes:
        prices = {slots[name]: world.products[slots[name]].price for name in ("product", "other")}
        return in_order(
            [
                updated("products", name, {"price": price}, {"price": price + slots["rise"]})
                for name, price in prices.items()
            ]
        )

    def script(self, slots: Slots) -> Steps:
        for name in (slots["product"], slots["other"]):
            found = yield from look("get_product", product=name)
            price = yield from calculate(f"{found['price']}+{slots['rise']}")
            yield ask("set_price", product=name, price=price)
        return DONE


class Goodwill(Job):
    name, level, entity = "goodwill", 3, ("order",)
    calculates = True
    wordings = (
        "Refund order {order} in full and give its customer {points} points.",
        "Pay back all of order {order} and add {points} points to its customer.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world, 1)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"points": pick(rng, GIFT)}

    def changes(self, world: World, slots: Slots) -> Changes:
        key = world.orders[slots["order"]].customer
        points = world.customers[key].points
        return in_order(
            [
                added("refunds", {"order_id": slots["order"], "amount": world.total(slots["order"])}),
                updated("customers", key, {"points": points}, {"points": points + slots["points"]}),
            ]
        )

    def script(self, slots: Slots) -> Steps:
        expression = yield from order_sum(slots["order"])
        amount = yield from calculate(expression)
        yield ask("create_refund", order=slots["order"], amount=amount)
        order = yield from look("get_order", order=slots["order"])
        yield ask("add_points", customer=order["customer"], points=slots["points"])
        return DONE


class TopUpBoth(Job):
    name, level, entity = "top_up_both", 3, ("product", "other")
    calculates = True
    wordings = ("Fill the stock of {product} and {other} up to {target}.", "Top {product} and {other} up to {target}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        low = {name for name, product in world.products.items() if product.units < 80}
        return [slots for slots in each_pair(world) if low.issuperset(slots.values())]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"target": pick(rng, FULL_STOCK)}

    def changes(self, world: World, slots: Slots) -> Changes:
        stocks = {slots[name]: world.products[slots[name]].units for name in ("product", "other")}
        return in_order(
            [updated("stock", name, {"units": units}, {"units": slots["target"]}) for name, units in stocks.items()]
        )

    def script(self, slots: Slots) -> Steps:
        for name in (slots["product"], slots["other"]):
            stock = yield from look("get_stock", product=name)
            units = yield from calculate(f"{slots['target']}-{stock['units']}")
            yield ask("add_stock", product=name, units=units)
        return DONE


class LatestNet(Question):
    name, level, entity = "latest_net", 3, ("customer",)
    calculates = True
    wordings = (
        "What does the last order of customer {customer} cost after refunds?",
        "Last order of customer {customer} less refunds?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        net = {order: world.total(order) - refunded for order, refunded in world.refunds}
        return [slots for slots in each_buyer(world, 1) if net.get(latest(world, slots)) in THREE_DIGITS]

    def answer(self, world: World, slots: Slots) -> int:
        order = latest(world, slots)
        return world.total(order) - world.refunded(order)

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        expression = yield from order_sum(order)
        refunded = yield from look("get_refunds", order=order)
        return str((yield from calculate(f"{expression}-{refunded}")))


class LatestWeight(Question):
    name, level, entity, unseen = "latest_weight", 3, ("customer",), True
    calculates = True
    wordings = (
        "How heavy is the last order of customer {customer}?",
        "What did the last parcel of customer {customer} weigh?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_buyer(world, 2)

    def answer(self, world: World, slots: Slots) -> int:
        return world.weight(latest(world, slots))

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        expression = yield from order_sum(order, "weight")
        return str((yield from calculate(expression)))


class Recall(Job):
    name, level, entity, unseen = "recall", 3, ("order",), True
    calculates = True
    wordings = (
        "Take order {order} back: cancel it for {fee}, restock it and refund it.",
        "Undo order {order}, goods and money, with a fee of {fee}.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        orders = each_order(world, 1)
        return [slots for slots in orders if world.orders[slots["order"]].status != "delivered"]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"fee": pick(rng, FEE)}

    def changes(self, world: World, slots: Slots) -> Changes:
        order = slots["order"]
        product, units = only_line(world, order)
        stock = world.products[product].units
        return in_order(
            [
                cancelled(world, order, slots["fee"]),
                updated("stock", product, {"units": stock}, {"units": stock + units}),
                added("refunds", {"order_id": order, "amount": world.total(order)}),
            ]
        )

    def script(self, slots: Slots) -> Steps:
        (line,) = yield from look("get_lines", order=slots["order"])
        yield ask("cancel_order", order=slots["order"], fee=slots["fee"])
        yield ask("add_stock", product=line["product"], units=line["units"])
        found = yield from look("get_product", product=line["product"])
        amount = yield from calculate(f"{line['units']}*{found['price']}")
        yield ask("create_refund", order=slots["order"], amount=amount)
        return DONE


TEMPLATES: tuple[Template, ...] = (
    LatestTotal(),
    RefundLatest(),
    PairValue(),
    CloseLatest(),
    OrderGap(),
    RaiseBoth(),
    LatestNet(),
    Goodwill(),
    TopUpBoth(),
    LatestWeight(),
    Recall(),
)
