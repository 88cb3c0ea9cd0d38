"""One process of `benchmarks.snapshots`: it fills a store, then loads as it is told to.

    python -O -m benchmarks._snapshots_party ours|eventsourcing <url> <events> <newer> <entries>

It says `ready`, and for each line `<kind> <count>`, where kind is plain, snapshot or cached, the
seconds that one load took in the mean. The aggregate has so many entries in a dict.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

#: What every event carries.
NOTE = "Forty characters of text, no more or less"

Loads = dict[str, Callable[[], Any]]


def ours(url: str, events: int, newer: int, entries: int) -> Loads:
    from cqrs_celery import Aggregate, Event, applies, open_event_store
    from cqrs_celery.backends.memory.state_cache import MemoryStateCache
    from cqrs_celery.messages.serializer import Serializer
    from cqrs_celery.session.cache import AggregateCache, TieredCache
    from cqrs_celery.session.repository import Repository
    from cqrs_celery.session.snapshots import Snapshots

    class Checked(Event, name="bench.checked"):
        count: int
        note: str

    class Item(Aggregate, snapshot_every=10**9):
        count: int = 0
        notes: dict[str, int] = {}  # noqa: RUF012

        @applies(Checked)
        def _checked(self, event: Checked) -> None:
            self.count += event.count
            self.notes[str(event.count % entries)] = event.count

    store: Any
    if url.startswith("redis:"):
        import redis

        from cqrs_celery.backends.redis.event_store import RedisEventStore

        client = redis.Redis.from_url(url)
        store = RedisEventStore(lambda: client)
    else:
        from cqrs_celery.backends.sql.schema import create_schema

        store = open_event_store(url)
        create_schema(store)
    serializer, snapshots = Serializer("bench"), Snapshots(store.snapshots())
    plain = Repository(store, serializer)
    kept = Repository(store, serializer, snapshots=snapshots)
    cache = AggregateCache(TieredCache(MemoryStateCache(size=100, ttl_s=3600)))
    cached = Repository(store, serializer, snapshots=snapshots, cache=cache)
    item = Item("1")

    def check_in(start: int, end: int) -> None:
        for first in range(start, end, 100):
            for count in range(first, min(first + 100, end)):
                item.record(Checked(count=count, note=NOTE))
            plain.save(item)

    check_in(0, events - newer)
    snapshots.take(item, plain.stream_of(Item, "1"))
    check_in(events - newer, events)
    return {
        "plain": lambda: plain.get(Item, "1"),
        "snapshot": lambda: kept.get(Item, "1"),
        "cached": lambda: cached.get(Item, "1"),
    }


def theirs(url: str, events: int, newer: int, entries: int) -> Loads:
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Item(Aggregate):
        @event("Created")
        def __init__(self) -> None:
            self.count = 0
            self.notes: dict[str, int] = {}

        @event("Checked")
        def check(self, count: int, note: str) -> None:
            self.count += count
            self.notes[str(count % entries)] = count

    parts = urlsplit(url)
    env = (
        {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": parts.path[1:]}
        if parts.scheme == "sqlite"
        else {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts.path[1:],
            "POSTGRES_HOST": str(parts.hostname),
            "POSTGRES_PORT": str(parts.port),
            "POSTGRES_USER": str(parts.username),
            "POSTGRES_PASSWORD": "none",
        }
    )

    class Bench(Application):
        is_snapshotting_enabled = True

    class Plain(Application):
        name = "Bench"

    app = Bench(env)
    item = Item()
    made = 1

    def check(end: int) -> None:
        nonlocal made
        while made < end:
            for _ in range(min(100, end - made)):
                item.check(made, NOTE)
                made += 1
            app.save(item)

    check(events - newer)
    app.take_snapshot(item.id)
    check(events)
    plain = Plain(env)
    cached = Bench({**env, "AGGREGATE_CACHE_MAXSIZE": "100"})
    return {
        "plain": lambda: plain.repository.get(item.id),
        "snapshot": lambda: app.repository.get(item.id),
        "cached": lambda: cached.repository.get(item.id),
    }


def main() -> None:
    party, url, *numbers = sys.argv[1:]
    events, newer, entries = map(int, numbers)
    loads = (ours if party == "ours" else theirs)(url, events, newer, entries)
    for load in loads.values():
        if load().version != events:
            sys.exit("an aggregate is not at its version")
    print("ready", flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        load, times = loads[kind], int(count)
        started_s = time.perf_counter()
        for _ in range(times):
            load()
        print((time.perf_counter() - started_s) / times, flush=True)


if __name__ == "__main__":
    main()
