"""The shop's tables: the same world from the same seed, a private copy for each episode, canonical differences."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator

import pytest

from burnish.environments.shop.database import (
    COLUMNS,
    SCHEMA,
    open_image,
    row_changes,
    shared_tables,
    snapshot,
    start_snapshot,
    updated,
    world_image,
)
from burnish.environments.shop.world import CITIES, CUSTOMER_IDS, NAMES, ORDER_IDS, PRODUCTS, build_world


@pytest.fixture
def shop_database() -> Iterator[sqlite3.Connection]:
    connection = open_image(world_image(3))
    yield connection
    connection.close()


def test_a_seed_is_a_world() -> None:
    assert build_world(7) == build_world(7)
    assert build_world(7) != build_world(8)
    assert list(build_world(7).products) == ["drum", "clock", "rug", "bowl", "rope", "mug", "fork", "chair"]


@pytest.mark.parametrize("seed", range(40))
def test_worlds_are_well_formed(seed: int) -> None:
    world = build_world(seed)
    assert set(world.products) <= set(PRODUCTS)
    assert set(world.customers) <= set(CUSTOMER_IDS)
    assert set(world.orders) <= set(ORDER_IDS)
    numbers = [n for product in world.products.values() for n in (product.price, product.weight)]
    assert len(set(numbers)) == len(numbers), "a wrong column or product must give a wrong number"
    assert all(customer.name in NAMES and customer.city in CITIES for customer in world.customers.values())
    assert len({order.day for order in world.orders.values()}) == len(world.orders)
    for order in world.orders.values():
        assert order.customer in world.customers
        assert 1 <= len(order.lines) <= 2
        assert set(order.lines) <= set(world.products)


def test_columns_match_the_schema() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    for table, columns in COLUMNS.items():
        assert tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})")) == columns
    connection.close()


def test_the_image_holds_the_world() -> None:
    world, rows = build_world(3), start_snapshot(3)
    assert rows["products"] == {(name, p.price, p.weight) for name, p in world.products.items()}
    assert rows["stock"] == {(name, p.units, p.shelf) for name, p in world.products.items()}
    assert rows["customers"] == {(key, c.name, c.city, c.points) for key, c in world.customers.items()}
    assert rows["orders"] == {(key, o.customer, o.status, o.day, 0) for key, o in world.orders.items()}
    assert {row[:3] for row in rows["refunds"]} == {(i + 1, *refund) for i, refund in enumerate(world.refunds)}


def test_copies_are_private(shop_database: sqlite3.Connection) -> None:
    shop_database.execute("DELETE FROM orders")
    other = open_image(world_image(3))
    assert snapshot(other) == start_snapshot(3)
    other.close()


def test_opening_a_copy_is_fast() -> None:
    image, times = world_image(3), []
    for _ in range(200):
        start = time.perf_counter()
        connection = open_image(image)
        connection.execute("SELECT price FROM products WHERE name = 'lamp'").fetchone()
        times.append(time.perf_counter() - start)
        connection.close()
    assert sorted(times)[len(times) // 2] < 0.3e-3


def test_an_untouched_database_has_no_changes(shop_database: sqlite3.Connection) -> None:
    assert row_changes(start_snapshot(3), snapshot(shop_database)) == []


def test_updates_name_the_changed_columns_alone(shop_database: sqlite3.Connection) -> None:
    name, price, _ = min(start_snapshot(3)["products"])
    shop_database.execute("UPDATE products SET price = price + 5 WHERE name = ?", (name,))
    changes = row_changes(start_snapshot(3), snapshot(shop_database))
    assert changes == [updated("products", name, {"price": price}, {"price": price + 5})]


def test_deleted_and_new_rows(shop_database: sqlite3.Connection) -> None:
    order, product, units = min(start_snapshot(3)["lines"])
    shop_database.execute("DELETE FROM lines WHERE order_id = ? AND product = ?", (order, product))
    shop_database.execute("INSERT INTO customers VALUES (7, 'Zoe', 'Oslo', 0)")
    gone, new = row_changes(start_snapshot(3), snapshot(shop_database))
    assert gone == {
        "table": "lines",
        "key": [order, product],
        "before": {"order_id": order, "product": product, "units": units},
        "after": None,
    }
    zoe = {"id": 7, "name": "Zoe", "city": "Oslo", "points": 0}
    assert new == {"table": "customers", "key": 7, "before": None, "after": zoe}


def _refund(connection: sqlite3.Connection, order: int, amount: int) -> None:
    connection.execute("INSERT INTO refunds (order_id, amount) VALUES (?, ?)", (order, amount))


def test_generated_ids_and_times_do_not_count(shop_database: sqlite3.Connection) -> None:
    """The same refund under another id and at another time is the same; another amount is not."""
    plain = row_changes(start_snapshot(3), (_refund(shop_database, 17, 20), snapshot(shop_database))[1])
    other = open_image(world_image(3))
    other.execute("INSERT INTO refunds VALUES (900, 17, 20, '1999-12-31T23:59:59.000Z')")
    assert row_changes(start_snapshot(3), snapshot(other)) == plain
    assert plain[0]["after"] == {"order_id": 17, "amount": 20}
    other.execute("UPDATE refunds SET amount = 21 WHERE id = 900")
    assert row_changes(start_snapshot(3), snapshot(other)) != plain
    other.close()


def test_two_equal_refunds_are_two(shop_database: sqlite3.Connection) -> None:
    _refund(shop_database, 17, 20)
    _refund(shop_database, 17, 20)
    assert len(row_changes(start_snapshot(3), snapshot(shop_database))) == 2


def test_the_time_of_an_old_refund_counts(shop_database: sqlite3.Connection) -> None:
    shop_database.execute("UPDATE refunds SET created_at = 'never' WHERE id = 1")
    assert len(row_changes(start_snapshot(3), snapshot(shop_database))) == 1


def test_shared_tables_hold_the_world_and_cannot_be_written() -> None:
    shared = shared_tables(3)
    assert snapshot(shared) == start_snapshot(3)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        shared.execute("DELETE FROM orders")
    assert snapshot(shared) == start_snapshot(3)


def test_images_do_not_depend_on_those_made_before() -> None:
    rows = []
    for before in (5, 6):
        world_image.__wrapped__(before)
        connection = open_image(world_image.__wrapped__(3))
        connection.execute("INSERT INTO refunds (order_id, amount) VALUES (17, 20)")
        rows.append({row[:3] for row in snapshot(connection)["refunds"]})
        connection.close()
    assert rows[0] == rows[1]


def test_own_tables_know_what_was_written() -> None:
    connection = open_image(world_image(3))
    connection.execute("SELECT price FROM products").fetchall()
    assert connection.written == set()
    connection.execute("UPDATE stock SET units = units + 1")
    connection.execute("INSERT INTO refunds (order_id, amount) VALUES (17, 20)")
    connection.execute("DELETE FROM lines WHERE units > 5")
    assert connection.written == {"stock", "refunds", "lines"}
    changes = row_changes(start_snapshot(3), snapshot(connection))
    assert changes
    assert row_changes(start_snapshot(3), snapshot(connection, connection.written)) == changes
    assert row_changes(start_snapshot(3), snapshot(connection, {"stock"})) != changes
    connection.close()
