"""The cache gives each caller an aggregate of its own, brought forward by newer events alone."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS
from cqrs_celery.app.caching import open_cache
from cqrs_celery.app.settings import read_settings
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.backends.redis.state_cache import RedisStateCache
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import (
    AggregateNotFound,
    ConcurrencyError,
    InvalidSetting,
    StoreUnavailable,
)
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache, TieredCache
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.snapshots import Snapshots
from cqrs_celery.store.stream import StreamName


class CacheCounted(Event):
    count: int = 1


class Counter(Aggregate, name="CacheCounter"):
    counts: list[int] = []  # noqa: RUF012

    def add(self, count: int = 1) -> None:
        self.record(CacheCounted(count=count))

    @applies(CacheCounted)
    def _counted(self, event: CacheCounted) -> None:
        self.counts.append(event.count)


class OtherCounter(Counter, name="CacheOtherCounter"):
    pass


STREAM = StreamName("shop", "CacheCounter", "42")


class Watched(MemoryEventStore):
    """Say behind which versions streams are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read_stream(self, stream, *, after_version=0, limit=None):
        self.reads.append(after_version)
        return super().read_stream(stream, after_version=after_version, limit=limit)


class Tier:
    """Be a cache that says what it is asked, and may be away."""

    def __init__(self) -> None:
        self.states: dict[StreamName, bytes] = {}
        self.asked: list[str] = []
        self.is_away = False

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.is_away:
            raise StoreUnavailable("the cache does not answer")

    def get(self, stream):
        self._ask("get")
        return self.states.get(stream)

    def put(self, stream, state):
        self._ask("put")
        self.states[stream] = state

    def remove(self, stream):
        self._ask("remove")
        self.states.pop(stream, None)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def states() -> MemoryStateCache:
    return MemoryStateCache(size=100, ttl_s=60)


@pytest.fixture
def repository(store, states) -> Repository:
    return Repository(store, Serializer("shop"), cache=AggregateCache(states))


@pytest.fixture
def elsewhere(store) -> Repository:
    """Write as another process does, which has no part in the cache."""
    return Repository(store, Serializer("shop"))


def saved(repository: Repository, *counts: int, id: str = "42", cls=Counter) -> Counter:
    counter = repository.find(cls, id) or cls(id)
    for count in counts:
        counter.add(count)
    repository.save(counter)
    return counter


# The repository


def test_get_gives_the_aggregate(repository):
    """33: get gives the aggregate."""
    saved(repository, 1, 2)
    counter = repository.get(Counter, "42")
    assert (counter.id, counter.version, counter.counts) == ("42", 2, [1, 2])


