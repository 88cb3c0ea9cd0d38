"""What is kept of events that a stream does not have is not used, whoever notices that or not.

Two stores stand for one that went back, and for two databases of one application: their first
events are the same, and what follows is not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import create_engine, event

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache
from cqrs_celery.session.keeping import KNOWN_MOST
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.snapshots import Snapshots
from cqrs_celery.store.events import StreamAppend
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import ANY_VERSION, StreamName


class LostCounted(Event):
    count: int = 1


class Counter(Aggregate, name="LostCounter"):
    counts: list[int] = []  # noqa: RUF012

    def add(self, *counts: int) -> None:
        for count in counts:
            self.record(LostCounted(count=count))

    @applies(LostCounted)
    def _counted(self, event: LostCounted) -> None:
        self.counts.append(event.count)


class Snapshotted(Counter, alias_of=Counter, snapshot_every=1):
    pass


STREAM = StreamName("shop", "LostCounter", "42")

#: A store of a name; each name is another database.
Open = Callable[[str], Any]


@pytest.fixture(params=["memory", "sqlite"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: dict[str, Any] = {}

    def open_it(name: str) -> Any:
        if name not in opened and request.param == "memory":
            opened[name] = MemoryEventStore()
        elif name not in opened:
            opened[name] = open_event_store(f"sqlite:///{tmp_path / name}.db")
            create_schema(opened[name])
        return opened[name]

    yield open_it
    for store in opened.values():
        store.close()


@pytest.fixture
def states() -> MemoryStateCache:
    return MemoryStateCache(size=100, ttl_s=60)


def repository(store: Any, states: MemoryStateCache | None = None, **options: Any) -> Repository:
    cache = None if states is None else AggregateCache(states)
    return Repository(store, Serializer("shop"), cache=cache, **options)


def write(store: Any, *counts: int, cls: type[Counter] = Counter) -> None:
    """Commit events of the aggregate one by one, as a process does that keeps nothing."""
    for count in counts:
        counter = repository(store).find(cls, "42") or cls("42")
        counter.add(count)
        repository(store).save(counter)


def copy(source: Any, target: Any) -> None:
    """Give a store the events of another one, as a backup of it has them."""
    events = [stored.event for stored in source.read_stream(STREAM)]
    target.append([StreamAppend(STREAM, ANY_VERSION, events)])


def split(
    open_store: Open, before: Sequence[int], lost: Sequence[int], since: Sequence[int]
) -> Any:
    """Return a store, and what it is when it went back and has gone on since."""
    store, restored = open_store("store"), open_store("restored")
    write(store, *before)
    copy(store, restored)
    write(store, *lost)
    write(restored, *since)
    return store, restored


# The cache


@pytest.mark.parametrize("since", [[], [3], [3, 4], [3, 4, 5]], ids=len)
def test_a_cached_state_of_events_that_were_lost_is_not_used(
    open_store: Open, states: MemoryStateCache, since: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    # given a cached state, two events of which are lost, and others since
    store, restored = split(open_store, [1, 2], [100, 100], since)
    assert repository(store, states).get(Counter, "42").counts == [1, 2, 100, 100]
    # when it is loaded, though nobody has noted that the store went back
    counter = repository(restored, states).get(Counter, "42")
    # then it is what its events make of it, and so it is the next time
    assert counter.counts == [1, 2, *since]
    assert "cached state of LostCounter-42 does not match its events" in caplog.text
    caplog.clear()
    assert repository(restored, states).get(Counter, "42").counts == [1, 2, *since]
    assert not caplog.records


def test_a_database_made_anew_is_not_given_the_cached_states_of_the_one_before(
    open_store: Open, states: MemoryStateCache
) -> None:
    write(open_store("before"), 1, 2)
    repository(open_store("before"), states).get(Counter, "42")
    assert repository(open_store("anew"), states).find(Counter, "42") is None


def test_a_session_from_before_the_store_went_back_leaves_no_cached_state(
    open_store: Open, states: MemoryStateCache
) -> None:
    # given an aggregate that was loaded before, and others' events since, as many as were lost
    store, restored = split(open_store, [1], [100, 100], [3, 4])
    counter = repository(store, states).get(Counter, "42")
    # when it is saved, since its version happens to be right
    counter.add(9)
    repository(restored, states).save(counter)
    # then the next load has what the events make of it
    assert repository(restored, states).get(Counter, "42").counts == [1, 3, 4, 9]


@pytest.mark.parametrize("is_away", [False, True])
def test_nor_does_one_that_commits_many_events(
    open_store: Open,
    states: MemoryStateCache,
    is_away: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, restored = split(open_store, [1], [100], [3])
    counter = repository(store, states).get(Counter, "42")
    counter.add(*range(KNOWN_MOST + 1))
    with monkeypatch.context() as patch:
        if is_away:
            patch.setattr(restored, "read_stream", _away)
        repository(restored, states).save(counter)
    assert repository(restored, states).get(Counter, "42").counts == [1, 3, *range(KNOWN_MOST + 1)]


def _away(stream: StreamName, *, after_version: int = 0, limit: int | None = None) -> Any:
    raise OSError("the store does not answer")


def test_an_instance_that_is_saved_again_and_again_is_cached_whatever_is_lost_in_between(
    open_store: Open, states: MemoryStateCache
) -> None:
    # given an instance that is saved again and again, and nothing lost
    store, restored = open_store("store"), open_store("restored")
    write(store, 1)
    counter = repository(store, states).get(Counter, "42")
    for number in range(3 * KNOWN_MOST):
        counter.add(number)
        repository(store, states).save(counter)
        assert repository(store, states).get(Counter, "42").counts == counter.counts
    # when its last event is lost, another one is written, and it is saved again
    events = [stored.event for stored in store.read_stream(STREAM)]
    restored.append([StreamAppend(STREAM, ANY_VERSION, events[:-1])])
    write(restored, 100)
    counter.add(9)
    repository(restored, states).save(counter)
    # then the next load has what the events make of it
    expected = [1, *range(3 * KNOWN_MOST - 1), 100, 9]
    assert repository(restored, states).get(Counter, "42").counts == expected


def test_a_large_commit_is_not_read_again_by_each_load(states: MemoryStateCache) -> None:
    class Watched(MemoryEventStore):
        read = 0

        def read_stream(self, *args: Any, **options: Any) -> Any:
            found = super().read_stream(*args, **options)
            self.read += len(found)
            return found

    store = Watched()
    write(store, 1)
    counter = repository(store, states).get(Counter, "42")
    counter.add(*range(500))
    store.read = 0
    repository(store, states).save(counter)
    assert repository(store, states).get(Counter, "42").version == 501
    # the one that it was loaded at, and the last one
    assert store.read == 2


def test_a_cached_load_is_one_statement_that_gives_one_row_without_newer_events(
    tmp_path: Path, states: MemoryStateCache
) -> None:
    store = open_event_store(f"sqlite:///{tmp_path / 'events.db'}")
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    write(store, *range(100))
    cached = repository(store, states)
    cached.get(Counter, "42")
    statements: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    assert cached.get(Counter, "42").version == 100
    assert len(statements) == 1
    history = store.read_history(
        STREAM, known=[(100, store.read_stream(STREAM)[-1].event.event_id)]
    )
    assert history == ([], "")
    store.close()


def test_a_replica_that_lags_does_not_look_like_a_store_that_went_back(
    tmp_path: Path, states: MemoryStateCache
) -> None:
    # given a database, and a replica that has only the first of its events
    engines = [create_engine(f"sqlite:///{tmp_path / name}.db") for name in ("primary", "replica")]
    primary, replica = (SqliteEventStore(engine) for engine in engines)
    for store in (primary, replica):
        create_schema(store)
    write(primary, 1)
    copy(primary, replica)
    write(primary, 2, 3)
    repository(primary, states).get(Counter, "42")
    # when another process loads what is cached, and reads from the replica
    both = SqliteEventStore(engines[0], read_engine=engines[1])
    # then it gets no older state than is cached
    assert repository(both, states).get(Counter, "42").counts == [1, 2, 3]
    for store in (primary, replica, both):
        store.close()


# Snapshots


@pytest.mark.parametrize("since", [[], [3], [3, 4], [3, 4, 5]], ids=len)
def test_a_snapshot_elsewhere_of_events_that_were_lost_is_not_used(
    open_store: Open, since: list[int]
) -> None:
    # given snapshots in a store of their own, of two events that are lost, and others since
    store, restored = open_store("store"), open_store("restored")
    snapshots = Snapshots(MemorySnapshotStore())
    repository_of = {one: repository(one, snapshots=snapshots) for one in (store, restored)}
    write(store, 1, 2, cls=Snapshotted)
    copy(store, restored)
    write(restored, *since, cls=Snapshotted)
    write(store, 100, cls=Snapshotted)
    counter = repository_of[store].get(Snapshotted, "42")
    counter.add(100)
    repository_of[store].save(counter)
    kept = snapshots.store.find(STREAM)
    assert kept is not None
    assert kept.version == 4
    # when it is loaded, though nobody has noted that the store went back
    counter = repository_of[restored].get(Snapshotted, "42")
    # then it is what its events make of it, and the next commit takes a snapshot of that
    assert counter.counts == [1, 2, *since]
    counter.add(9)
    repository_of[restored].save(counter)
    kept = snapshots.store.find(STREAM)
    assert kept is not None
    assert kept.version == counter.version
    assert repository_of[restored].get(Snapshotted, "42").counts == [1, 2, *since, 9]


def test_a_session_from_before_the_store_went_back_takes_no_snapshot(
    open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    # given an aggregate that was loaded before, and others' events since, as many as were lost
    store, restored = split(open_store, [1], [100], [3])
    counter = repository(store).get(Snapshotted, "42")
    counter.add(9)
    # when it is saved, since its version happens to be right
    snapshots = Snapshots(restored.snapshots())
    with caplog.at_level(logging.WARNING):
        repository(restored, snapshots=snapshots).save(counter)
    # then no snapshot is taken, and it is said
    assert snapshots.store.find(STREAM) is None
    assert "snapshot of LostCounter-42 not taken" in caplog.text
    assert repository(restored, snapshots=snapshots).get(Snapshotted, "42").counts == [1, 3, 9]


def test_a_snapshot_elsewhere_that_names_no_event_is_replaced(open_store: Open) -> None:
    """As those of earlier versions: whether it goes with the events is unknown."""
    store = open_store("store")
    snapshots = Snapshots(MemorySnapshotStore())
    write(store, 1, 2)
    state = {"counts": [1, 100]}
    kept = _unnamed(repository(store).get(Snapshotted, "42"), state)
    snapshots.store.put(kept)
    counter = repository(store, snapshots=snapshots).get(Snapshotted, "42")
    assert counter.counts == [1, 2]
    counter.add(3)
    repository(store, snapshots=snapshots).save(counter)
    found = snapshots.store.find(STREAM)
    assert found is not None
    assert found.version == 3


def test_one_that_lies_with_its_events_is_used(tmp_path: Path, states: MemoryStateCache) -> None:
    # given a snapshot of an earlier version in the events' own database, and no newer event
    store = open_event_store(f"sqlite:///{tmp_path / 'events.db'}")
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    write(store, 1, 2)
    snapshots = Snapshots(store.snapshots())
    kept = _unnamed(repository(store).get(Snapshotted, "42"), {"counts": [1, 2]})
    assert snapshots.store.put(kept)
    cached = repository(store, states, snapshots=snapshots)
    # then it is used, and what is loaded from it is cached from the next event on
    for _ in range(2):
        assert cached.get(Snapshotted, "42").__ledger__.snapshot_version == 2
    assert len(states) == 0
    write(store, 3)
    assert cached.get(Snapshotted, "42").counts == [1, 2, 3]
    assert len(states) == 1
    store.close()


def test_one_that_lies_with_its_events_is_followed_by_another(tmp_path: Path) -> None:
    # given a snapshot of an earlier version in the events' own database, and a newer event
    store = open_event_store(f"sqlite:///{tmp_path / 'events.db'}")
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    write(store, 1, 2)
    snapshots = Snapshots(store.snapshots())
    kept = _unnamed(repository(store).get(Snapshotted, "42"), {"counts": [1, 2]})
    assert snapshots.store.put(kept)
    write(store, 3)
    # when the aggregate that begins with it is saved
    counter = repository(store, snapshots=snapshots).get(Snapshotted, "42")
    assert counter.__ledger__.snapshot_version == 2
    counter.add(4)
    repository(store, snapshots=snapshots).save(counter)
    # then the next one is taken
    found = snapshots.store.find(STREAM)
    assert found is not None
    assert found.version == 4
    assert repository(store, snapshots=snapshots).get(Snapshotted, "42").counts == [1, 2, 3, 4]
    store.close()


def _unnamed(counter: Snapshotted, state: dict[str, Any]) -> Snapshot:
    """Return a snapshot as an earlier version has taken it, which names no event."""
    store = MemorySnapshotStore()
    Snapshots(store).take(counter, STREAM)
    taken = store.find(STREAM)
    assert taken is not None
    kept = msgspec.json.decode(taken.data)
    del kept["known"]
    data = msgspec.json.encode({**kept, "state": state})
    return Snapshot(STREAM, counter.version, 1, datetime.now(UTC), data)
