"""Events in a database of Django's are committed in its transactions, or rolled back with them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3

from cqrs_celery import CQRS
from cqrs_celery.backends.django.event_store import DjangoEventStore
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.schema import check_schema, create_schema
from cqrs_celery.dispatch.bus import CommandResult
from cqrs_celery.errors import ConcurrencyError, InvalidSetting, StoreError, StoreUnavailable
from cqrs_celery.store.relay_ports import LeaseCheck
from cqrs_celery.store.stream import StreamName
from cqrs_celery.testing.event_store_contract import BOLT, NUT, EventStoreContract, append, event
from tests import playhouse
from tests.conftest import require_postgres
from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY
from tests.playhouse import NoteVisitor, Seat, TakeSeat, Visitor, visitors
from tests.postgres import PostgresNode
from tests.waiting import wait_until

Opened = Callable[..., DjangoEventStore]


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def opened(url: str) -> Iterator[Opened]:
    stores = []

    def open_it(lease_check: LeaseCheck | None = None) -> DjangoEventStore:
        store = open_event_store("django://default", lease_check=lease_check)
        assert isinstance(store, DjangoEventStore)
        stores.append(store)
        create_schema(store)
        return store

    with playhouse.use_database(url):
        yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opened) -> DjangoEventStore:
    return opened()


@pytest.fixture
def cqrs(store: DjangoEventStore) -> Iterator[CQRS]:
    cqrs = playhouse.make_app(cqrs_cache="memory")
    yield cqrs
    found: Any = cqrs.store
    found.close()
    playhouse.in_between.clear()
    cqrs.app.close()


def ids(cqrs: CQRS) -> list[str]:
    return [stored.stream.aggregate_id for stored in cqrs.store.read_all()]


@pytest.fixture(scope="class", params=["postgresql", "sqlite"])
def shared_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DjangoEventStore]:
    """Open a store for tests that roll back all that they write."""
    if request.param == "postgresql":
        require_postgres()
        url = request.getfixturevalue("postgres_node").create_database("django_shared")
    else:
        url = f"sqlite:///{tmp_path_factory.mktemp('django') / 'events.db'}"
    with playhouse.use_database(url):
        store = open_event_store("django://default")
        assert isinstance(store, DjangoEventStore)
        create_schema(store)
        yield store
    store.close()


class TestInATransactionOfDjango(EventStoreContract):
    has_gapless_positions = False
    keeps_bytes = False

    @pytest.fixture
    def store(self, shared_store: DjangoEventStore) -> Iterator[DjangoEventStore]:
        with transaction.atomic():
            yield shared_store
            transaction.set_rollback(True)


# Who races does so on connections of its own, which would wait for this one's end.
for _race in (
    "test_of_writers_racing_for_one_stream_each_success_is_one_version",
    "test_of_writers_racing_to_make_a_stream_one_does",
    "test_writers_of_streams_of_their_own_never_meet_and_leave_no_gaps",
    "test_writers_racing_for_two_streams_in_opposite_orders_never_tear_a_commit",
    "test_of_one_command_carried_out_by_many_at_once_one_commits",
    "test_one_append_made_by_many_at_once_is_written_once",
    "test_of_two_that_each_check_what_the_other_writes_one_commits",
):
    assert hasattr(EventStoreContract, _race)
    setattr(TestInATransactionOfDjango, _race, None)


# ---------------------------------------------------------------- sessions in a transaction


def test_rows_and_events_are_committed_together(cqrs: CQRS) -> None:
    # when a row and an event are written in one transaction
    with transaction.atomic():
        Visitor.objects.create(name="ann")
        with cqrs.session() as session:
            session.add(seat := Seat("1"))
            seat.take("ann")
        # then the transaction sees both, and no other one sees any
        assert cqrs.store.read_stream(session_stream("1"))
        assert seen_elsewhere(lambda: (visitors(), ids(cqrs))) == ([], [])
    assert seen_elsewhere(lambda: (visitors(), ids(cqrs))) == (["ann"], ["1"])


def test_rows_and_events_are_rolled_back_together(cqrs: CQRS) -> None:
    with transaction.atomic():
        with cqrs.session() as session:
            session.add(seat := Seat("1"))
            seat.take("ann")
        Visitor.objects.create(name="ann")
        transaction.set_rollback(True)
    assert visitors() == ids(cqrs) == []


def test_a_commit_without_a_transaction_is_one_of_its_own(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.add(seat := Seat("1"))
        seat.take("ann")
    assert seen_elsewhere(lambda: ids(cqrs)) == ["1"]


def test_a_refused_append_leaves_the_transaction_open(cqrs: CQRS) -> None:
    # given a seat
    cqrs.execute(TakeSeat(id="1", by="ann"))
    with transaction.atomic():
        Visitor.objects.create(name="bob")
        # when a session is refused in a transaction
        session = cqrs.session()
        session.add(seat := Seat("1"))
        seat.take("bob")
        with pytest.raises(ConcurrencyError):
            session.commit()
        # then that can go on, and commit
        with cqrs.session() as session:
            session.get(Seat, "1").take("bob")
    assert visitors() == ["ann", "bob"]
    assert ids(cqrs) == ["1", "1"]


def test_a_session_s_rows_are_in_the_transaction_that_its_connection_begins(cqrs: CQRS) -> None:
    def fail(session: Any) -> None:
        with session.connection.cursor() as cursor:
            cursor.execute("INSERT INTO playhouse_visitor (name, seat) VALUES ('ann', '')")
        Visitor.objects.create(name="bob")
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"), cqrs.session() as session:
        fail(session)
    assert visitors() == []
    with cqrs.session() as session:
        assert session.connection is connections["default"]
        Visitor.objects.create(name="bob")
    assert seen_elsewhere(visitors) == ["bob"]


def test_what_was_read_in_a_transaction_that_is_rolled_back_is_not_cached(cqrs: CQRS) -> None:
    # given a seat that was changed, and read, in a transaction that came to nothing
    cqrs.execute(TakeSeat(id="1", by="ann"))
    with transaction.atomic():
        with cqrs.session() as session:
            session.get(Seat, "1").take("nobody")
        with cqrs.session() as session:
            assert session.get(Seat, "1").by == "nobody"
        transaction.set_rollback(True)
    # when another one takes it
    cqrs.execute(TakeSeat(id="1", by="bob"))
    # then it is as its events say
    with cqrs.session() as session:
        seat = session.get(Seat, "1")
        assert (seat.by, seat.count, seat.version) == ("bob", 2, 2)


def test_the_relay_is_woken_by_django_s_commit_and_not_before(cqrs: CQRS) -> None:
    told: list[int] = []
    store: Any = cqrs.store
    store.on_commit = lambda: told.append(1)
    with transaction.atomic():
        cqrs.execute(TakeSeat(id="1", by="ann"))
        assert told == []
    assert told == [1]
    # and not by a rollback, but by a handler's own transaction, and by a commit without one
    with transaction.atomic():
        cqrs.execute(TakeSeat(id="1", by="ann"))
        transaction.set_rollback(True)
    assert told == [1]
    cqrs.execute(TakeSeat(id="1", by="ann"))
    with cqrs.session() as session:
        session.get(Seat, "1").take("bob")
    assert told == [1, 1, 1]


# ---------------------------------------------------------------- handlers


def test_a_handler_s_rows_and_events_are_committed_together(cqrs: CQRS) -> None:
    result = cqrs.execute(TakeSeat(id="1", by="ann"))
    assert result == CommandResult(value="ann", position=result.position)
    assert seen_elsewhere(lambda: (visitors(), ids(cqrs))) == (["ann"], ["1"])


def test_a_handler_that_raises_writes_neither(cqrs: CQRS) -> None:
    with pytest.raises(ValueError, match="no rivals"):
        cqrs.execute(TakeSeat(id="1", by="rival"))
    # nor does it where a transaction is around it, which can go on
    with transaction.atomic():
        with pytest.raises(ValueError, match="no rivals"):
            cqrs.execute(TakeSeat(id="1", by="rival"))
        Visitor.objects.create(name="ann")
    assert visitors() == ["ann"]
    assert ids(cqrs) == []


def test_a_handler_whose_row_is_refused_fails_with_that(cqrs: CQRS) -> None:
    def refuse(session: Any) -> None:
        Visitor.objects.create(id=Visitor.objects.get().id, name="twice")

    playhouse.in_between.append(refuse)
    with pytest.raises(IntegrityError):
        cqrs.execute(TakeSeat(id="1", by="ann"), idempotency_key="k")
    assert visitors() == ids(cqrs) == []


def test_a_handler_that_meets_another_writer_writes_its_rows_once(cqrs: CQRS) -> None:
    # given a seat, and somebody who is quicker, once
    cqrs.execute(TakeSeat(id="1", by="ann"))

    def be_quicker(session: Any) -> None:
        playhouse.in_between.clear()
        seen_elsewhere(lambda: cqrs.execute(TakeSeat(id="1", by="cid")))

    if connection.vendor == "sqlite":
        pytest.skip("nobody can be quicker than the one who is SQLite's only writer")
    playhouse.in_between.append(be_quicker)
    # when a handler meets that, then it is repeated, and its row is there once
    cqrs.execute(TakeSeat(id="1", by="bob"))
    assert visitors() == ["ann", "bob", "cid"]
    assert ids(cqrs) == ["1", "1", "1"]


def test_a_command_that_comes_again_writes_its_rows_once(cqrs: CQRS) -> None:
    for number in range(2):
        found = cqrs.execute(TakeSeat(id="1", by="ann"), idempotency_key="seat")
        assert found.is_repeated == (number == 1)
        found = cqrs.execute(NoteVisitor(name="bob"), idempotency_key="note")
        assert found.is_repeated == (number == 1)
        assert found.position is None
    assert visitors() == ["ann", "bob"]
    assert ids(cqrs) == ["1"]


def test_a_transaction_that_is_marked_to_be_rolled_back_is_not_taken_for_committed(
    cqrs: CQRS,
) -> None:
    playhouse.in_between.append(lambda session: transaction.set_rollback(True))
    with pytest.raises(StoreError, match="to be rolled back"):
        cqrs.execute(TakeSeat(id="1", by="ann"))
    assert visitors() == ids(cqrs) == []


def test_all_of_a_test_that_is_rolled_back_in_the_end_works(cqrs: CQRS) -> None:
    # given a transaction around everything, as Django's TestCase has
    with transaction.atomic():
        for by in ("ann", "bob"):
            cqrs.execute(TakeSeat(id="1", by=by), idempotency_key=by)
            assert cqrs.execute(TakeSeat(id="1", by=by), idempotency_key=by).is_repeated
        with pytest.raises(ValueError, match="no rivals"):
            cqrs.execute(TakeSeat(id="1", by="rival"))
        assert visitors() == ["ann", "bob"]
        assert ids(cqrs) == ["1", "1"]
        transaction.set_rollback(True)
    assert visitors() == ids(cqrs) == []


def end_connection() -> None:
    """Let the server end the thread's connection of Django's, which does not know it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [(pid,)] = cursor.fetchall()

    def end() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])

    seen_elsewhere(end)