@pytest.mark.parametrize("is_there", [True, False])
def test_after_a_get_nobody_has_to_wait(repository, states, is_there):
    """34: its lock is released, whether the aggregate was there or not."""
    if is_there:
        saved(repository, 1)
    repository.find(Counter, "42")
    done = threading.Event()

    def get_elsewhere() -> None:
        repository.find(Counter, "42")
        done.set()

    thread = threading.Thread(target=get_elsewhere, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join(10)
    assert not states._lock.locked()


def test_a_second_get_reads_only_newer_events(repository, store, elsewhere):
    """35: a second get reads only newer events, and the last known one, to compare its id."""
    saved(elsewhere, 1, 2, 3)
    repository.get(Counter, "42")
    saved(elsewhere, 4)
    store.reads.clear()
    repository.get(Counter, "42")
    assert store.reads == [2]


def test_the_cached_copy_is_brought_forward(repository, store, elsewhere):
    """36: the cached copy is brought forward, and stays so."""
    saved(repository, 1)
    saved(elsewhere, 2, 3)
    assert repository.get(Counter, "42").counts == [1, 2, 3]
    store.reads.clear()
    assert repository.get(Counter, "42").version == 3
    assert store.reads == [2]


def test_two_repositories_over_one_cache_agree(store, states):
    """37: two repositories over one cache agree."""
    one, other = (
        Repository(store, Serializer("shop"), cache=AggregateCache(states)) for _ in range(2)
    )
    for number in range(6):
        saved((one, other)[number % 2], number)
        assert one.get(Counter, "42").counts == other.get(Counter, "42").counts
    assert one.get(Counter, "42").version == 6


def test_a_gap_evicts_and_rebuilds(repository, store, states, caplog):
    """38: a gap evicts and rebuilds."""
    # given a cached version 2 whose next events begin at 4, as the cache sees them
    saved(repository, 1, 2)
    real = store.read_stream

    def with_a_gap(stream, *, after_version=0, limit=None):
        return real(stream, after_version=after_version and after_version + 1, limit=limit)

    saved(Repository(store, Serializer("shop")), 3, 4)
    store.read_stream = with_a_gap
    # when
    with caplog.at_level(logging.WARNING):
        counter = repository.get(Counter, "42")
    # then
    assert (counter.version, counter.counts) == (4, [1, 2, 3, 4])
    assert "evicted" in caplog.records[0].message
    store.read_stream = real
    assert repository.get(Counter, "42").version == 4


def test_after_an_eviction_the_aggregate_is_built_anew(repository, store, states):
    """39: after eviction a new instance."""
    first = saved(repository, 1)
    states.remove(STREAM)
    store.reads.clear()
    second = repository.get(Counter, "42")
    assert store.reads == [0]
    assert second is not first
    assert second.counts == [1]


def test_a_failed_save_evicts(repository, store, states, elsewhere):
    """40: a failed save evicts."""
    counter = saved(repository, 1)
    assert states.get(STREAM)
    saved(elsewhere, 2)
    counter.add(3)
    with pytest.raises(ConcurrencyError):
        repository.save(counter)
    assert states.get(STREAM) is None
    assert repository.get(Counter, "42").counts == [1, 2]


def test_save_then_get_gives_the_same_state_and_reads_no_old_event(repository, store):
    """41: save then get gives the same state."""
    counter = saved(repository, 1, 2)
    store.reads.clear()
    loaded = repository.get(Counter, "42")
    assert (loaded.version, loaded.counts) == (counter.version, counter.counts)
    assert store.reads == [1]


def test_save_delegates_to_the_store(repository, store):
    """42: save delegates."""
    saved(repository, 1, 2)
    assert [event.version for event in store.read_all()] == [1, 2]


def test_a_miss_is_not_cached(repository, elsewhere, states):
    """43: a miss is not cached."""
    assert repository.find(Counter, "42") is None
    with pytest.raises(AggregateNotFound):
        repository.get(Counter, "42")
    assert len(states) == 0
    saved(elsewhere, 1)
    assert repository.get(Counter, "42").version == 1


def test_an_empty_id_is_not_cached(store):
    """43: an empty id is not cached."""
    tier = Tier()
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(tier))
    assert repository.find(Counter, "") is None
    AggregateCache(tier).put(Counter(""), STREAM._replace(aggregate_id=""))
    assert tier.asked == []


def test_3_writers_of_100_saves_each_leave_301_events_of_distinct_versions(repository, store):
    """44: 3 times 100 concurrent saves: 301 events, distinct versions."""
    saved(repository, 0)

    def write(writer: int) -> None:
        for number in range(100):
            while True:
                try:
                    saved(repository, writer * 100 + number + 1)
                    break
                except ConcurrencyError:
                    pass

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(write, range(3)))
    events = store.read_stream(STREAM)
    assert [event.version for event in events] == list(range(1, 302))
    counter = repository.get(Counter, "42")
    assert sorted(counter.counts) == list(range(301))
    assert counter.counts == Repository(store, Serializer("shop")).get(Counter, "42").counts


def test_two_aggregates_are_written_in_parallel(repository, store):
    """45: two aggregates in parallel."""

    def write(id: str) -> None:
        for number in range(100):
            saved(repository, number, id=id)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ["1", "2"]))
    for name in ("1", "2"):
        assert repository.get(Counter, name).counts == list(range(100))


def test_callers_never_share_a_mutable_instance(repository):
    """53: callers never share a mutable instance."""
    kept = saved(repository, 1)
    kept.counts.append(99)
    one, other = repository.get(Counter, "42"), repository.get(Counter, "42")
    assert one is not other
    one.counts.append(77)
    one.add(5)
    assert other.counts == repository.get(Counter, "42").counts == [1]
    assert other.pending_events == ()


