"""The session commits what was changed in it: once, whole, or not at all."""

import uuid
from contextlib import suppress
from typing import Any, assert_type

import pytest

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import (
    AggregateNotFound,
    ConcurrencyError,
    DuplicateCommand,
    SessionError,
    StoreUnavailable,
)
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.metadata import Metadata
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.handling import HandlerSession
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.session import Session
from cqrs_celery.store.events import CommandOutcome, CommandRecord, Committed, Lease
from cqrs_celery.store.stream import StreamName


class SessionItemCreated(Event):
    name: str


class SessionItemsCheckedIn(Event):
    count: int


class Item(Aggregate):
    name: str = ""
    count: int = 0

    @classmethod
    def create(cls, id: str, name: str = "bolt") -> "Item":
        item = cls(id)
        item.record(SessionItemCreated(name=name))
        return item

    def check_in(self, count: int = 1) -> None:
        self.record(SessionItemsCheckedIn(count=count))

    @applies(SessionItemCreated)
    def _created(self, event: SessionItemCreated) -> None:
        self.name = event.name

    @applies(SessionItemsCheckedIn)
    def _checked_in(self, event: SessionItemsCheckedIn) -> None:
        self.count += event.count


class Counting(MemoryEventStore):
    """Count the reads, and keep the leases that came with appends."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.leases: list[Lease | None] = []
        self.is_away = False

    def read_stream(self, *args, **options):
        self.reads += 1
        return super().read_stream(*args, **options)

    def append(self, *args, lease=None, **options):
        self.leases.append(lease)
        if self.is_away:
            self.is_away = False
            raise StoreUnavailable("no answer")
        return super().append(*args, lease=lease, **options)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def repository(store) -> Repository:
    return Repository(store, Serializer("shop"))


@pytest.fixture
def session(repository) -> Session:
    return Session(repository)


@pytest.fixture
def saved(repository) -> Item:
    """Item 42 with two events: as whoever created it holds it."""
    item = Item.create("42")
    item.check_in(5)
    repository.save(item)
    return item


def versions(store: MemoryEventStore, id: str) -> list[int]:
    return [event.version for event in store.read_stream(StreamName("shop", "Item", id))]


# Getting and adding


def test_adding_another_instance_under_a_tracked_id_is_refused(session, saved):
    """9: adding another instance under a tracked id: concurrency error."""
    # given
    session.get(Item, "42")
    # when
    with pytest.raises(ConcurrencyError, match="Item-42 has two instances here") as error:
        session.add(saved)
    # then
    assert (error.value.stream, error.value.expected, error.value.found) == ("Item-42", 2, 2)


def test_adding_another_instance_under_an_added_id_is_refused(session):
    """9: adding another instance under a tracked id: concurrency error."""
    session.add(Item.create("42"))
    with pytest.raises(ConcurrencyError):
        session.add(Item.create("42"))


def test_adding_the_same_instance_twice_is_fine(session, store):
    """10: the same instance twice is fine."""
    # given
    item = Item.create("42")
    # when
    session.add(item)
    session.add(item)
    session.commit()
    # then
    assert versions(store, "42") == [1]


def test_get_replays_history(session, saved):
    """11: get replays history."""
    item = session.get(Item, "42")
    assert (item.name, item.count) == ("bolt", 5)
    assert item is not saved


def test_get_gives_the_type_it_was_asked_for(session: Session, saved: Item) -> None:
    assert_type(session.get(Item, "42"), Item)
    assert_type(session.find(Item, "42"), Item | None)


def test_get_of_a_missing_aggregate_is_an_error(session):
    """12: a missing aggregate: `get` raises `AggregateNotFound`."""
    with pytest.raises(AggregateNotFound, match="Item-42"):
        session.get(Item, "42")


@pytest.mark.parametrize("id", [7, uuid.UUID(int=7), b"7", None])
def test_an_id_that_is_no_text_is_refused_where_it_is_asked_for(session: Session, id: Any) -> None:
    for ask in (session.get, session.find):
        with pytest.raises(TypeError) as refused:
            ask(Item, id)
        assert f"was requested by the id {id!r}; expected a str: str(id)" in str(refused.value)


def test_find_of_a_missing_aggregate_gives_none_and_asks_again_the_next_time(session, repository):
    """12: a missing aggregate: `find` gives None; and a miss is not tracked."""
    assert session.find(Item, "42") is None
    repository.save(Item.create("42"))
    assert session.find(Item, "42") is not None


def test_find_tracks_what_it_finds(session, store, saved):
    # when
    item = session.find(Item, "42")
    item.check_in()
    session.commit()
    # then
    assert versions(store, "42") == [1, 2, 3]


def test_get_after_add_gives_that_instance(session):
    """13: get after add gives that instance; so does find."""
    item = Item.create("42")
    session.add(item)
    assert session.get(Item, "42") is item
    assert session.find(Item, "42") is item


def test_a_second_get_gives_that_instance_and_reads_nothing(session, store, saved):
    """14: so does a second get."""
    item = session.get(Item, "42")
    assert session.get(Item, "42") is item
    assert session.find(Item, "42") is item
    assert store.reads == 1


def test_one_id_of_two_types_is_two_aggregates(session, repository, saved):
    # given
    class SessionOrder(Aggregate):
        pass

    order = SessionOrder("42")
    order.record(SessionItemCreated(name="order"))
    # when
    session.add(order)
    # then
    assert session.get(SessionOrder, "42") is order
    assert type(session.get(Item, "42")) is Item


def test_two_classes_under_one_type_name_are_not_mixed_up(session, saved):
    # given
    class Other(Aggregate, alias_of=Item):
        pass

    session.get(Item, "42")
    # when, then
    with pytest.raises(SessionError, match=r"tracked as Item, and was requested as .*Other"):
        session.get(Other, "42")


def test_an_aggregate_that_counts_as_false_is_tracked_all_the_same(session, repository):
    # given
    class SessionBasket(Aggregate):
        def __len__(self) -> int:
            return 0

    basket = SessionBasket("1")
    basket.record(SessionItemCreated(name="x"))
    # when
    session.add(basket)
    # then
    assert session.find(SessionBasket, "1") is basket
    assert session.get(SessionBasket, "1") is basket


def test_a_tracked_version_other_than_expected_is_refused(session, saved):
    """15: tracked version other than expected: concurrency error."""
    session.get(Item, "42")
    with pytest.raises(ConcurrencyError) as error:
        session.get(Item, "42", expected_version=1)
    assert (error.value.stream, error.value.expected, error.value.found) == ("Item-42", 1, 2)


def test_a_stored_version_other_than_expected_is_refused(session, saved):
    """16: stored version other than expected: concurrency error."""
    with pytest.raises(ConcurrencyError) as error:
        session.get(Item, "42", expected_version=3)
    assert (error.value.stream, error.value.expected, error.value.found) == ("Item-42", 3, 2)


def test_the_expected_version_counts_committed_events(session, saved):
    item = session.get(Item, "42", expected_version=2)
    item.check_in()
    assert session.get(Item, "42", expected_version=2) is item


def test_the_version_equals_the_number_of_events(session, saved):
    """17: the version equals the number of events."""
    assert session.get(Item, "42").version == 2


# Committing


def test_commit_stores_what_is_pending(session, store, saved):
    """18: commit stores what is pending."""
    # given
    session.get(Item, "42").check_in(7)
    # when
    committed = session.commit()
    # then
    assert committed == Committed(position=3, versions=(3,))
    assert store.read_all()[-1].event.data == b'{"count":7}'


def test_after_the_commit_nothing_is_pending(session, saved):
    """19: nothing is pending afterwards."""
    item = session.get(Item, "42")
    item.check_in()
    session.commit()
    assert (item.pending_events, item.version) == ((), 3)


def test_a_new_aggregate_is_stored(session, repository):
    """20: a new aggregate is stored."""
    session.add(Item.create("43", "nut"))
    session.commit()
    assert repository.get(Item, "43").name == "nut"


def test_tracking_ends_with_the_commit(session, saved):
    """21: tracking ends with the commit."""
    # given
    item = session.get(Item, "42")
    item.check_in()
    session.commit()
    # when
    again = session.get(Item, "42")
    # then
    assert again is not item
    assert again.count == 6


def test_what_is_recorded_after_the_commit_is_refused_and_nothing_is_lost(session, store, saved):
    """21: tracking ends with the commit."""
    item = session.get(Item, "42")
    item.check_in()
    session.commit()
    with pytest.raises(SessionError, match="after its session had committed or ended") as refused:
        item.check_in()
    assert "session.get(Item, '42')" in str(refused.value)
    assert (item.count, item.pending_events) == (6, ())
    assert session.commit() is None
    assert versions(store, "42") == [1, 2, 3]


@pytest.mark.parametrize("is_failing", [False, True])
def test_what_is_recorded_after_the_session_s_end_is_refused(repository, saved, is_failing):
    # given
    with suppress(ZeroDivisionError), Session(repository) as session:
        item = session.get(Item, "42")
        item.check_in()
        if is_failing:
            1 / 0  # noqa: B018
    # then
    with pytest.raises(SessionError, match="so nobody would write it"):
        item.check_in()


def test_an_aggregate_that_is_added_again_after_the_commit_goes_on(session, store, saved):
    item = session.get(Item, "42")
    session.commit()
    session.add(item)
    item.check_in()
    session.commit()
    assert versions(store, "42") == [1, 2, 3]


def test_after_a_commit_that_failed_the_aggregate_may_record_more(session, store, saved):
    item = session.get(Item, "42")
    item.check_in()
    store.is_away = True
    with pytest.raises(StoreUnavailable):
        session.commit()
    item.check_in()
    session.commit()
    assert versions(store, "42") == [1, 2, 3, 4]


def test_commit_after_somebody_else_s_save_is_refused(session, store, saved, repository):
    """22: commit after somebody else's save: concurrency error, nothing written."""
    # given
    item = session.get(Item, "42")
    item.check_in()
    saved.check_in()
    repository.save(saved)
    # when
    with pytest.raises(ConcurrencyError) as error:
        session.commit()
    # then
    assert (error.value.stream, error.value.expected, error.value.found) == ("Item-42", 2, 3)
    assert versions(store, "42") == [1, 2, 3]
    assert (item.version, len(item.pending_events)) == (2, 1)


