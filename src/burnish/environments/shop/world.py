"""What stands in a shop: every value follows from one seed, so that no two tasks share prices, stocks or statuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

T = TypeVar("T")

PRODUCTS = (
    *("bell", "bowl", "chair", "clock", "desk", "drum", "fork", "kite"),
    *("lamp", "mug", "rope", "rug", "sofa", "stool", "tent", "vase"),
)
NAMES = (
    *("Ana", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana"),
    *("Ivo", "June", "Kai", "Lena", "Max", "Nora", "Omar", "Pia"),
)
CITIES = ("Bern", "Cairo", "Delhi", "Doha", "Kyiv", "Lima", "Oslo", "Paris", "Quito", "Riga", "Rome", "Tokyo")
STATUSES = ("open", "packed", "shipped", "delivered")
ORDER_IDS = range(10, 100)
CUSTOMER_IDS = range(10, 34)
DAYS = range(11, 100)
AMOUNTS = range(11, 90)
"""Prices, weights, stocks and points: two digits each, all different within a column of one world."""

N_PRODUCTS, N_CUSTOMERS, N_ORDERS, N_REFUNDS = 8, 8, 12, 4


def pick(rng: Random, items: Sequence[T]) -> T:
    """One item, uniformly.  Only `Random.random` is used: its stream is the one that no Python version may change."""
    return items[int(rng.random() * len(items))]


def pick_some(rng: Random, items: Sequence[T], n: int) -> list[T]:
    """`n` different items in random order (the first n steps of a Fisher-Yates shuffle)."""
    pool, size, draw = list(items), len(items), rng.random
    for index in range(n):
        other = index + int(draw() * (size - index))
        pool[index], pool[other] = pool[other], pool[index]
    return pool[:n]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """`Product(price=47, weight=23, units=61, shelf="B4")`: price and weight never agree."""

    price: int
    weight: int
    units: int
    shelf: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """`Customer(name="Ana", city="Oslo", points=35)`"""

    name: str
    city: str
    points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """`Order(customer=52, status="shipped", day=42, lines={"lamp": 3})`

    One or two lines; no two orders of a world share a day.
    """

    customer: int
    status: str
    day: int
    lines: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The rows of one shop by key.  `refunds` are pairs of order id and amount, in the order of their ids from 1."""

    products: Mapping[str, Product]
    customers: Mapping[int, Customer]
    orders: Mapping[int, Order]
    refunds: tuple[tuple[int, int], ...]

    def latest_order(self, customer: int) -> int | None:
        """Id of the customer's order with the highest day, None without orders."""
        return max(
            (order_id for order_id, order in self.orders.items() if order.customer == customer),
            key=lambda order_id: self.orders[order_id].day,
            default=None,
        )

    def total(self, order_id: int) -> int:
        """Units times price, summed over the lines of an order."""
        return sum(units * self.products[product].price for product, units in self.orders[order_id].lines.items())

    def weight(self, order_id: int) -> int:
        """Units times weight, summed over the lines of an order."""
        return sum(units * self.products[product].weight for product, units in self.orders[order_id].lines.items())

    def refunded(self, order_id: int) -> int:
        """Sum of the refunds of an order."""
        return sum(amount for order, amount in self.refunds if order == order_id)


def _orders(rng: Random, products: Sequence[str], customers: Sequence[int]) -> dict[int, Order]:
    ids = sorted(pick_some(rng, ORDER_IDS, N_ORDERS))
    days = pick_some(rng, DAYS, N_ORDERS)
    return {
        order_id: Order(
            customer=pick(rng, customers),
            status=pick(rng, STATUSES),
            day=day,
            lines={
                product: 2 + int(rng.random() * 8) for product in pick_some(rng, products, 1 + int(rng.random() * 2))
            },
        )
        for order_id, day in zip(ids, days, strict=True)
    }


@lru_cache(maxsize=256)
def build_world(seed: int) -> World:
    """The world of a seed: 8 of 16 products, 8 of 24 customers, 12 of 90 orders, 4 refunds.

    Cached: the members of a group, their tables and their grader share one, which nobody changes.
    """
    rng = Random(seed)
    names = pick_some(rng, PRODUCTS, N_PRODUCTS)
    numbers = pick_some(rng, AMOUNTS, 2 * N_PRODUCTS)
    stocks = pick_some(rng, AMOUNTS, N_PRODUCTS)
    products = {
        name: Product(
            price=numbers[2 * index],
            weight=numbers[2 * index + 1],
            units=stocks[index],
            shelf=pick(rng, "ABCDEF") + pick(rng, "123456789"),
        )
        for index, name in enumerate(names)
    }
    points = pick_some(rng, AMOUNTS, N_CUSTOMERS)
    people = zip(pick_some(rng, CUSTOMER_IDS, N_CUSTOMERS), pick_some(rng, NAMES, N_CUSTOMERS), points, strict=True)
    customers = {key: Customer(name=name, city=pick(rng, CITIES), points=n) for key, name, n in people}
    orders = _orders(rng, list(products), list(customers))
    refunds = tuple((order, 11 + int(rng.random() * 20)) for order in pick_some(rng, list(orders), N_REFUNDS))
    return World(products=products, customers=customers, orders=orders, refunds=refunds)
