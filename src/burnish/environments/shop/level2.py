"""Level 2: three or four tool calls."""

from __future__ import annotations

from collections.abc import Iterable
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
    each_product,
    latest,
    look,
    only_line,
    order_sum,
)
from burnish.environments.shop.world import World, pick

FULL_STOCK = range(90, 100)
FOUR_DIGITS = range(1000, 10_000)
RISE = range(2, 10)
FEE = range(11, 41)


class StockValue(Question):
    name, level, entity = "stock_value", 2, ("product",)
    calculates = True
    wordings = ("What is the stock of {product} worth?", "Value of all {product} in stock?")

    def candidates(self, world: World) -> Iterable[Slots]:
        worth = {name: product.units * product.price for name, product in world.products.items()}
        return [{"product": name} for name, value in worth.items() if value in FOUR_DIGITS]

    def answer(self, world: World, slots: Slots) -> int:
        product = world.products[slots["product"]]
        return product.units * product.price

    def script(self, slots: Slots) -> Steps:
        stock = yield from look("get_stock", product=slots["product"])
        found = yield from look("get_product", product=slots["product"])
        return str((yield from calculate(f"{stock['units']}*{found['price']}")))


class OrderTotal(Question):
    name, level, entity = "order_total", 2, ("order",)
    calculates = True
    wordings = ("What does order {order} cost?", "Total price of order {order}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world, 1, 2)

    def answer(self, world: World, slots: Slots) -> int:
        return world.total(slots["order"])

    def script(self, slots: Slots) -> Steps:
        expression = yield from order_sum(slots["order"])
        return str((yield from calculate(expression)))


class PriceGap(Question):
    name, level, entity = "price_gap", 2, ("product", "other")
    calculates = True
    wordings = ("How much more is {product} than {other}?", "Price gap from {other} up to {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        price = {name: product.price for name, product in world.products.items()}
        return [slots for slots in each_pair(world) if price[slots["product"]] - price[slots["other"]] >= 10]

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[slots["product"]].price - world.products[slots["other"]].price

    def script(self, slots: Slots) -> Steps:
        one = yield from look("get_product", product=slots["product"])
        two = yield from look("get_product", product=slots["other"])
        return str((yield from calculate(f"{one['price']}-{two['price']}")))


class LatestPrice(Question):
    name, level, entity = "latest_price", 2, ("customer",)
    wordings = (
        "Price of the product that customer {customer} ordered last?",
        "How much is the last product of customer {customer}?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_buyer(world, 1)

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[only_line(world, latest(world, slots))[0]].price

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        (line,) = yield from look("get_lines", order=order)
        found = yield from look("get_product", product=line["product"])
        return str(found["price"])


class NetTotal(Question):
    name, level, entity = "net_total", 2, ("order",)
    calculates = True
    wordings = ("What does order {order} cost after refunds?", "Order {order} less its refunds?")

    def candidates(self, world: World) -> Iterable[Slots]:
        net = {order: world.total(order) - refunded for order, refunded in world.refunds}
        return [slots for slots in each_order(world, 1) if net.get(slots["order"]) in THREE_DIGITS]

    def answer(self, world: World, slots: Slots) -> int:
        return world.total(slots["order"]) - world.refunded(slots["order"])

    def script(self, slots: Slots) -> Steps:
        expression = yield from order_sum(slots["order"])
        refunded = yield from look("get_refunds", order=slots["order"])
        return str((yield from calculate(f"{expression}-{refunded}")))


class RaisePrice(Job):
    name, level, entity = "raise_price", 2, ("product",)
    calculates = True
    wordings = ("Raise the price of {product} by {rise}.", "Make {product} cost {rise} more.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_product(world)

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"rise": pick(rng, RISE)}

    def changes(self, world: World, slots: Slots) -> Changes:
        price = world.products[slots["product"]].price
        return [updated("products", slots["product"], {"price": price}, {"price": price + slots["rise"]})]

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        price = yield from calculate(f"{found['price']}+{slots['rise']}")
        yield ask("set_price", product=slots["product"], price=price)
        return DONE


class TopUp(Job):
    name, level, entity = "top_up", 2, ("product",)
    calculates = True
    wordings = ("Fill the stock of {product} up to {target}.", "Add {product} until {target} are in stock.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return [{"product": name} for name, product in world.products.items() if product.units < 80]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"target": pick(rng, FULL_STOCK)}

    def changes(self, world: World, slots: Slots) -> Changes:
        units = world.products[slots["product"]].units
        return [updated("stock", slots["product"], {"units": units}, {"units": slots["target"]})]

    def script(self, slots: Slots) -> Steps:
        stock = yield from look("get_stock", product=slots["product"])
        units = yield from calculate(f"{slots['target']}-{stock['units']}")
        yield ask("add_stock", product=slots["product"], units=units)
        return DONE


class FullRefund(Job):
    name, level, entity = "full_refund", 2, ("order",)
    calculates = True
    wordings = ("Refund order {order} in full.", "Pay back all of order {order}.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_order(world, 1)

    def changes(self, world: World, slots: Slots) -> Changes:
        return [added("refunds", {"order_id": slots["order"], "amount": world.total(slots["order"])})]

    def script(self, slots: Slots) -> Steps:
        expression = yield from order_sum(slots["order"])
        amount = yield from calculate(expression)
        yield ask("create_refund", order=slots["order"], amount=amount)
        return DONE


class ReturnLatest(Job):
    name, level, entity = "return_latest", 2, ("customer",)
    wordings = (
        "Cancel the last order of customer {customer} for a fee of {fee} and restock it.",
        "Cancel and restock the last order of customer {customer}, charge {fee}.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        buyers = each_buyer(world, 1)
        return [slots for slots in buyers if world.orders[latest(world, slots)].status != "delivered"]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        return {"fee": pick(rng, FEE)}

    def changes(self, world: World, slots: Slots) -> Changes:
        order = latest(world, slots)
        product, units = only_line(world, order)
        stock = world.products[product].units
        return in_order(
            [
                cancelled(world, order, slots["fee"]),
                updated("stock", product, {"units": stock}, {"units": stock + units}),
            ]
        )

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        (line,) = yield from look("get_lines", order=order)
        yield ask("cancel_order", order=order, fee=slots["fee"])
        yield ask("add_stock", product=line["product"], units=line["units"])
        return DONE


class Relocate(Job):
    name, level, entity = "relocate", 2, ("order", "customer")
    wordings = (
        "The customer of order {order} moves to the city of customer {customer}.",
        "Give the customer of order {order} the same city as customer {customer}.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return [
            {"order": order_id, "customer": key}
            for order_id, order in world.orders.items()
            for key, customer in world.customers.items()
            if customer.city != world.customers[order.customer].city
        ]

    def changes(self, world: World, slots: Slots) -> Changes:
        key = world.orders[slots["order"]].customer
        before, after = (world.customers[one].city for one in (key, slots["customer"]))
        return [updated("customers", key, {"city": before}, {"city": after})]

    def script(self, slots: Slots) -> Steps:
        order = yield from look("get_order", order=slots["order"])
        found = yield from look("get_customer", customer=slots["customer"])
        yield ask("set_city", customer=order["customer"], city=found["city"])
        return DONE


class LatestStock(Question):
    name, level, entity, unseen = "latest_stock", 2, ("customer",), True
    wordings = (
        "How many of what customer {customer} last bought are left?",
        "What remains of the last buy of customer {customer}?",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_buyer(world, 1)

    def answer(self, world: World, slots: Slots) -> int:
        return world.products[only_line(world, latest(world, slots))[0]].units

    def script(self, slots: Slots) -> Steps:
        order = yield from look("latest_order", customer=slots["customer"])
        (line,) = yield from look("get_lines", order=order)
        stock = yield from look("get_stock", product=line["product"])
        return str(stock["units"])


class StockWeight(Question):
    name, level, entity, unseen = "stock_weight", 2, ("product",), True
    calculates = True
    wordings = ("What does all the {product} we hold weigh?", "How heavy is our stock of {product}?")

    def candidates(self, world: World) -> Iterable[Slots]:
        heft = {name: product.units * product.weight for name, product in world.products.items()}
        return [{"product": name} for name, value in heft.items() if value in FOUR_DIGITS]

    def answer(self, world: World, slots: Slots) -> int:
        product = world.products[slots["product"]]
        return product.units * product.weight

    def script(self, slots: Slots) -> Steps:
        stock = yield from look("get_stock", product=slots["product"])
        found = yield from look("get_product", product=slots["product"])
        return str((yield from calculate(f"{stock['units']}*{found['weight']}")))


class SwapPrices(Job):
    name, level, entity, unseen = "swap_prices", 2, ("product", "other"), True
    wordings = ("Swap the prices of {product} and {other}.", "Exchange what {product} and {other} cost.")

    def candidates(self, world: World) -> Iterable[Slots]:
        return each_pair(world)

    def changes(self, world: World, slots: Slots) -> Changes:
        one, two = (world.products[slots[name]].price for name in ("product", "other"))
        return in_order(
            [
                updated("products", slots["product"], {"price": one}, {"price": two}),
                updated("products", slots["other"], {"price": two}, {"price": one}),
            ]
        )

    def script(self, slots: Slots) -> Steps:
        one = yield from look("get_product", product=slots["product"])
        two = yield from look("get_product", product=slots["other"])
        yield ask("set_price", product=slots["product"], price=two["price"])
        yield ask("set_price", product=slots["other"], price=one["price"])
        return DONE


class RefundUnits(Job):
    name, level, entity, unseen = "refund_units", 2, ("order", "product"), True
    calculates = True
    wordings = (
        "Refund the price of {units} units of {product} for order {order}.",
        "For order {order} pay back what {units} units of {product} cost.",
    )

    def candidates(self, world: World) -> Iterable[Slots]:
        return [
            {"order": key, "product": name}
            for key, order in world.orders.items()
            for name, units in order.lines.items()
            if units * world.products[name].price in THREE_DIGITS
        ]

    def details(self, world: World, slots: Slots, rng: Random) -> Slots:
        bought, price = world.orders[slots["order"]].lines[slots["product"]], world.products[slots["product"]].price
        return {"units": pick(rng, [n for n in range(2, bought + 1) if n * price in THREE_DIGITS])}

    def changes(self, world: World, slots: Slots) -> Changes:
        amount = slots["units"] * world.products[slots["product"]].price
        return [added("refunds", {"order_id": slots["order"], "amount": amount})]

    def script(self, slots: Slots) -> Steps:
        found = yield from look("get_product", product=slots["product"])
        amount = yield from calculate(f"{slots['units']}*{found['price']}")
        yield ask("create_refund", order=slots["order"], amount=amount)
        return DONE


TEMPLATES: tuple[Template, ...] = (
    StockValue(),
    RaisePrice(),
    OrderTotal(),
    TopUp(),
    PriceGap(),
    FullRefund(),
    LatestPrice(),
    ReturnLatest(),
    NetTotal(),
    Relocate(),
    LatestStock(),
    SwapPrices(),
    StockWeight(),
    RefundUnits(),
)
