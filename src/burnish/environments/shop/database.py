"""The shop's tables in SQLite: one serialised image for each world, one private in-memory copy for each episode."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from burnish.core.hashing import canonical_json
from burnish.environments.shop.world import World, build_world

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, points INTEGER NOT NULL);
CREATE TABLE products (name TEXT PRIMARY KEY, price INTEGER NOT NULL, weight INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE stock (product TEXT PRIMARY KEY REFERENCES products, units INTEGER NOT NULL, shelf TEXT NOT NULL)
  WITHOUT ROWID;
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers, status TEXT NOT NULL,
  day INTEGER NOT NULL, fee INTEGER NOT NULL DEFAULT 0);
CREATE TABLE lines (order_id INTEGER NOT NULL REFERENCES orders, product TEXT NOT NULL REFERENCES products,
  units INTEGER NOT NULL, PRIMARY KEY (order_id, product)) WITHOUT ROWID;
CREATE TABLE refunds (id INTEGER PRIMARY KEY AUTOINCREMENT, order_id INTEGER NOT NULL REFERENCES orders,
  amount INTEGER NOT NULL, created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')));
"""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "customers": ("id", "name", "city", "points"),
    "products": ("name", "price", "weight"),
    "stock": ("product", "units", "shelf"),
    "orders": ("id", "customer", "status", "day", "fee"),
    "lines": ("order_id", "product", "units"),
    "refunds": ("id", "order_id", "amount", "created_at"),
}
"""Columns of each table; the key comes first."""

N_KEY_COLUMNS: Mapping[str, int] = {table: 2 if table == "lines" else 1 for table in COLUMNS}

GENERATED: Mapping[str, frozenset[str]] = {"refunds": frozenset({"id", "created_at"})}
"""Columns that the database fills in; two right runs may differ in them, so they are left out of what is compared."""

Rows = Mapping[str, frozenset[tuple[Any, ...]]]
"""Table name -> its rows, each a tuple in the order of `COLUMNS`."""


def fill(connection: sqlite3.Connection, world: World) -> None:
    """Insert every row of `world` into empty tables."""
    products, orders = world.products.items(), world.orders.items()
    many = connection.executemany
    customers = ((key, c.name, c.city, c.points) for key, c in world.customers.items())
    many("INSERT INTO customers VALUES (?, ?, ?, ?)", customers)
    many("INSERT INTO products VALUES (?, ?, ?)", ((name, p.price, p.weight) for name, p in products))
    many("INSERT INTO stock VALUES (?, ?, ?)", ((name, p.units, p.shelf) for name, p in products))
    many(
        "INSERT INTO orders (id, customer, status, day) VALUES (?, ?, ?, ?)",
        ((order_id, o.customer, o.status, o.day) for order_id, o in orders),
    )
    many(
        "INSERT INTO lines VALUES (?, ?, ?)",
        ((order_id, name, units) for order_id, o in orders for name, units in o.lines.items()),
    )
    many("INSERT INTO refunds (order_id, amount, created_at) VALUES (?, ?, '2024-01-01T00:00:00.000Z')", world.refunds)


class _Closing(sqlite3.Connection):
    """A connection that a cache may drop without a word."""

    def __del__(self) -> None:
        self.close()


_WRITES = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})


class Tables(sqlite3.Connection):
    """An episode's own tables.  `written` holds the tables that any statement so far could write to: SQLite asks for
    leave to use each table and column of a statement as it compiles it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        written: set[str] = set()

        def allow(action: int, table: str | None, *_: str | None) -> int:
            if action in _WRITES and table is not None:
                written.add(table)
            return sqlite3.SQLITE_OK

        self.set_authorizer(allow)
        self.written = written


_bench_lock = threading.Lock()


@lru_cache(maxsize=1)
def _bench() -> sqlite3.Connection:
    """Where images are made, one at a time: reading the schema takes far longer than filling the tables."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Closing)
    # Small pages keep an image near 10 KB, which is what an episode copies.
    connection.execute("PRAGMA page_size = 512")
    connection.executescript(SCHEMA)
    return connection


