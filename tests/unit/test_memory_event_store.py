"""The memory store keeps the contract, and calls on_commit; its clock is the test's."""

import threading
from collections.abc import Sequence

import pytest

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.errors import ConcurrencyError, DuplicateCommand
from cqrs_celery.store.events import CommandOutcome, CommandRecord, StoredEvent, StreamAppend
from cqrs_celery.store.stream import NO_STREAM
from cqrs_celery.testing.event_store_contract import (
    BOLT,
    NUT,
    EventStoreContract,
    append,
    event,
    events,
)


class TestMemoryEventStore(EventStoreContract):
    @pytest.fixture
    def store(self) -> MemoryEventStore:
        return MemoryEventStore()


def test_a_commit_is_handed_over_once_whole_and_in_order():
    # given
    handed_over: list[Sequence[StoredEvent]] = []
    store = MemoryEventStore(on_commit=handed_over.append)
    appends = [StreamAppend(BOLT, NO_STREAM, events(2)), StreamAppend(NUT, NO_STREAM, events(1))]
    # when
    store.append(appends)
    store.append(appends)
    # then
    assert handed_over == [store.read_all()]


def test_a_refused_commit_is_not_handed_over():
    # given
    handed_over: list[Sequence[StoredEvent]] = []
    store = MemoryEventStore(on_commit=handed_over.append)
    # when
    with pytest.raises(ConcurrencyError):
        append(store, BOLT, 1, event())
    # then
    assert handed_over == []


def test_on_commit_may_read_and_append():
    # given: a subscriber that answers each event of one stream with one in another
    def answer(committed: Sequence[StoredEvent]) -> None:
        if committed[0].stream == BOLT:
            append(store, NUT, len(store.read_stream(NUT)), event())

    store = MemoryEventStore(on_commit=answer)
    # when: a lock held over the call would stand still here
    writer = threading.Thread(target=append, args=(store, BOLT, NO_STREAM, event()), daemon=True)
    writer.start()
    writer.join(timeout=10)
    # then
    assert [stored.stream for stored in store.read_all()] == [BOLT, NUT]


def test_a_commit_stands_though_on_commit_fails():
    # given
    def fail(committed: Sequence[StoredEvent]) -> None:
        raise RuntimeError(f"{len(committed)} not delivered")

    store = MemoryEventStore(on_commit=fail)
    # when
    with pytest.raises(RuntimeError, match="1 not delivered"):
        append(store, BOLT, NO_STREAM, event())
    # then
    assert len(store.read_stream(BOLT)) == 1


def test_a_command_is_remembered_for_its_time_to_live():
    # given
    now_s = [1_000.0]
    store = MemoryEventStore(clock=lambda: now_s[0])
    record = CommandRecord("c-1", '"done"', ttl_s=60)
    append(store, BOLT, NO_STREAM, event(), command=record)
    # when
    now_s[0] += 59.9
    # then
    assert store.find_command("c-1") == CommandOutcome(1, '"done"')
    with pytest.raises(DuplicateCommand):
        append(store, BOLT, 1, event(), command=record)
    # when
    now_s[0] += 0.1
    # then
    assert store.find_command("c-1") is None
    append(store, BOLT, 1, event(), command=record)


def test_what_was_read_does_not_grow():
    # given
    store = MemoryEventStore()
    append(store, BOLT, NO_STREAM, event())
    # when
    stream, everything = store.read_stream(BOLT), store.read_all()
    append(store, BOLT, 1, event())
    # then
    assert len(stream) == len(everything) == 1
