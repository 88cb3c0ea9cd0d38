"""The repository loads aggregates and saves them, all or none."""

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import (
    AggregateNotConstructible,
    AggregateNotFound,
    ConcurrencyError,
    DuplicateCommand,
    EventOutOfOrder,
    ForeignEvent,
    MalformedMessage,
    StoreUnavailable,
    UnknownMessageType,
    UnwritableMessage,
)
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.metadata import Metadata
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.repository import Repository
from cqrs_celery.store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    NewEvent,
    StoredEvent,
    StreamAppend,
)
from cqrs_celery.store.stream import NO_STREAM, StreamName


class RepositoryItemsCheckedIn(Event):
    count: int = 1


class Item(Aggregate, name="RepositoryItem"):
    count: int = 0

    def check_in(self, count: int = 1) -> None:
        self.record(RepositoryItemsCheckedIn(count=count))

    @applies(RepositoryItemsCheckedIn)
    def _checked_in(self, event: RepositoryItemsCheckedIn) -> None:
        self.count += event.count


class Forging(MemoryEventStore):
    """Return a history that no store should have."""

    def __init__(self, *history: StoredEvent) -> None:
        super().__init__()
        self._history = history

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        return self._history


class LosingReplies(MemoryEventStore):
    """Write the first append, but lose the reply."""

    is_losing = True

    def append(self, appends, **options):
        committed = super().append(appends, **options)
        if self.is_losing:
            self.is_losing = False
            raise StoreUnavailable("no reply")
        return committed


def stored(
    version: int, *, aggregate_id: str = "42", data: bytes = b"{}", type_version: int = 1
) -> StoredEvent:
    event = NewEvent(
        f"e-{version}",
        "shop.RepositoryItemsCheckedIn",
        type_version,
        datetime(2026, 1, 1, tzinfo=UTC),
        data,
    )
    return StoredEvent(StreamName("shop", "RepositoryItem", aggregate_id), version, version, event)


def repository_on(store: MemoryEventStore) -> Repository:
    return Repository(store, Serializer("shop"))


def checked_in(id: str, count: int = 1) -> Item:
    item = Item(id)
    item.check_in(count)
    return item


@pytest.fixture
def store() -> MemoryEventStore:
    return MemoryEventStore()


@pytest.fixture
def repository(store) -> Repository:
    return repository_on(store)


# Loading


def test_an_aggregate_is_as_its_events_have_left_it(repository):
    # given
    item = checked_in("42", 5)
    item.check_in(2)
    repository.save(item)
    # when
    loaded = repository.get(Item, "42")
    # then
    assert (loaded.id, loaded.count, loaded.version, loaded.pending_events) == ("42", 7, 2, ())
    assert loaded is not item


def test_a_missing_aggregate_is_none_to_find_and_an_error_to_get(repository):
    """12: a missing aggregate: `get` raises `AggregateNotFound`, `find` gives None."""
    assert repository.find(Item, "42") is None
    with pytest.raises(
        AggregateNotFound, match=r"RepositoryItem-42 has no events .*'shop'"
    ) as error:
        repository.get(Item, "42")
    assert (error.value.aggregate_type, error.value.aggregate_id) == ("RepositoryItem", "42")


def test_the_type_and_the_application_are_part_of_the_identity(store, repository):
    # given
    class Order(Aggregate):
        pass

    repository.save(checked_in("42"))
    # then
    assert repository.find(Order, "42") is None
    assert Repository(store, Serializer("elsewhere")).find(Item, "42") is None


def test_a_class_that_can_not_be_built_from_an_id_is_an_error(repository):
    """25: an aggregate class that cannot be built without arguments: error."""

    class Demanding(Aggregate):
        def __init__(self, id: str, name: str) -> None:
            super().__init__(id)

    with pytest.raises(AggregateNotConstructible, match="Demanding"):
        repository.find(Demanding, "42")


def test_a_store_s_history_out_of_order_is_an_error():
    """26: history out of order: error."""
    with pytest.raises(EventOutOfOrder, match="expected 2"):
        repository_on(Forging(stored(1), stored(3))).get(Item, "42")


def test_a_store_s_event_of_another_aggregate_is_an_error():
    """26: an event whose aggregate id differs from the aggregate's: error."""
    with pytest.raises(ForeignEvent, match="'43'"):
        repository_on(Forging(stored(1), stored(2, aggregate_id="43"))).get(Item, "42")


@pytest.mark.parametrize(
    ("unreadable", "error_type"),
    [
        (stored(2, type_version=9), UnknownMessageType),
        (stored(2, data=b'{"count":"x"}'), MalformedMessage),
    ],
)
def test_an_event_that_can_not_be_read_is_an_error_that_says_where_it_is(unreadable, error_type):
    with pytest.raises(error_type) as error:
        repository_on(Forging(stored(1), unreadable)).get(Item, "42")
    assert error.value.__notes__ == ["stored in RepositoryItem-42 at version 2, global position 2"]


# Saving


def test_a_save_writes_each_event_with_the_facts_of_its_recording(store, repository):
    """31: events take the aggregate's id."""
    # given
    item = checked_in("42", 5)
    [pending] = item.pending_events
    metadata = Metadata(correlation_id="c", causation_id="k")
    # when
    committed = repository.save(item, metadata=metadata)
    # then
    assert committed == Committed(position=1, versions=(1,))
    assert store.read_all() == [
        StoredEvent(
            StreamName("shop", "RepositoryItem", "42"),
            1,
            1,
            NewEvent(
                pending.event_id,
                "shop.RepositoryItemsCheckedIn",
                1,
                pending.timestamp,
                b'{"count":5}',
                metadata,
            ),
        )
    ]