def open_image(image: bytes) -> Tables:
    """A private in-memory database that starts as a copy of `image`; every statement commits by itself."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=Tables)
    connection.deserialize(image)
    return connection


@lru_cache(maxsize=1024)
def world_image(seed: int) -> bytes:
    """The filled tables of a seed as SQLite file bytes (about 10 KB).  The members of a group share one."""
    with _bench_lock, _bench() as connection:
        connection.execute("BEGIN")
        for table in (*COLUMNS, "sqlite_sequence"):
            connection.execute(f"DELETE FROM {table}")
        fill(connection, build_world(seed))
        connection.execute("COMMIT")
        return connection.serialize()


@lru_cache(maxsize=64)
def shared_tables(seed: int) -> sqlite3.Connection:
    """The tables of a seed as they are at the start, for reading alone: for episodes that have written nothing yet."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=_Closing)
    connection.deserialize(world_image(seed))
    connection.execute("PRAGMA query_only = ON")
    return connection


def snapshot(connection: sqlite3.Connection, tables: Collection[str] = COLUMNS.keys()) -> Rows:
    """Every row of these tables."""
    return {
        table: frozenset(connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall())
        for table, columns in COLUMNS.items()
        if table in tables
    }


@lru_cache(maxsize=256)
def start_snapshot(seed: int) -> Rows:
    """The rows that every episode with this seed starts from."""
    return snapshot(shared_tables(seed))


def _key(table: str, row: tuple[Any, ...]) -> Any:
    return row[0] if N_KEY_COLUMNS[table] == 1 else list(row[: N_KEY_COLUMNS[table]])


def _visible(table: str, row: tuple[Any, ...]) -> dict[str, Any]:
    hidden = GENERATED.get(table, frozenset())
    return {column: value for column, value in zip(COLUMNS[table], row, strict=True) if column not in hidden}


def added(table: str, after: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
    """A new row.  A generated key is None, so that two runs that did the same compare equal.

    >>> added("refunds", {"order_id": 17, "amount": 20})
    {'table': 'refunds', 'key': None, 'before': None, 'after': {'order_id': 17, 'amount': 20}}
    """
    return {"table": table, "key": key, "before": None, "after": dict(after)}


def removed(table: str, key: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the start that is gone."""
    return {"table": table, "key": key, "before": dict(before), "after": None}


def updated(table: str, key: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the start with other values; `before` and `after` hold the changed columns alone.

    >>> updated("products", "lamp", {"price": 47}, {"price": 52})
    {'table': 'products', 'key': 'lamp', 'before': {'price': 47}, 'after': {'price': 52}}
    """
    return {"table": table, "key": key, "before": dict(before), "after": dict(after)}


def in_order(changes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same changes in the one order in which they are compared."""
    return sorted(changes, key=canonical_json) if len(changes) > 1 else list(changes)


def row_changes(start: Rows, end: Rows) -> list[Mapping[str, Any]]:
    """The canonical difference between two snapshots, empty where nothing changed.  Tables that `end` lacks are the
    same as at the start.

    A row of the start is matched by its key and compared in every column, its generated ones too: to touch the time
    of an old refund is a change.  Only in new rows are generated columns left out.
    """
    changes: list[Mapping[str, Any]] = []
    for table, rows in end.items():
        before = start[table]
        if rows == before:
            continue
        width = N_KEY_COLUMNS[table]
        gone = {row[:width]: row for row in before - rows}
        for row in rows - before:
            old = gone.pop(row[:width], None)
            changes.append(_new_row(table, row) if old is None else _new_values(table, old, row))
        changes += [removed(table, _key(table, row), _visible(table, row)) for row in gone.values()]
    return in_order(changes)


def _new_row(table: str, row: tuple[Any, ...]) -> Mapping[str, Any]:
    is_generated = COLUMNS[table][0] in GENERATED.get(table, frozenset())
    return added(table, _visible(table, row), None if is_generated else _key(table, row))


def _new_values(table: str, old: tuple[Any, ...], new: tuple[Any, ...]) -> Mapping[str, Any]:
    columns = zip(COLUMNS[table], old, new, strict=True)
    different = [(column, before, after) for column, before, after in columns if before != after]
    before_values = {column: before for column, before, _ in different}
    return updated(table, _key(table, new), before_values, {column: after for column, _, after in different})
