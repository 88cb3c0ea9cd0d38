"""The cache in Redis, on a real server; what a cached load costs there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.backends.redis.state_cache import RedisStateCache
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import ConcurrencyError, StoreUnavailable
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache, TieredCache
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.snapshots import Snapshots
from cqrs_celery.store.stream import StreamName
from tests.nodes import RedisNode
from tests.postgres import PostgresNode
from tests.proxy import Proxy
from tests.waiting import wait_until


class TierCounted(Event):
    note: str = "x" * 100


class Counter(Aggregate, name="TierCounter"):
    count: int = 0

    @applies(TierCounted)
    def _counted(self, event: TierCounted) -> None:
        self.count += 1


class SnapshotCounter(Counter, alias_of=Counter, snapshot_every=100):
    pass


STREAM = StreamName("shop", "TierCounter", "42")
KEY = "{shop}.cq:cache:shop:TierCounter:42"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def states(client: redis.Redis, ttl_s: float = 60) -> RedisStateCache:
    return RedisStateCache(lambda: client, prefix="{shop}.", ttl_s=ttl_s)


def repository_on(
    client: redis.Redis, *tiers: object, snapshots: Snapshots | None = None
) -> Repository:
    store = RedisEventStore(lambda: client, prefix="{shop}.")
    cache = AggregateCache(TieredCache(*tiers)) if tiers else None  # type: ignore[arg-type]
    return Repository(store, Serializer("shop"), snapshots=snapshots, cache=cache)


def saved(repository: Repository, count: int, cls: type[Counter] = Counter) -> None:
    counter = repository.find(cls, "42") or cls("42")
    for _ in range(count):
        counter.record(TierCounted())
    repository.save(counter)


def asked(client: redis.Redis) -> dict[str, int]:
    stats = client.info("commandstats")
    found = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
    return {name: n for name, n in found.items() if name not in ("info", "config|resetstat")}


def reads(client: redis.Redis) -> int:
    return int(client.info("stats")["total_reads_processed"])


def sent(client: redis.Redis) -> int:
    return int(client.info("stats")["total_net_output_bytes"])


# What a load costs


def test_a_cached_load_is_one_round_trip_that_carries_newer_events_only(
    client: redis.Redis,
) -> None:
    """35, 50: of 10,000 events, one LRANGE from the version; a memory hit asks nothing else."""
    # given 10,000 events, cached in memory and in Redis, and none newer
    both = repository_on(client, MemoryStateCache(size=9, ttl_s=60), states(client))
    saved(both, 10_000)
    elsewhere = repository_on(client)
    client.config_resetstat()
    before, bytes_before = reads(client), sent(client)
    about_info = sent(client) - bytes_before
    # when
    assert both.get(Counter, "42").count == 10_000
    # then, besides what asked for the numbers
    assert asked(client) == {"lrange": 1}
    assert reads(client) - before == 5
    assert sent(client) - bytes_before < 8 * about_info
    # and with three newer events, these come and no other
    saved(elsewhere, 3)
    client.config_resetstat()
    bytes_before = sent(client)
    about_info = sent(client) - bytes_before
    assert both.get(Counter, "42").count == 10_003
    found = asked(client)
    # it was brought forward, and put into both again
    assert (found.pop("lrange"), found.pop("set"), found) == (1, 1, {})
    assert sent(client) - bytes_before < 6 * about_info + 3 * 600


def test_a_load_from_a_snapshot_is_one_round_trip_that_carries_newer_events_only(
    client: redis.Redis,
) -> None:
    """54: the newest fitting snapshot is restored, later events replayed."""
    store = RedisEventStore(lambda: client, prefix="{shop}.")
    repository = repository_on(client, snapshots=Snapshots(store.snapshots()))
    saved(repository, 1_000, SnapshotCounter)
    saved(repository, 3, SnapshotCounter)
    client.config_resetstat()
    before, bytes_before = reads(client), sent(client)
    about_info = sent(client) - bytes_before
    assert repository.get(SnapshotCounter, "42").count == 1_003
    assert asked(client) == {"evalsha": 1, "hget": 1, "lrange": 1}
    assert reads(client) - before == 5
    assert sent(client) - bytes_before < 8 * about_info


def test_on_postgresql_a_cached_load_is_one_round_trip_and_one_from_a_snapshot_too(
    postgres_node: PostgresNode, postgres_url: str
) -> None:
    """35, 54: of 10,000 events, the newer ones alone."""
    with Proxy(postgres_node.port) as proxy:
        url = postgres_url.replace(f":{postgres_node.port}/", f":{proxy.port}/")
        store: Any = open_event_store(url)
        create_schema(store)
        # given 10,000 events with a snapshot, of which one repository has the newest cached, and 3
        # newer ones
        snapshots = Snapshots(store.snapshots())
        cache = AggregateCache(TieredCache(MemoryStateCache(size=9, ttl_s=60)))
        cached = Repository(store, Serializer("shop"), snapshots=snapshots, cache=cache)
        other = Repository(store, Serializer("shop"), snapshots=snapshots)
        saved(cached, 10_000, SnapshotCounter)
        saved(other, 3, SnapshotCounter)
        # that each statement was run once
        cached.rebuild(SnapshotCounter, "42")
        other.rebuild(SnapshotCounter, "42", from_events_alone=True)
        for load in (cached.get, other.get):
            requests, reply_bytes = proxy.requests, proxy.reply_bytes
            # when
            assert load(SnapshotCounter, "42").count == 10_003
            # then
            assert proxy.requests - requests == 1
            assert proxy.reply_bytes - reply_bytes < 3_000
        store.close()


# Tiers on a real server


def test_redis_keeps_a_state_until_it_expires(client: redis.Redis) -> None:
    """47, 49: Redis as a tier; a put has the expiry."""
    cache = states(client, ttl_s=0.05)
    cache.put(STREAM, b"1")
    assert client.exists(KEY)
    wait_until(
        lambda: cache.get(STREAM.__class__("a", "b", "c")) is None and not client.exists(KEY)
    )
    assert cache.get(STREAM) is None


def test_a_hit_in_redis_extends_its_expiry_and_fills_memory(client: redis.Redis) -> None:
    """51: a Redis hit extends its expiry and fills memory."""
    memory, far = MemoryStateCache(size=9, ttl_s=60), states(client)
    far.put(STREAM, b"1")
    client.pexpire(KEY, 5_000)
    assert TieredCache(memory, far).get(STREAM) == b"1"
    assert client.pttl(KEY) > 50_000
    assert memory.get(STREAM) == b"1"


def test_a_hit_in_memory_asks_redis_nothing(client: redis.Redis) -> None:
    """50: a memory hit asks Redis nothing."""
    cache = TieredCache(MemoryStateCache(size=9, ttl_s=60), states(client))
    cache.put(STREAM, b"1")
    client.config_resetstat()
    assert cache.get(STREAM) == b"1"
    assert asked(client) == {}


def test_a_removal_clears_both_and_then_there_is_none(client: redis.Redis) -> None:
    """52, 53: both empty: None; remove clears both."""
    memory, far = MemoryStateCache(size=9, ttl_s=60), states(client)
    cache = TieredCache(memory, far)
    cache.put(STREAM, b"1")
    assert client.get(KEY) == memory.get(STREAM) == b"1"
    cache.remove(STREAM)
    assert (client.get(KEY), memory.get(STREAM), cache.get(STREAM)) == (None, None, None)


def test_two_processes_over_one_redis_agree(client: redis.Redis) -> None:
    """37: two repositories over one cache agree."""
    one, other = (
        repository_on(client, MemoryStateCache(size=9, ttl_s=60), states(client)) for _ in range(2)
    )
    for number in range(1, 7):
        saved((one, other)[number % 2], 1)
        assert one.get(Counter, "42").count == other.get(Counter, "42").count == number


def test_3_writers_of_100_saves_each_leave_301_events_of_distinct_versions(
    client: redis.Redis,
) -> None:
    """44: 3 times 100 concurrent saves: 301 events, distinct versions."""
    repository = repository_on(client, MemoryStateCache(size=9, ttl_s=60), states(client))
    saved(repository, 1)

    def write(_: int) -> None:
        for _ in range(100):
            while True:
                try:
                    saved(repository, 1)
                    break
                except ConcurrencyError:
                    pass

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    events = repository._store.read_stream(STREAM)
    assert [event.version for event in events] == list(range(1, 302))
    assert repository.get(Counter, "42").count == 301


def test_a_redis_that_is_away_costs_the_cache_only(fresh_redis_node: RedisNode) -> None:
    client = fresh_redis_node.client(socket_timeout=1)
    cache = AggregateCache(TieredCache(states(client)))
    repository = Repository(MemoryEventStore(), Serializer("shop"), cache=cache)
    saved(repository, 1)
    fresh_redis_node.kill()
    started = time.monotonic()
    saved(repository, 1)
    assert repository.get(Counter, "42").count == 2
    assert time.monotonic() - started < 30
    with pytest.raises(StoreUnavailable, match="cache"):
        states(client).get(STREAM)
    client.close()