def test_two_types_with_one_id_are_two(repository):
    saved(repository, 1)
    saved(repository, 2, cls=OtherCounter)
    assert repository.get(Counter, "42").counts == [1]
    assert repository.get(OtherCounter, "42").counts == [2]


def test_a_cached_aggregate_asks_no_snapshot_store_and_takes_no_snapshot_too_soon(store, states):
    class Snapshotted(Counter, alias_of=Counter, snapshot_every=10):
        pass

    asked: list[str] = []

    class Asked(MemorySnapshotStore):
        def find(self, stream):
            asked.append("find")
            return super().find(stream)

        def put(self, snapshot):
            asked.append(f"put {snapshot.version}")
            return super().put(snapshot)

    repository = Repository(
        store,
        Serializer("shop"),
        snapshots=Snapshots(Asked()),
        cache=AggregateCache(states),
    )
    for number in range(25):
        saved(repository, number, cls=Snapshotted)
    assert asked == ["find", "put 10", "put 20"]


def test_a_class_that_can_not_be_cached_is_loaded_and_told_of_once(store, states, caplog):
    class Loose(Counter, alias_of=Counter):
        @applies(CacheCounted)
        def _counted(self, event: CacheCounted) -> None:
            self.extra = object()

    repository = Repository(store, Serializer("shop"), cache=AggregateCache(states))
    for number in range(3):
        saved(repository, number, cls=Loose)
    assert len(states) == 0
    (told,) = [record.message for record in caplog.records]
    assert told.startswith(
        "CacheCounter-42 can't be cached, nor can others of its class: SnapshotError: "
    )


def test_one_of_another_schema_version_or_shape_is_not_taken(repository, store):
    class Next(Counter, alias_of=Counter, snapshot_version=2):
        pass

    class Wider(Counter, alias_of=Counter):
        more: int = 0

    for other in (Next, Wider):
        saved(repository, 1)
        store.reads.clear()
        repository.get(other, "42")
        assert store.reads == [0]


def test_damaged_bytes_are_not_taken(repository, states, caplog):
    saved(repository, 1)
    states.put(STREAM, b"damaged")
    assert repository.get(Counter, "42").counts == [1]
    told = caplog.records[0].message
    assert told.startswith("cached state of CacheCounter-42 not restored: ")


# Memory


def test_memory_keeps_as_many_as_it_may_and_lets_the_least_used_go():
    cache = MemoryStateCache(size=2, ttl_s=60)
    one, two, three = (STREAM._replace(aggregate_id=name) for name in "123")
    cache.put(one, b"1")
    cache.put(two, b"2")
    assert cache.get(one) == b"1"
    cache.put(three, b"3")
    assert [cache.get(stream) for stream in (one, two, three)] == [b"1", None, b"3"]
    assert len(cache) == 2


def test_memory_s_expiry_slides():
    """49: with sliding expiry: a get, or a put, lets it live on."""
    now = 0.0
    cache = MemoryStateCache(size=2, ttl_s=10, clock=lambda: now)
    cache.put(STREAM, b"1")
    for now in (9.0, 18.0, 27.0):  # noqa: B007
        assert cache.get(STREAM) == b"1"
    now = 38.0
    assert cache.get(STREAM) is None
    assert len(cache) == 0


# Tiers


def test_memory_alone_is_a_cache(store):
    """46: tiers: memory."""
    memory = Tier()
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(TieredCache(memory)))
    saved(repository, 1)
    assert repository.get(Counter, "42").version == 1
    assert STREAM in memory.states


def test_redis_alone_is_a_cache(store):
    """47: tiers: Redis; on a real server in tests/integration/test_cache.py."""
    shared = Tier()
    one, other = (
        Repository(store, Serializer("shop"), cache=AggregateCache(TieredCache(shared)))
        for _ in range(2)
    )
    saved(one, 1, 2)
    store.reads.clear()
    assert other.get(Counter, "42").version == 2
    assert store.reads == [1]


def test_no_tier_keeps_nothing(store):
    """48: tiers: neither."""
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(TieredCache()))
    saved(repository, 1)
    store.reads.clear()
    assert repository.get(Counter, "42").version == 1
    assert store.reads == [0]


