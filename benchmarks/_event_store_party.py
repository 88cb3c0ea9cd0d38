"""One process of `benchmarks.event_store`: it makes its connection, waits, does its part, and says
how long that took.

    python -O -m benchmarks._event_store_party <party> <what> <url> <number> <count> <events>

It says `ready`, waits for a line, and says `<began> <ended>` by the machine's monotonic clock.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid5

#: Commits to one stream before the next one is begun.
STREAM_COMMITS = 10

SPACE = UUID("12345678123456781234567812345678")

#: The number of a writer that only warms up.
WARM_UP = 10**6

#: What every event carries.
NOTE = "Forty characters of text, no more or less"


def check(found: int, expected: int) -> None:
    """Check a number; `python -O` leaves assertions out, with all that is in them."""
    if found != expected:
        raise ValueError(f"found {found}, expected {expected}")


def stream_id(number: int, index: int) -> str:
    """Return the id of a writer's stream."""
    return str(uuid5(SPACE, f"{number}-{index}"))


class Ours:
    """This package: its store alone, and an aggregate through a session."""

    def __init__(self, url: str) -> None:
        from cqrs_celery import Aggregate, Event, applies, open_event_store
        from cqrs_celery.backends.sql.schema import create_schema
        from cqrs_celery.messages.serializer import Serializer
        from cqrs_celery.session.repository import Repository

        class Checked(Event, name="bench.checked"):
            count: int
            note: str

        class Item(Aggregate):
            count: int = 0

            def check(self, count: int) -> None:
                self.record(Checked(count=count, note=NOTE))

            @applies(Checked)
            def _checked(self, event: Checked) -> None:
                self.count += event.count

        store: Any = open_event_store(url)
        self.store = store
        self.make = lambda: create_schema(store)
        self.item, self.checked = Item, Checked
        self.repository = Repository(self.store, Serializer("bench"))

    def warm_up(self) -> None:
        self.store.read_all(limit=1)
        self.save(WARM_UP, 1, 1)

    def save(self, number: int, count: int, events: int) -> None:
        """Record events on an aggregate and save it, again and again."""
        item = None
        for index in range(count):
            if item is None or index % STREAM_COMMITS == 0:
                item = self.item(
                    stream_id(number, index) + ("" if number < 10**6 else str(os.getpid()))
                )
            for one in range(events):
                item.check(one)
            self.repository.save(item)

    def append(self, number: int, count: int, events: int) -> None:
        """Append to the store, again and again."""
        from datetime import UTC, datetime

        from cqrs_celery.messages.metadata import new_id
        from cqrs_celery.store.events import NewEvent, StreamAppend
        from cqrs_celery.store.stream import StreamName

        data = f'{{"count": 1, "note": "{NOTE}"}}'.encode()
        for index in range(count):
            if index % STREAM_COMMITS == 0:
                stream, version = StreamName("bench", "Item", stream_id(number, index)), 0
            new = [
                NewEvent(new_id(), "bench.checked", 1, datetime.now(UTC), data)
                for _ in range(events)
            ]
            (version,) = self.store.append([StreamAppend(stream, version, new)]).versions

    def fill(self, number: int, count: int, events: int) -> None:
        """Make one aggregate of so many events, in commits of 100 at most."""
        item = self.item(stream_id(number, events))
        for start in range(0, events, 100):
            for one in range(start, min(start + 100, events)):
                item.check(one)
            self.repository.save(item)

    def load(self, number: int, count: int, events: int) -> None:
        """Load an aggregate, again and again."""
        for _ in range(count):
            check(self.repository.get(self.item, stream_id(number, events)).version, events)

    def read_all(self, number: int, count: int, events: int) -> None:
        """Read everything, as recorded events, page by page."""
        from cqrs_celery.store.decoding import recorded_events

        serializer, position, seen = self.repository._serializer, 0, 0
        while page := self.store.read_all(after_position=position, limit=1000):
            for _ in recorded_events(page, serializer):
                pass
            position, seen = page[-1].global_position, seen + len(page)
        # Each party warms up by writing.
        check(min(seen, events), events)

    def close(self) -> None:
        self.store.close()


