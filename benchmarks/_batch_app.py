"""The application that `benchmarks.batches` starts workers of: two subscriptions.

BENCH_BROKER is the broker's URL, BENCH_OUT the folder of the read models.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from celery import Celery

from cqrs_celery import CQRS, Aggregate, Event, RecordedEvent, subscribes

#: Events that a batch has at most.
BATCH = 500


class Counted(Event, name="bench.counted"):
    count: int
    note: str


class Counter(Aggregate, name="Counter"):
    pass


def read_model(name: str) -> sqlite3.Connection:
    """Open a read model: one row an event, and when its handling began and ended."""
    path = Path(os.environ["BENCH_OUT"]) / f"{name}.db"
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS counted"
        " (id TEXT, version INTEGER, count INTEGER, began REAL, PRIMARY KEY (id, version))"
    )
    return connection


_models: dict[tuple[int, str], sqlite3.Connection] = {}


def _write(name: str, events: list[RecordedEvent[Counted]]) -> None:
    # Opened anew in each process.
    key = os.getpid(), name
    model = _models.get(key)
    if model is None:
        model = _models[key] = read_model(name)
    now = time.time()
    model.execute("BEGIN IMMEDIATE")
    model.executemany(
        "INSERT INTO counted VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(one.aggregate_id, one.version, one.event.count, now) for one in events],
    )
    model.execute("COMMIT")


@subscribes(Counted, subscription="bench.single")
def single(event: Counted, recorded: RecordedEvent[Counted]) -> None:
    _write("single", [recorded])


@subscribes(Counted, subscription="bench.batch", batch=BATCH)
def batch(events: list[RecordedEvent[Counted]]) -> None:
    _write("batch", events)


app = Celery("bench", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("BENCH_BROKER", "redis://"),
    broker_transport="cqrs_celery.transport:Transport",
    broker_connection_retry_on_startup=True,
)
cqrs = CQRS(app)