@pytest.mark.parametrize("stale", [0, 1, 2])
def test_if_any_of_several_aggregates_is_stale_none_is_written(session, store, repository, stale):
    """22: nothing written, for any of several aggregates."""
    # given
    for item_id in "012":
        repository.save(Item.create(item_id))
    items = [session.get(Item, item_id) for item_id in "012"]
    other = repository.get(Item, str(stale))
    other.check_in()
    repository.save(other)
    for item in items:
        item.check_in()
    # when
    with pytest.raises(ConcurrencyError) as error:
        session.commit()
    # then
    assert error.value.stream == f"Item-{stale}"
    assert len(store.read_all()) == 4
    assert [(item.version, len(item.pending_events)) for item in items] == [(1, 1)] * 3


def test_several_aggregates_are_one_append(session, store):
    session.add(Item.create("1"))
    session.add(Item.create("2"))
    assert session.commit() == Committed(position=2, versions=(1, 1))
    assert len(store.leases) == 1


def test_a_commit_without_changes_writes_nothing(session, store, saved):
    session.get(Item, "42")
    assert session.commit() is None
    assert len(store.leases) == 1


def test_events_carry_the_session_s_metadata(repository, store):
    metadata = Metadata(correlation_id="c", causation_id="k")
    with Session(repository, metadata=metadata) as session:
        session.add(Item.create("42"))
    assert [event.event.metadata for event in store.read_all()] == [metadata]