class Theirs:
    """`eventsourcing`: its recorder alone, and an aggregate through an application."""

    def __init__(self, url: str) -> None:
        from eventsourcing.application import Application
        from eventsourcing.domain import Aggregate, event

        class Item(Aggregate):
            @event("Created")
            def __init__(self) -> None:
                self.count = 0

            @event("Checked")
            def check(self, count: int, note: str) -> None:
                self.count += count

        parts = urlsplit(url)
        # Making its tables is not safe for several at once.
        tables = {"CREATE_TABLE": "y" if "make" in sys.argv else "n"}
        env = tables | (
            {
                "PERSISTENCE_MODULE": "eventsourcing.sqlite",
                "SQLITE_DBNAME": parts.path[1:],
            }
            if parts.scheme == "sqlite"
            else {
                "PERSISTENCE_MODULE": "eventsourcing.postgres",
                "POSTGRES_DBNAME": parts.path[1:],
                "POSTGRES_HOST": str(parts.hostname),
                "POSTGRES_PORT": str(parts.port),
                "POSTGRES_USER": str(parts.username),
                "POSTGRES_PASSWORD": "none",
                "POSTGRES_ENABLE_DB_FUNCTIONS": "y",
                "POSTGRES_POOL_SIZE": "1",
                "POSTGRES_MAX_OVERFLOW": "1",
            }
        )

        class Bench(Application):
            notification_log_section_size = 500

        self.item = Item
        self.app = Bench(env)
        self.recorder: Any = self.app.recorder
        self.make = lambda: None

    def warm_up(self) -> None:
        self.app.recorder.max_notification_id()
        self.app.save(self.item())

    def save(self, number: int, count: int, events: int) -> None:
        item = None
        for index in range(count):
            if item is None or index % STREAM_COMMITS == 0:
                item = self.item()
                first = 1
            else:
                first = 0
            # Its creation is an event too.
            for one in range(events - first):
                item.check(one, NOTE)
            self.app.save(item)

    def append(self, number: int, count: int, events: int) -> None:
        from eventsourcing.persistence import StoredEvent

        state = (
            f'{{"count": 1, "note": "{NOTE}", "timestamp": "2026-01-02T03:04:05.678901"}}'.encode()
        )
        for index in range(count):
            if index % STREAM_COMMITS == 0:
                stream, version = UUID(stream_id(number, index)), 0
            new = [
                StoredEvent(stream, version + one, "bench:Item.Checked", state)
                for one in range(1, events + 1)
            ]
            self.recorder.insert_events(new)
            version += events

    def fill(self, number: int, count: int, events: int) -> None:
        item = self.item()
        made = 1
        while made < events:
            for one in range(min(100, events - made)):
                item.check(one, NOTE)
                made += 1
            self.app.save(item)
        print(item.id, flush=True)

    def load(self, number: int, count: int, events: int) -> None:
        item = UUID(os.environ["BENCH_ITEM"])
        for _ in range(count):
            check(self.app.repository.get(item).version, events)

    def read_all(self, number: int, count: int, events: int) -> None:
        start, seen = 1, 0
        while page := self.recorder.select_notifications(start=start, limit=500):
            for notification in page:
                self.app.mapper.to_domain_event(notification)
            start, seen = page[-1].id + 1, seen + len(page)
        # Each party warms up by writing.
        check(min(seen, events), events)

    def close(self) -> None:
        self.app.close()


class Bare:
    """The driver alone: the same bytes, in one transaction, with the same unique keys."""

    def __init__(self, url: str) -> None:
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            import sqlite3

            self.connection: Any = sqlite3.connect(urlsplit(url).path[1:], timeout=60)
            self.connection.execute("PRAGMA journal_mode = WAL")
        else:
            import psycopg2

            self.connection = psycopg2.connect(url)

    def make(self) -> None:
        kinds = (
            ("INTEGER", "TEXT", "TEXT") if self.is_sqlite else ("BIGSERIAL", "JSONB", "TIMESTAMPTZ")
        )
        self.connection.cursor().execute(
            f"CREATE TABLE bare (position {kinds[0]} PRIMARY KEY, stream TEXT, version BIGINT,"
            f" event_id TEXT, type TEXT, type_version INTEGER, payload {kinds[1]},"
            f" metadata {kinds[1]}, recorded_at {kinds[2]}, UNIQUE (stream, version))"
        )
        self.connection.commit()

    def warm_up(self) -> None:
        self.connection.cursor().execute("SELECT count(*) FROM bare")
        self.connection.commit()

    def append(self, number: int, count: int, events: int) -> None:
        from datetime import UTC, datetime
        from uuid import uuid4

        data = f'{{"count": 1, "note": "{NOTE}"}}'
        mark = "?" if self.is_sqlite else "%s"
        values = ", ".join([f"({', '.join([mark] * 8)})"] * events)
        statement = (
            "INSERT INTO bare (stream, version, event_id, type, type_version, payload, metadata,"
            f" recorded_at) VALUES {values}"
        )
        for index in range(count):
            if index % STREAM_COMMITS == 0:
                stream, version = stream_id(number, index), 0
            row: list[Any] = []
            for one in range(1, events + 1):
                now: Any = datetime.now(UTC)
                now = str(now) if self.is_sqlite else now
                row += (stream, version + one, str(uuid4()), "bench.checked", 1, data, "{}", now)
            version += events
            self.connection.cursor().execute(statement, row)
            self.connection.commit()

    def close(self) -> None:
        self.connection.close()


PARTIES: dict[str, Callable[[str], Any]] = {"ours": Ours, "eventsourcing": Theirs, "bare": Bare}


def main() -> None:
    """Do one part."""
    party, what, url = sys.argv[1:4]
    number, count, events = map(int, sys.argv[4:7])
    one = PARTIES[party](url)
    if what == "make":
        one.make()
        one.close()
        return
    if what != "fill":
        one.warm_up()
        print("ready", flush=True)
        sys.stdin.readline()
    began = time.monotonic()
    getattr(one, what)(number, count, events)
    print(began, time.monotonic(), flush=True)
    one.close()


if __name__ == "__main__":
    main()
