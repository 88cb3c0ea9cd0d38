"""The stock as a table in SQLite, kept by the subscription `inventory.stock`.

Each row carries the version of its item's last event, changed in the same transaction as the row
itself. An event may arrive again after a crash: then the row has its version already, and the event
is skipped. So each event counts exactly once. A gap can't be, and is an error rather than a guess.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cqrs_celery import RecordedEvent, subscribes
from sample_app.events import (
    ItemCreated,
    ItemDeactivated,
    ItemRenamed,
    ItemsCheckedIn,
    ItemsRemoved,
)

#: The variable that says where the database is, and where it is without that.
VARIABLE: Final = "SAMPLE_READ_MODEL"
DEFAULT: Final = ".sample/stock.sqlite3"

#: Functions that name it share a queue: an item's events come in the order of their versions.
STOCK: Final = "inventory.stock"

SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS stock (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        count INTEGER NOT NULL DEFAULT 0,
        is_active INTEGER NOT NULL DEFAULT 1,
        version INTEGER NOT NULL DEFAULT 0
    )
"""


@dataclass(frozen=True)
class StockRow:
    id: str
    name: str
    count: int
    is_active: bool
    version: int


class _Local(threading.local):
    """Hold a connection for each thread."""

    connection: sqlite3.Connection | None = None


_local = _Local()


class Gap(Exception):
    """Say which version was expected next, and which came."""


@subscribes(ItemCreated, subscription=STOCK)
def add_row(event: ItemCreated, recorded: RecordedEvent[ItemCreated]) -> None:
    _change(recorded, "INSERT INTO stock (name, id) VALUES (?, ?)", event.name)


@subscribes(ItemRenamed, subscription=STOCK)
def change_name(event: ItemRenamed, recorded: RecordedEvent[ItemRenamed]) -> None:
    _change(recorded, "UPDATE stock SET name = ? WHERE id = ?", event.name)


@subscribes(ItemsCheckedIn, subscription=STOCK)
def add_stock(event: ItemsCheckedIn, recorded: RecordedEvent[ItemsCheckedIn]) -> None:
    _change(recorded, "UPDATE stock SET count = count + ? WHERE id = ?", event.count)


@subscribes(ItemsRemoved, subscription=STOCK)
def take_stock(event: ItemsRemoved, recorded: RecordedEvent[ItemsRemoved]) -> None:
    _change(recorded, "UPDATE stock SET count = count - ? WHERE id = ?", event.count)


@subscribes(ItemDeactivated, subscription=STOCK)
def mark_inactive(event: ItemDeactivated, recorded: RecordedEvent[ItemDeactivated]) -> None:
    _change(recorded, "UPDATE stock SET is_active = 0 WHERE id = ?")


def find(id: str) -> StockRow | None:
    found = connection().execute("SELECT * FROM stock WHERE id = ?", (id,)).fetchone()
    return _row(found) if found else None


def rows() -> list[StockRow]:
    return [_row(found) for found in connection().execute("SELECT * FROM stock ORDER BY id")]


def events_counted() -> int:
    """Return the number of events that are in the table: each has moved one row by one version."""
    (found,) = connection().execute("SELECT coalesce(sum(version), 0) FROM stock").fetchone()
    return int(found)


def connection() -> sqlite3.Connection:
    """Return this thread's connection, opened at its first use: in a worker, after the fork."""
    if _local.connection is None:
        path = Path(os.environ.get(VARIABLE, DEFAULT))
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(path, timeout=30, isolation_level=None)
        opened.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
        opened.execute("PRAGMA synchronous = NORMAL")
        opened.execute(SCHEMA)
        _local.connection = opened
    return _local.connection


def close() -> None:
    """Close this thread's connection; the next use opens another."""
    if _local.connection is not None:
        _local.connection.close()
        _local.connection = None


def _change(recorded: RecordedEvent[Any], statement: str, *values: Any) -> None:
    """Change an item's row and its version, both or neither; skip an event that it has counted."""
    with connection() as database:  # commits, or takes everything back
        database.execute("BEGIN IMMEDIATE")
        row = find(recorded.aggregate_id)
        last = row.version if row else 0
        if recorded.version <= last:
            return
        if recorded.version > last + 1:
            raise Gap(
                f"{recorded.aggregate_id} is at version {last} here, expected {last + 1} next;"
                f" {recorded.version} came"
            )
        database.execute(statement, (*values, recorded.aggregate_id))
        database.execute(
            "UPDATE stock SET version = ? WHERE id = ?", (recorded.version, recorded.aggregate_id)
        )


def _row(found: tuple[Any, ...]) -> StockRow:
    item_id, name, count, is_active, version = found
    return StockRow(item_id, name, count, bool(is_active), version)