def test_the_command_and_the_lease_go_with_the_commit(session, store, repository):
    # given
    record = CommandRecord("c-1", '"done"', ttl_s=60)
    lease = Lease("worker-1", 7, 1)
    session.add(Item.create("42"))
    # when
    session.commit(command=record, lease=lease)
    # then
    assert store.find_command("c-1") == CommandOutcome(1, '"done"')
    assert store.leases == [lease]
    # when
    session.add(Item.create("43"))
    with pytest.raises(DuplicateCommand):
        session.commit(command=record, lease=lease)


def test_a_commit_that_got_no_answer_may_be_repeated(repository, store, monkeypatch):
    # given: the events are written, the answer is lost
    session = Session(repository)
    session.add(Item.create("42"))
    append = store.append

    def lose_the_answer(*args, **options):
        append(*args, **options)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "append", lose_the_answer)
    with pytest.raises(StoreUnavailable):
        session.commit()
    monkeypatch.undo()
    # when
    committed = session.commit()
    # then
    assert committed == Committed(position=1, versions=(1,))
    assert versions(store, "42") == [1]


# The block


def test_a_block_left_without_an_exception_is_committed(repository, store):
    with Session(repository) as session:
        session.add(Item.create("42"))
    assert versions(store, "42") == [1]


def test_a_block_left_with_an_exception_writes_nothing(repository, store):
    def fail_in_a_block() -> None:
        with Session(repository) as session:
            session.add(Item.create("42"))
            raise KeyError("42")

    with pytest.raises(KeyError):
        fail_in_a_block()
    assert store.read_all() == []