def demote_connection() -> None:
    """Make the thread's connection of Django's be to a server that takes no writes any more."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")


@pytest.mark.parametrize("lose", [end_connection, demote_connection], ids=["ended", "read-only"])
def test_a_connection_that_was_lost_between_two_handlers_is_replaced(
    cqrs: CQRS, lose: Callable[[], None]
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server")
    cqrs.execute(TakeSeat(id="1", by="ann"))
    lose()
    cqrs.execute(TakeSeat(id="1", by="bob"))
    lose()
    with cqrs.session() as session:
        assert session.connection is connections["default"]
        Visitor.objects.create(name="cid")
    assert visitors() == ["ann", "bob", "cid"]
    assert ids(cqrs) == ["1", "1"]


@pytest.mark.parametrize("lose", [end_connection, demote_connection], ids=["ended", "read-only"])
def test_a_handler_whose_connection_is_lost_finds_the_store_unavailable(
    cqrs: CQRS, lose: Callable[[], None]
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server")

    def lose_it(session: Any) -> None:
        if lose is end_connection:
            lose()
        else:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION READ ONLY")
        Visitor.objects.create(name="nobody")

    # when the connection is lost in a handler, then its next statement says so: it is tried again
    playhouse.in_between.append(lose_it)
    with pytest.raises(StoreUnavailable, match="run a statement in the transaction: django://"):
        cqrs.execute(TakeSeat(id="1", by="ann"))
    # and the next handler has another one
    playhouse.in_between.clear()
    cqrs.execute(TakeSeat(id="1", by="bob"))
    assert visitors() == ["bob"]
    assert ids(cqrs) == ["1"]


def test_a_handler_of_which_django_s_database_ends_a_statement_for_another_s_sake_is_repeated(
    cqrs: CQRS,
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    runs = []

    def be_a_victim(session: Any) -> None:
        runs.append(session)
        if len(runs) == 1:
            with connection.cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE deadlock_detected; END $$")

    # when a statement of the handler's own ends as a deadlock's victim does, at first
    playhouse.in_between.append(be_a_victim)
    cqrs.execute(TakeSeat(id="1", by="ann"))
    # then it was repeated as a whole
    assert len(runs) == 2
    assert visitors() == ["ann"]
    assert ids(cqrs) == ["1"]


# ---------------------------------------------------------------- the store


def test_a_reader_waits_for_an_append_in_a_transaction_of_django_s(store: DjangoEventStore) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    for is_committed in (True, False):
        last = max((one.global_position for one in store.read_all()), default=0)
        # given an append in a transaction that is not over, and a later one that is
        with appending(store, is_committed=is_committed):
            append(store, NUT, -1, event())
            # then a reader sees neither, since the first one may still come
            assert list(store.read_all(after_position=last)) == []
        # when it is over, then it sees what was committed
        found = [stored.stream for stored in store.read_all(after_position=last)]
        assert found == ([BOLT, NUT] if is_committed else [NUT])


@contextmanager
def appending(store: DjangoEventStore, *, is_committed: bool) -> Iterator[None]:
    """Append in a transaction that is open as long as the block lasts."""
    may_end, has_appended = threading.Event(), threading.Event()

    def append_slowly() -> None:
        with transaction.atomic():
            append(store, BOLT, -1, event())
            has_appended.set()
            may_end.wait(30)
            transaction.set_rollback(not is_committed)

    thread = threading.Thread(target=elsewhere(append_slowly))
    thread.start()
    assert has_appended.wait(30)
    try:
        yield
    finally:
        may_end.set()
        thread.join(30)


def test_the_tables_are_made_and_checked_where_django_s_are(store: DjangoEventStore) -> None:
    assert check_schema(store) == create_schema(store)
    assert "cqrs_events" in connection.introspection.table_names()
    assert repr(store) == f"<{type(store).__name__} django://default>"


def test_a_database_that_django_does_not_know_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="'other', which can't be found"):
        open_event_store("django://other")
    with pytest.raises(InvalidSetting, match="no read URL"):
        open_event_store("django://default", read_url="postgresql://h/d")


def test_workers_handle_events_whose_commands_write_models(
    cqrs: CQRS, url: str, redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker
    env = {"PLAYHOUSE_BROKER": redis_url, "PLAYHOUSE_DATABASE": url}
    source = "from tests.playhouse import app"
    worker = worker_factory(source, env=env, arguments=("--without-mingle", "--without-gossip"))
    client = playhouse.make_app(redis_url)
    # when commands are executed by it and here, in a transaction, and it is killed among them
    for number in range(10):
        client.send_command(TakeSeat(id=str(number % 3), by=f"guest {number}"))
        with transaction.atomic():
            client.execute(TakeSeat(id=f"here {number % 3}", by=f"friend {number}"))
    worker.kill()
    worker.start()
    # then each has its row and its event once, and each event its row
    wanted = [f"{kind} {n}{more}" for kind in ("friend", "guest") for n in range(10)
              for more in ("", ", ushered")]  # fmt: skip
    wait_until(lambda: len(visitors()) >= len(wanted), 60, lambda: f"{visitors()}")
    assert visitors() == sorted(wanted)
    assert len(ids(cqrs)) == 20
    found: Any = client.store
    found.close()
    client.app.close()


#: This file's tests where psycopg is not installed, as Django prefers it to psycopg2.
WITHOUT_PSYCOPG = """
import sys
sys.modules["psycopg"] = None
import pytest
from django.db.backends.postgresql.psycopg_any import is_psycopg3
assert not is_psycopg3
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_all_this_holds_on_psycopg2(postgres_node: PostgresNode) -> None:
    """Ask again with psycopg2, which Django takes where psycopg is not installed."""
    if not is_psycopg3:
        pytest.skip("it is what the others run on")
    chosen = ["-k", "postgresql and not worker", "-x", "-q", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_PSYCOPG, __file__, *chosen],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]


def session_stream(id: str) -> StreamName:
    return StreamName("playhouse", "PlayhouseSeat", id)


def elsewhere(work: Callable[[], Any]) -> Callable[[], Any]:
    """Return what does some work on a connection of its thread's own, and closes it."""

    def done() -> Any:
        try:
            return work()
        finally:
            connections.close_all()

    return done


def seen_elsewhere(work: Callable[[], Any]) -> Any:
    """Do some work on another connection than this thread's; return what it returns."""
    found: list[Any] = []
    thread = threading.Thread(target=elsewhere(lambda: found.append(work())))
    thread.start()
    thread.join(30)
    return found[0]
