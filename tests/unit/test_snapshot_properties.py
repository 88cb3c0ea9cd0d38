"""Whatever shortcut a load takes, the aggregate is the one that its events alone make."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.domain.lifecycle import build, replay
from cqrs_celery.domain.snapshot_policy import EveryEvents
from cqrs_celery.domain.state import capture, restore
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.snapshots import Snapshots
from cqrs_celery.store.decoding import recorded_events
from cqrs_celery.store.events import StoredEvent
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import StreamName


class PropertyLine(msgspec.Struct):
    sku: str
    counts: list[int]


class PropertyRenamed(Event):
    name: str | None


class PropertyPriced(Event):
    sku: str
    price: Decimal
    at: datetime


class PropertyCounted(Event):
    sku: str
    counts: list[int]


class PropertyCleared(Event):
    sku: str


class Basket(Aggregate, name="PropertyBasket", snapshot_every=10):
    name: str | None = None
    prices: dict[str, Decimal] = {}  # noqa: RUF012
    lines: dict[str, PropertyLine] = {}  # noqa: RUF012
    cleared: set[str] = set()  # noqa: RUF012
    history: list[tuple[str, int]] = []  # noqa: RUF012
    priced_at: datetime
    mean: float = 0.0
    is_new: bool

    def __init__(self, id: str) -> None:
        super().__init__(id)
        self.is_new = True

    @applies(PropertyRenamed)
    def _renamed(self, event: PropertyRenamed) -> None:
        self.name = event.name

    @applies(PropertyPriced)
    def _priced(self, event: PropertyPriced) -> None:
        self.prices[event.sku] = event.price
        self.priced_at = event.at

    @applies(PropertyCounted)
    def _counted(self, event: PropertyCounted) -> None:
        line = self.lines.setdefault(event.sku, PropertyLine(event.sku, []))
        line.counts += event.counts
        self.history.append((event.sku, len(event.counts)))
        self.mean = sum(line.counts) / 3 if line.counts else 0.0

    @applies(PropertyCleared)
    def _cleared(self, event: PropertyCleared) -> None:
        self.lines.pop(event.sku, None)
        # What comes first in a dict depends on all that was before.
        if self.prices:
            del self.prices[next(iter(self.prices))]
        self.cleared.add(event.sku)
        if event.sku == "reset":
            del self.history[:]
            vars(self).pop("is_new", None)


texts = st.text(max_size=8)
skus = st.sampled_from(["a", "b", "ß", "\x00", '"', "reset"])
numbers = st.integers(-(2**63), 2**63 - 1)
some_events = st.lists(
    st.one_of(
        st.builds(PropertyRenamed, name=st.none() | texts),
        st.builds(
            PropertyPriced,
            sku=skus,
            price=st.decimals(allow_nan=False, allow_infinity=False, places=2),
            at=st.datetimes(timezones=st.just(UTC)),
        ),
        st.builds(PropertyCounted, sku=skus, counts=st.lists(numbers, max_size=3)),
        st.builds(PropertyCleared, sku=skus),
    ),
    max_size=40,
)


def state(aggregate: Aggregate) -> dict[str, str]:
    """Return all that an aggregate holds, in words: types, and the order of dicts, are in them."""
    return {
        name: repr(sorted(value)) if isinstance(value, set) else repr(value)
        for name, value in sorted(vars(aggregate).items())
        if name != "__ledger__"
    }


@settings(max_examples=300, deadline=None)
@given(some_events, st.data())
def test_an_aggregate_from_any_snapshot_and_the_rest_is_the_one_replayed_from_the_start(
    events: list[Event], data: st.DataObject
) -> None:
    # given a history, stored and read again
    store, serializer = MemoryEventStore(), Serializer("shop")
    repository = Repository(store, serializer)
    basket = Basket("1")
    for event in events:
        basket.record(event)
    repository.save(basket)
    stored = store.read_stream(repository.stream_of(Basket, "1"))
    history = list(recorded_events(stored, serializer))
    replayed = build(Basket, "1")
    replay(replayed, history)
    # when a snapshot is taken anywhere in it, once or several times
    places = data.draw(st.lists(st.integers(0, len(history)), min_size=1, max_size=3).map(sorted))
    it = build(Basket, "1")
    for place in places:
        replay(it, history[it.version : place])
        it = restore(Basket, "1", it.version, capture(it))
    replay(it, history[it.version :])
    # then
    assert it.version == replayed.version == len(events)
    assert state(it) == state(replayed)


class Beside(MemorySnapshotStore):
    """Be a store that reads the events behind a snapshot in the same step."""

    def __init__(self, events: MemoryEventStore) -> None:
        super().__init__()
        self._events = events

    def find_with_newer(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent]]:
        found = self.find(stream)
        after = found.version if found else 0
        return found, self._events.read_stream(stream, after_version=after)


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize(
    ("has_cache", "is_beside"), [(False, False), (False, True), (True, False), (True, True)]
)
@settings(max_examples=60, deadline=None)
@given(st.lists(some_events.map(lambda events: events[:8]), max_size=12), st.data())
def test_any_commits_by_any_processes_leave_the_aggregate_that_its_events_make(
    every: int, has_cache: bool, is_beside: bool, commits: list[list[Event]], data: st.DataObject
) -> None:
    # given processes with snapshots, some with a cache of their own
    Basket.__snapshot_policy__ = EveryEvents(every)
    store, serializer = MemoryEventStore(), Serializer("shop")
    kept = Beside(store) if is_beside else MemorySnapshotStore()
    processes = [
        Repository(
            store,
            serializer,
            snapshots=Snapshots(kept),
            cache=AggregateCache(MemoryStateCache(size=9, ttl_s=60)) if has_cache else None,
        )
        for _ in range(2)
    ]
    for events in commits:
        # when one of them commits
        process = data.draw(st.sampled_from(processes))
        basket = process.find(Basket, "1") or Basket("1")
        for event in events:
            basket.record(event)
        process.save(basket)
        # then all load what the events make
        alone = Repository(store, serializer).find(Basket, "1")
        for each in processes:
            loaded = each.find(Basket, "1")
            assert (loaded is None) == (alone is None)
            if alone is not None and loaded is not None:
                assert loaded.version == alone.version
                assert state(loaded) == state(alone)