def test_a_put_writes_both():
    """49: set writes both."""
    near, far = Tier(), Tier()
    TieredCache(near, far).put(STREAM, b"1")
    assert near.states == far.states == {STREAM: b"1"}


def test_what_is_near_is_not_asked_for_far_away():
    """50: a memory hit asks Redis nothing."""
    near, far = Tier(), Tier()
    near.states[STREAM] = b"1"
    assert TieredCache(near, far).get(STREAM) == b"1"
    assert far.asked == []


def test_what_is_far_away_comes_near():
    """51: a Redis hit fills memory; that it extends its expiry: tests/integration/test_cache.py."""
    near, far = Tier(), Tier()
    far.states[STREAM] = b"1"
    assert TieredCache(near, far).get(STREAM) == b"1"
    assert near.states == {STREAM: b"1"}
    assert far.asked == ["get"]


def test_what_is_nowhere_is_none():
    """52: both empty: None."""
    assert TieredCache(Tier(), Tier()).get(STREAM) is None


def test_a_removal_clears_both():
    """53: remove clears both."""
    near, far = Tier(), Tier()
    cache = TieredCache(near, far)
    cache.put(STREAM, b"1")
    cache.remove(STREAM)
    assert near.states == far.states == {}


def test_a_tier_that_is_away_fails_no_command(store, caplog):
    near, far = Tier(), Tier()
    far.is_away = True
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(TieredCache(near, far)))
    counter = saved(repository, 1, 2)
    assert repository.get(Counter, "42").counts == [1, 2]
    near.is_away = True
    saved(repository, 3)
    counter.add(9)
    with pytest.raises(ConcurrencyError):
        repository.save(counter)
    assert repository.get(Counter, "42").counts == [1, 2, 3]
    told = {record.message for record in caplog.records}
    assert all(one.startswith("cache skipped for CacheCounter-42: ") for one in told)
    assert told


def test_what_was_kept_of_a_state_that_the_store_went_back_from_is_not_taken(store, states):
    # given an aggregate that is cached
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(states))
    counter = saved(repository, 1, 2)
    # when the store goes back and on to the same version, then it is loaded anew
    store.__init__()
    saved(Repository(store, Serializer("shop")), 3, 4)
    assert repository.get(Counter, "42").counts == [3, 4]
    # and one that was loaded before and is kept after it does not count for one of now
    AggregateCache(states).put(counter, repository.stream_of(Counter, "42"))
    assert repository.get(Counter, "42").counts == [3, 4]


# Settings


def cache_of(**settings):
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", **settings)
    return open_cache(app, read_settings(app))


def test_the_cache_is_off_unless_it_is_set():
    assert cache_of() is None
    assert cache_of(cqrs_cache="off") is None


def test_its_settings_choose_the_tiers():
    """46, 47, 48: tiers: memory, Redis, neither."""
    kinds = {
        name: [
            type(tier) for tier in cache_of(cqrs_cache=name, broker_url="redis://x")._states._tiers
        ]
        for name in ("memory", "redis", "memory+redis")
    }
    assert kinds == {
        "memory": [MemoryStateCache],
        "redis": [RedisStateCache],
        "memory+redis": [MemoryStateCache, RedisStateCache],
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cqrs_cache", "disk"),
        ("cqrs_cache", True),
        ("cqrs_cache_size", 0),
        ("cqrs_cache_ttl_s", 0.5),
        ("cqrs_snapshots", "always"),
    ],
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(InvalidSetting, match=name) as error:
        cache_of(**{name: value})
    assert error.value.setting == name


def test_redis_is_asked_for_with_a_redis_broker_alone():
    with pytest.raises(InvalidSetting, match="no Redis"):
        cache_of(cqrs_cache="memory+redis")


def test_an_application_caches_where_it_is_set():
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", cqrs_cache="memory")
    cqrs: Any = CQRS(app)
    with cqrs.session() as session:
        counter = Counter("42")
        counter.add(5)
        session.add(counter)
    assert cqrs.runtime.bus.repository._cache._states._tiers[0].get(STREAM)
    with cqrs.session() as session:
        assert session.get(Counter, "42").counts == [5]
