"""A replica that lags, is away, or is none: what is asked of it, and what of the primary."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import Retry, SoftTimeLimitExceeded

from cqrs_celery import Aggregate, Command, Event, Session, applies, command_handler
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli.events import Check
from cqrs_celery.dispatch.bus import Attempt, Bus, CommandResult
from cqrs_celery.errors import (
    AggregateNotFound,
    ConcurrencyError,
    InvalidSetting,
    StoreUnavailable,
)
from cqrs_celery.messages.metadata import NO_METADATA
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.repository import Repository
from cqrs_celery.store.events import START
from cqrs_celery.store.reading import Reads
from cqrs_celery.store.stream import NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import append, event

BOLT = StreamName("inventory", "Item", "bolt")
NUT = StreamName("inventory", "Item", "nut")


def opened(url: str, read_url: str | None = None) -> SqlEventStore:
    store = open_event_store(url, read_url=read_url)
    assert isinstance(store, SqlEventStore)
    return store


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[SqlEventStore]:
    """A store that has one stream, and a copy of its file in which there is none yet."""
    store = opened(f"sqlite:///{tmp_path}/primary.db")
    create_schema(store)
    store.close()
    shutil.copy(tmp_path / "primary.db", tmp_path / "replica.db")
    append(store, BOLT, NO_STREAM, event())
    yield store
    store.close()


@pytest.fixture
def replicated(primary: SqlEventStore, tmp_path: Path) -> Iterator[SqlEventStore]:
    """The same store, as another process sees it that reads from the copy."""
    store = opened(f"sqlite:///{tmp_path}/primary.db", f"sqlite:///{tmp_path}/replica.db")
    yield store
    store.close()


def test_the_outbox_reads_from_the_primary(replicated: SqlEventStore) -> None:
    # given a replica that lags
    assert list(replicated.read_all()) == []
    # then a relay gets what was committed nevertheless
    assert [one.stream for one in replicated.outbox.read(0, 10)] == [BOLT]
    assert [one.stream for one in replicated.outbox.read_behind(START, 10)] == [BOLT]


def test_a_check_of_all_events_reads_from_the_primary(replicated: SqlEventStore) -> None:
    check = Check(Serializer("inventory"))
    for _ in check.read(replicated, after_position=0):
        pass
    assert check.events == 1


def test_it_is_known_whether_a_replica_was_asked(replicated: SqlEventStore) -> None:
    # given a block in which only the primary may answer
    with Reads(from_primary=True) as reads:
        assert len(replicated.read_stream(BOLT)) == 1
        # and another one in that
        with Reads():
            history = replicated.read_history(BOLT)
            assert history is not None
            assert len(history.events) == 1
    assert not reads.used_replica
    # when the replica may answer, in a block inside, then both know
    with Reads() as outer:
        with Reads() as inner:
            assert len(replicated.read_stream(BOLT)) == 0
        with Reads() as other:
            append(replicated, NUT, NO_STREAM, event())
            # what was written here is read from the primary
            assert len(replicated.read_stream(NUT)) == 1
    assert (outer.used_replica, inner.used_replica, other.used_replica) == (True, True, False)


def test_an_error_names_the_server_that_was_asked(primary: SqlEventStore, tmp_path: Path) -> None:
    # given a replica that is away
    store = opened(f"sqlite:///{tmp_path}/primary.db", f"sqlite:///{tmp_path}/nowhere/replica.db")
    # when it is asked, then the error names it
    with pytest.raises(StoreUnavailable, match=r"the replica sqlite:///.*/nowhere/replica\.db"):
        store.read_stream(BOLT)
    # and the connections to the primary are kept
    with store.engine.connect() as connection:
        kept = connection.connection.dbapi_connection
    with pytest.raises(StoreUnavailable):
        store.read_stream(BOLT)
    with store.engine.connect() as connection:
        assert connection.connection.dbapi_connection is kept
    # and what the primary answers goes on
    assert store.find_command("c-1") is None
    assert len(store.outbox.read(0, 10)) == 1
    store.close()


class Filled(Event, name="replica.filled"):
    litres: int


class Drained(Event, name="replica.drained"):
    litres: int


class Tank(Aggregate, name="ReplicaTank"):
    litres: int = 0

    @applies(Filled)
    def _filled(self, event: Filled) -> None:
        self.litres += event.litres

    @applies(Drained)
    def _drained(self, event: Drained) -> None:
        self.litres -= event.litres


class Drain(Command, name="replica.drain", aggregate=Tank, key="id"):
    id: str
    litres: int = 1


class DrainSoon(Drain, name="replica.drain_soon", aggregate=Tank, key="id"):
    pass


class DrainOnce(Drain, name="replica.drain_once", aggregate=Tank, key="id"):
    pass


#: The levels that the handlers have seen, and what they raise besides.
seen: list[int] = []
raising: list[Exception] = []


def drain_one(command: Drain, session: Session) -> int:
    tank = session.get(Tank, command.id)
    seen.append(tank.litres)
    if raising:
        raise raising[0]
    if tank.litres < command.litres:
        raise ValueError(f"{tank.litres} litres are left")
    tank.record(Drained(litres=command.litres))
    return tank.litres


@command_handler(Drain)
def drain(command: Drain, session: Session) -> int:
    return drain_one(command, session)


@command_handler(DrainSoon)
async def drain_soon(command: DrainSoon, session: Session) -> int:
    await asyncio.sleep(0)
    return drain_one(command, session)


@command_handler(DrainOnce, retry_on_conflict=0, lock=None)
def drain_once(command: DrainOnce, session: Session) -> int:
    return drain_one(command, session)


@pytest.fixture(autouse=True)
def nothing_raised() -> Iterator[None]:
    seen.clear()
    raising.clear()
    yield
    raising.clear()


@pytest.fixture
def lagging(primary: SqlEventStore, tmp_path: Path) -> Iterator[Callable[[], SqlEventStore]]:
    """Open the store with a replica that has 1 litre of the 5 in the tank "old", and not "new"."""
    fill(primary, "old", 1)
    primary.close()
    shutil.copy(tmp_path / "primary.db", tmp_path / "replica.db")
    fill(primary, "old", 4)
    fill(primary, "new", 5)
    stores = []

    def open_it() -> SqlEventStore:
        url = f"sqlite:///{tmp_path}"
        stores.append(opened(f"{url}/primary.db", f"{url}/replica.db"))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def fill(store: SqlEventStore, id: str, litres: int) -> None:
    with Session(Repository(store, Serializer("replica"))) as session:
        tank = session.find(Tank, id) or Tank(id)
        tank.record(Filled(litres=litres))
        session.add(tank)


def bus_of(store: SqlEventStore) -> Bus:
    serializer = Serializer("replica")
    return Bus(Repository(store, serializer), serializer)


def run(store: SqlEventStore, command: Any) -> CommandResult:
    bus = bus_of(store)
    return bus.run(bus.find(command), Attempt(command, NO_METADATA))


def run_async(store: SqlEventStore, command: Any) -> CommandResult:
    bus = bus_of(store)
    return asyncio.run(bus.run_async(bus.find(command), Attempt(command, NO_METADATA)))


BOTH_WAYS = pytest.mark.parametrize(
    ("run_it", "cls"), [(run, Drain), (run_async, Drain), (run_async, DrainSoon)]
)


@BOTH_WAYS
def test_an_aggregate_that_the_replica_does_not_have_yet_is_found(
    lagging: Callable[[], SqlEventStore], run_it: Any, cls: type[Drain]
) -> None:
    assert run_it(lagging(), cls(id="new")).value == 4
    # and one that nobody has is not
    with pytest.raises(AggregateNotFound):
        run_it(lagging(), cls(id="none"))


def test_an_aggregate_that_the_replica_does_not_have_yet_is_found_outside_a_handler(
    lagging: Callable[[], SqlEventStore],
) -> None:
    with Session(Repository(lagging(), Serializer("replica"))) as session:
        assert session.get(Tank, "new").litres == 5


@BOTH_WAYS
def test_a_handler_that_refuses_what_the_replica_has_decides_again_by_the_primary(
    lagging: Callable[[], SqlEventStore],
    caplog: pytest.LogCaptureFixture,
    run_it: Any,
    cls: type[Drain],
) -> None:
    # when a command is refused by an old state, then it is carried out by the present one
    with caplog.at_level(logging.INFO):
        assert run_it(lagging(), cls(id="old", litres=3)).value == 2
    assert seen == [1, 5]
    assert "ValueError" in caplog.text
    # and one that the present state refuses, too, is refused once and for all
    seen.clear()
    with pytest.raises(ValueError, match="2 litres are left"):
        run_it(lagging(), cls(id="old", litres=6))
    assert seen == [1, 2]


@BOTH_WAYS
def test_a_conflict_is_repeated_by_the_state_of_the_primary(
    lagging: Callable[[], SqlEventStore], run_it: Any, cls: type[Drain]
) -> None:
    assert run_it(lagging(), cls(id="old")).value == 4
    assert seen == [1, 5]


def test_a_conflict_with_an_old_state_is_none_of_those_that_the_handler_allows(
    lagging: Callable[[], SqlEventStore],
) -> None:
    # given a handler that is not repeated after a conflict, when the replica lags
    assert run(lagging(), DrainOnce(id="old")).value == 4
    # then its conflicts with other writers are still errors
    raising.append(ConcurrencyError("another was quicker", stream="s", expected=1, found=2))
    seen.clear()
    with pytest.raises(ConcurrencyError):
        run(lagging(), DrainOnce(id="old"))
    assert len(seen) == 2


@BOTH_WAYS
def test_a_command_is_carried_out_while_the_replica_is_away(
    lagging: Callable[[], SqlEventStore], tmp_path: Path, run_it: Any, cls: type[Drain]
) -> None:
    (tmp_path / "replica.db").write_bytes(b"no database at all" * 100)
    assert run_it(lagging(), cls(id="new")).value == 4


@pytest.mark.parametrize("error", [Retry("later"), SoftTimeLimitExceeded()])
def test_a_handler_that_ends_by_the_means_of_celery_is_not_repeated(
    lagging: Callable[[], SqlEventStore], error: Exception
) -> None:
    raising.append(error)
    with pytest.raises(type(error)):
        run(lagging(), Drain(id="old"))
    assert seen == [1]


def test_a_handler_that_was_answered_by_the_primary_alone_is_not_repeated(
    primary: SqlEventStore,
) -> None:
    fill(primary, "new", 1)
    with pytest.raises(ValueError, match="1 litres are left"):
        run(primary, Drain(id="new", litres=2))
    assert seen == [1]


def test_a_replica_of_the_same_database_is_accepted(replicated: SqlEventStore) -> None:
    replicated.check_replica()


def test_another_database_is_no_replica(primary: SqlEventStore, tmp_path: Path) -> None:
    # given a database of another store, and one without tables
    other = opened(f"sqlite:///{tmp_path}/other.db")
    create_schema(other)
    other.close()
    for name in ("other", "empty"):
        store = opened(f"sqlite:///{tmp_path}/primary.db", f"sqlite:///{tmp_path}/{name}.db")
        # then the error names both databases, and the setting
        with pytest.raises(InvalidSetting, match=rf"{name}\.db, which is no replica of .*primary"):
            store.check_replica()
        store.close()
    # and without a replica there is nothing to check
    primary.check_replica()