def test_a_block_may_commit_on_its_way(repository, store):
    with Session(repository) as session:
        session.add(Item.create("42"))
        session.commit()
        session.get(Item, "42").check_in()
    assert versions(store, "42") == [1, 2]


def test_a_refused_commit_at_the_end_of_a_block_is_raised(repository, saved):
    with pytest.raises(ConcurrencyError), Session(repository) as session:
        session.add(Item.create("42"))
    with pytest.raises(SessionError):
        session.commit()


USES = [
    pytest.param(lambda session: session.get(Item, "42"), id="get"),
    pytest.param(lambda session: session.find(Item, "42"), id="find"),
    pytest.param(lambda session: session.add(Item("42")), id="add"),
    pytest.param(lambda session: session.commit(), id="commit"),
    pytest.param(lambda session: session.__enter__(), id="with"),
]


@pytest.mark.parametrize("use", USES)
def test_a_session_is_not_used_after_its_block(repository, saved, use):
    with Session(repository) as session:
        pass
    with pytest.raises(SessionError, match="has ended"):
        use(session)


def test_a_closed_session_writes_nothing_and_may_be_closed_again(session, store):
    # given
    session.add(Item.create("42"))
    # when
    session.close()
    session.close()
    # then
    assert store.read_all() == []
    with pytest.raises(SessionError, match="has ended"):
        session.commit()


# A handler's session


def test_a_handler_s_session_is_committed_by_whoever_runs_the_handler(repository, store):
    # given
    session = HandlerSession(repository)
    session.add(Item.create("42"))
    record = CommandRecord("c-1", '"done"', ttl_s=60)
    # when
    committed = session.commit_on_return(command=record, lease=Lease("worker-1", 7, 1))
    # then
    assert committed == Committed(position=1, versions=(1,))
    assert store.find_command("c-1") == CommandOutcome(1, '"done"')
    assert store.leases == [Lease("worker-1", 7, 1)]


@pytest.mark.parametrize(
    "commit", [lambda session: session.commit(), lambda session: session.__enter__()]
)
def test_a_handler_may_not_commit_its_session_and_loses_nothing_by_trying(
    repository, store, commit
):
    # given
    session = HandlerSession(repository)
    session.add(Item.create("42"))
    # when
    with pytest.raises(
        SessionError, match="The session is committed once, when the handler returns"
    ):
        commit(session)
    # then
    assert store.read_all() == []
    assert session.commit_on_return() is not None


def test_a_handler_s_session_without_changes_commits_nothing(repository, store):
    assert HandlerSession(repository).commit_on_return() is None
    assert store.read_all() == []


@pytest.mark.parametrize("use", USES[:3])
def test_a_handler_s_session_is_not_used_after_the_return(repository, saved, use):
    session = HandlerSession(repository)
    session.commit_on_return()
    with pytest.raises(SessionError, match="has ended"):
        use(session)


def test_a_handler_s_session_stays_open_when_its_commit_fails(repository, store, saved):
    # given
    session = HandlerSession(repository)
    item = session.get(Item, "42")
    item.check_in()
    saved.check_in()
    repository.save(saved)
    # when
    with pytest.raises(ConcurrencyError):
        session.commit_on_return()
    # then
    assert session.get(Item, "42") is item
