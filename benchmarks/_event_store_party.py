"""One process of `benchmarks.event_store`: it makes its connection, and does what it is told.

    python -O -m benchmarks._event_store_party <party> <url> [make]

It says `ready`, and then for each line `<what> <number> <count> <events>` does so many of that, and
says `<began> <ended> <done>`, by the machine's monotonic clock.
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

#: The numbers of processes begin there, above those of the parts that are measured.
FROM_PROCESSES = 10**9

#: Bytes of an event's record in our Redis store beside its data, and of a message that waits for a
#: subscription with its third of their common body, counted in one commit of this benchmark's.
RECORD_BYTES, MESSAGE_BYTES = 180, 760

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
        self.save(os.getpid() + FROM_PROCESSES, 1, 1)

    def save(self, number: int, count: int, events: int) -> int:
        """Record events on an aggregate and save it, again and again; return the commits."""
        item = None
        for index in range(count):
            if item is None or index % STREAM_COMMITS == 0:
                item = self.item(stream_id(number, index))
            for one in range(events):
                item.check(one)
            self.repository.save(item)
        return count

    def append(self, number: int, count: int, events: int) -> int:
        """Append to the store, again and again; return the commits."""
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
        return count

    def fill(self, number: int, count: int, events: int) -> int:
        """Make one aggregate of so many events, in commits of 100 at most."""
        item = self.item(stream_id(number, 0))
        for start in range(0, events, 100):
            for one in range(start, min(start + 100, events)):
                item.check(one)
            self.repository.save(item)
        return 1

    def load(self, number: int, count: int, events: int) -> int:
        """Load an aggregate, again and again; return how often."""
        for _ in range(count):
            check(self.repository.get(self.item, stream_id(number, 0)).version, events)
        return count

    def read_all(self, number: int, count: int, events: int) -> int:
        """Read everything, as recorded events, page by page; return the number of events."""
        from cqrs_celery.store.decoding import recorded_events

        serializer, position, seen = self.repository._serializer, 0, 0
        while page := self.store.read_all(after_position=position, limit=1000):
            for _ in recorded_events(page, serializer):
                pass
            position, seen = page[-1].global_position, seen + len(page)
        return seen

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
        self.items: dict[int, UUID] = {}
        self.make = lambda: None

    def warm_up(self) -> None:
        self.app.save(self.item())

    def save(self, number: int, count: int, events: int) -> int:
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
        return count

    def append(self, number: int, count: int, events: int) -> int:
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
        return count

    def fill(self, number: int, count: int, events: int) -> int:
        item = self.item()
        made = 1
        while made < events:
            for one in range(min(100, events - made)):
                item.check(one, NOTE)
                made += 1
            self.app.save(item)
        self.items[number] = item.id
        return 1

    def load(self, number: int, count: int, events: int) -> int:
        for _ in range(count):
            check(self.app.repository.get(self.items[number]).version, events)
        return count

    def read_all(self, number: int, count: int, events: int) -> int:
        start, seen = 1, 0
        while page := self.recorder.select_notifications(start=start, limit=500):
            for notification in page:
                self.app.mapper.to_domain_event(notification)
            start, seen = page[-1].id + 1, seen + len(page)
        return seen

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
        self.append(os.getpid() + FROM_PROCESSES, 1, 1)

    def append(self, number: int, count: int, events: int) -> int:
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
        return count

    def close(self) -> None:
        self.connection.close()


class RedisOurs:
    """This package: an append to its Redis store, and so to three subscriptions."""

    def __init__(self, url: str) -> None:
        os.environ["BENCH_BROKER"] = url
        from benchmarks import _event_store_app as bench

        self.bench, self.store = bench, bench.app.cqrs.store

    def warm_up(self) -> None:
        check(self.bench.register_all(), 3)
        self.append(os.getpid() + FROM_PROCESSES, 10, 1)

    append: Any = Ours.append

    def close(self) -> None:
        self.store.close()


class RedisBare:
    """A script that does no more than writing the same bytes: a record, and a message a queue."""

    SCRIPT = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('RPUSH', KEYS[2], ARGV[2])
for i = 3, 5 do redis.call('RPUSH', KEYS[i], ARGV[3]) end
return redis.call('LLEN', KEYS[1])
"""

    def __init__(self, url: str) -> None:
        import redis

        self.client = redis.Redis.from_url(url)
        self.script = self.client.register_script(self.SCRIPT)

    def warm_up(self) -> None:
        self.append(os.getpid() + FROM_PROCESSES, 10, 1)

    def append(self, number: int, count: int, events: int) -> int:
        record = f'{{"count": 1, "note": "{NOTE}"}}{"x" * RECORD_BYTES}'
        message = "x" * MESSAGE_BYTES
        for index in range(count):
            stream = f"stream:{stream_id(number, index - index % STREAM_COMMITS)}"
            keys = [stream, "all", "queue:one", "queue:two", "queue:three"]
            self.script(keys, [record, stream, message])
        return count

    def close(self) -> None:
        self.client.close()


class Stock:
    """Celery on its own Redis transport: an event is three `.delay()` calls."""

    def __init__(self, url: str) -> None:
        from celery import Celery

        self.app = Celery("bench", broker=url, set_as_current=False)
        self.app.conf.task_ignore_result = True

        def handle(event: dict[str, Any]) -> None: ...

        names = ("one", "two", "three")
        self.tasks = [self.app.task(handle, name=f"bench.{name}") for name in names]

    def warm_up(self) -> None:
        self.append(0, 10, 1)

    def append(self, number: int, count: int, events: int) -> int:
        for _ in range(count):
            for task in self.tasks:
                task.delay({"count": 1, "note": NOTE})
        return count

    def close(self) -> None:
        self.app.close()


PARTIES: dict[str, Callable[[str], Any]] = {
    "ours": Ours,
    "eventsourcing": Theirs,
    "bare": Bare,
    "redis-ours": RedisOurs,
    "redis-bare": RedisBare,
    "redis-stock": Stock,
}


def main() -> None:
    """Do one part after the other."""
    party, url = sys.argv[1:3]
    one = PARTIES[party](url)
    if "make" in sys.argv:
        one.make()
        one.close()
        return
    one.warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        began = time.monotonic()
        done = getattr(one, what)(*map(int, numbers))
        print(began, time.monotonic(), done, flush=True)
    one.close()


if __name__ == "__main__":
    main()