def test_after_a_save_nothing_is_pending_and_the_version_has_moved(repository):
    """19: nothing is pending afterwards. 29: versions 1, 2, …"""
    item = checked_in("42")
    item.check_in()
    repository.save(item)
    assert (item.version, item.pending_events) == (2, ())
    item.check_in()
    repository.save(item)
    assert (item.version, item.pending_events) == (3, ())


def test_a_save_is_one_append_whatever_the_number_of_aggregates():
    # given
    commits: list[Sequence[StoredEvent]] = []
    repository = repository_on(MemoryEventStore(on_commit=commits.append))
    one, other = checked_in("1"), checked_in("2")
    other.check_in()
    # when
    committed = repository.save(one, other)
    # then
    assert committed == Committed(position=3, versions=(1, 2))
    assert [[event.stream.aggregate_id for event in commit] for commit in commits] == [
        ["1", "2", "2"]
    ]
    assert (one.version, other.version) == (1, 2)


def test_a_save_of_nothing_writes_nothing(store, repository):
    assert repository.save() is None
    assert repository.save(Item("42"), command=CommandRecord("c-1", "null", ttl_s=60)) is None
    assert store.read_all() == []
    assert store.find_command("c-1") is None


def test_unchanged_aggregates_are_passed_over(repository):
    assert repository.save(Item("1"), checked_in("2")) == Committed(position=1, versions=(1,))


def test_the_same_instance_twice_is_saved_once(repository):
    item = checked_in("42")
    assert repository.save(item, item) == Committed(position=1, versions=(1,))


def test_two_instances_of_one_aggregate_are_refused(store, repository):
    with pytest.raises(ConcurrencyError, match="RepositoryItem-42 has two instances here"):
        repository.save(checked_in("42"), checked_in("42"))
    assert store.read_all() == []


def test_a_save_after_somebody_else_s_is_refused_and_changes_nothing(store, repository):
    """22, 23: another writer committed first; version and pending events stay."""
    # given
    repository.save(checked_in("42"))
    one, other = repository.get(Item, "42"), repository.get(Item, "42")
    one.check_in()
    other.check_in()
    repository.save(one)
    pending = other.pending_events
    # when
    with pytest.raises(ConcurrencyError) as error:
        repository.save(other)
    # then
    assert (error.value.stream, error.value.expected, error.value.found) == (
        "RepositoryItem-42",
        1,
        2,
    )
    assert (other.version, other.pending_events) == (1, pending)
    assert len(store.read_all()) == 2


def test_a_new_aggregate_under_a_taken_id_is_refused(repository):
    repository.save(checked_in("42"))
    with pytest.raises(ConcurrencyError, match="expected to be new"):
        repository.save(checked_in("42"))


@pytest.mark.parametrize("expected_version", [0, 2, 7])
def test_a_stale_expected_version_is_refused(store, repository, expected_version):
    """23: stale expected version: error."""
    # given
    item = checked_in("42")
    repository.save(item)
    item.check_in()
    # when
    with pytest.raises(ConcurrencyError) as error:
        repository.save(item, expected_version=expected_version)
    # then
    assert (error.value.expected, error.value.found) == (expected_version, 1)
    assert len(store.read_all()) == 1


def test_the_right_expected_version_is_accepted(repository):
    item = checked_in("42")
    repository.save(item, expected_version=0)
    item.check_in()
    repository.save(item, expected_version=1)
    assert item.version == 2


def test_a_command_is_recorded_with_the_events_and_refused_the_second_time(store, repository):
    # given
    record = CommandRecord("c-1", '"done"', ttl_s=60)
    repository.save(checked_in("1"), command=record)
    late = checked_in("2")
    # when
    with pytest.raises(DuplicateCommand) as error:
        repository.save(late, command=record)
    # then
    assert error.value.outcome == '"done"'
    assert store.find_command("c-1") == CommandOutcome(1, '"done"')
    assert (late.version, len(late.pending_events)) == (0, 1)


def test_a_save_whose_reply_was_lost_may_be_repeated():
    # given
    store = LosingReplies()
    repository = repository_on(store)
    item = checked_in("42")
    with pytest.raises(StoreUnavailable):
        repository.save(item)
    assert (item.version, len(item.pending_events)) == (0, 1)
    # when
    committed = repository.save(item)
    # then
    assert committed == Committed(position=1, versions=(1,))
    assert (item.version, item.pending_events) == (1, ())
    assert len(store.read_all()) == 1


def test_an_event_that_can_not_be_written_is_refused_when_it_is_recorded():
    # given
    class RepositoryAnything(Event):
        value: object

    item = Item("2")
    # when
    with pytest.raises(UnwritableMessage, match="RepositoryAnything, version 1, can't be written"):
        item.record(RepositoryAnything(value=object()))
    # then
    assert item.pending_events == ()


def test_an_event_that_is_too_large_leaves_everything_as_it_was(store):
    # given
    class RepositoryNoted(Event):
        note: str

    repository = Repository(store, Serializer("shop", max_bytes=1024))
    good, bad = checked_in("1"), Item("2")
    bad.record(RepositoryNoted(note="x" * 1024))
    # when
    with pytest.raises(UnwritableMessage, match="cqrs_max_message_bytes"):
        repository.save(good, bad)
    # then
    assert store.read_all() == []
    assert (len(good.pending_events), len(bad.pending_events)) == (1, 1)


def test_what_another_writer_appended_is_loaded(store, repository):
    # given: somebody who does not use aggregates
    event = stored(1, data=b'{"count":9}').event
    store.append([StreamAppend(StreamName("shop", "RepositoryItem", "42"), NO_STREAM, [event])])
    # then
    assert repository.get(Item, "42").count == 9
