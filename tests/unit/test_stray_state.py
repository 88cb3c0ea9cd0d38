"""What no event has made is seen by nobody else: not through the cache, not through snapshots."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.domain.state import restore
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.session import Session
from cqrs_celery.session.snapshots import Snapshots


class StrayAdded(Event):
    number: int


class Tally(Aggregate, name="StrayTally", snapshot_every=2):
    note: str = ""
    numbers: list[int] = []  # noqa: RUF012

    def add(self, number: int) -> None:
        self.record(StrayAdded(number=number))

    @applies(StrayAdded)
    def _added(self, event: StrayAdded) -> None:
        self.numbers.append(event.number)


def note(tally: Tally) -> None:
    tally.note = "no event has made this"


def append(tally: Tally) -> None:
    tally.numbers.append(99)


def remove(tally: Tally) -> None:
    tally.numbers.clear()


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


@pytest.fixture
def kept() -> MemorySnapshotStore:
    return MemorySnapshotStore()


@pytest.mark.parametrize("stray", [note, append, remove])
@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("has_cache", [True, False])
@pytest.mark.parametrize("has_snapshots", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_what_is_done_outside_an_applies_method_reaches_nobody(
    store: MemoryEventStore,
    kept: MemorySnapshotStore,
    stray: Callable[[Tally], None],
    is_before: bool,
    has_cache: bool,
    has_snapshots: bool,
    is_new: bool,
) -> None:
    # given
    repository = Repository(
        store,
        Serializer("shop"),
        snapshots=Snapshots(kept) if has_snapshots else None,
        cache=AggregateCache(MemoryStateCache(size=9, ttl_s=60)) if has_cache else None,
    )
    numbers = []
    if not is_new:
        numbers = [1, 2, 3]
        with Session(repository) as session:
            tally = Tally("1")
            session.add(tally)
            for number in numbers:
                tally.add(number)
    # when somebody changes it beside its events, twice, with a commit each
    for number in (4, 5):
        with Session(repository) as session:
            tally = session.find(Tally, "1") or Tally("1")
            session.add(tally)
            if is_before:
                stray(tally)
            tally.add(number)
            if not is_before:
                stray(tally)
    # then the next one gets what the events have made
    found = Session(repository).get(Tally, "1")
    assert (found.note, found.numbers, found.version) == (
        "",
        [*numbers, 4, 5],
        len(numbers) + 2,
    )


def test_a_snapshot_is_of_the_events_and_not_of_the_instance_that_was_committed(
    store: MemoryEventStore, kept: MemorySnapshotStore
) -> None:
    # given
    repository = Repository(store, Serializer("shop"), snapshots=Snapshots(kept))
    tally = Tally("1")
    tally.add(1)
    note(tally)
    tally.add(2)
    # when
    repository.save(tally)
    # then
    snapshot = kept.find(repository.stream_of(Tally, "1"))
    assert snapshot is not None
    restored = restore(Tally, "1", snapshot.version, snapshot.data)
    assert (restored.note, restored.numbers) == ("", [1, 2])
    # and the one who has it knows of the snapshot
    assert tally.__ledger__.snapshot_version == 2


def test_an_instance_that_is_saved_twice_leaves_the_second_state_in_the_cache(
    store: MemoryEventStore,
) -> None:
    # given
    states = MemoryStateCache(size=9, ttl_s=60)
    repository = Repository(store, Serializer("shop"), cache=AggregateCache(states))
    tally = Tally("1")
    for number in (1, 2):
        tally.add(number)
        append(tally)
        repository.save(tally)
    # then
    cached = AggregateCache(states).get(Tally, repository.stream_of(Tally, "1"))
    assert cached is not None
    assert (cached.version, cached.numbers) == (2, [1, 2])
