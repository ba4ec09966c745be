"""The control database of a run: its tables, and how it is opened.

One transaction for each step is the commit point of the store.  WAL lets readers go on while the writer commits;
`synchronous=FULL` makes a commit durable before it is acknowledged.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from burnish.core.errors import StoreError

SCHEMA_VERSION = 1

TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    created_at_s REAL NOT NULL,
    updated_at_s REAL NOT NULL
);
CREATE TABLE steps (
    id INTEGER PRIMARY KEY,
    phase TEXT NOT NULL,
    phase_order INTEGER NOT NULL,
    step INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    policy_version INTEGER NOT NULL,
    segment TEXT NOT NULL,
    segment_sha256 TEXT NOT NULL,
    n_trajectories INTEGER NOT NULL,
    n_tokens INTEGER NOT NULL,
    committed_at_s REAL NOT NULL,
    superseded INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX live_steps ON steps (phase_order, step) WHERE superseded = 0;
CREATE TABLE scalars (
    step_id INTEGER NOT NULL REFERENCES steps (id),
    name TEXT NOT NULL,
    value REAL,
    PRIMARY KEY (name, step_id)
) WITHOUT ROWID;
CREATE INDEX scalars_of_step ON scalars (step_id);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    step_id INTEGER REFERENCES steps (id),
    attempt INTEGER NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    data TEXT NOT NULL,
    at_s REAL NOT NULL
);
CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY,
    step_id INTEGER NOT NULL REFERENCES steps (id),
    label TEXT NOT NULL,
    split TEXT NOT NULL,
    mode TEXT NOT NULL,
    phase TEXT NOT NULL,
    step INTEGER NOT NULL,
    n INTEGER NOT NULL,
    successes REAL NOT NULL,
    mean REAL,
    low REAL,
    high REAL,
    details TEXT NOT NULL
);
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    phase TEXT NOT NULL,
    phase_order INTEGER NOT NULL,
    step INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    at_s REAL NOT NULL,
    superseded INTEGER NOT NULL DEFAULT 0
);
"""


def connect_writer(path: Path) -> sqlite3.Connection:
    """The writer's connection, durable at each commit; transactions are opened by hand.

    The caller serialises its use over threads.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write.  Raises StoreError where there is no control database of this version."""
    if not path.is_file():
        raise StoreError(f"{path.parent} is no run directory: it has no {path.name}")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.OperationalError:
            # A finished run on a medium that cannot be written: without a log beside it the file is the whole truth.
            connection.close()
            if path.with_name(path.name + "-wal").exists():
                raise
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    check_version(path, version)
    return connection


def check_version(path: Path, version: int) -> None:
    """Raises StoreError where the database is half created or of another version."""
    if version != SCHEMA_VERSION:
        raise StoreError(f"{path} has store version {version}, this Burnish reads version {SCHEMA_VERSION}")
