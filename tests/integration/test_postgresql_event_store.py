"""The PostgreSQL store keeps every store's contract; what is its own comes after it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from cqrs_celery import CQRS, Command, Session, command_handler
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.postgresql.event_store import PostgresqlEventStore
from cqrs_celery.backends.postgresql.gaps import NOT_SETTLED, Settled
from cqrs_celery.backends.postgresql.rights import SEQUENCES
from cqrs_celery.backends.sql import outbox as sql_outbox
from cqrs_celery.backends.sql.batch import Batch
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.failures import Failure
from cqrs_celery.backends.sql.rights import TABLES, check_rights
from cqrs_celery.backends.sql.schema import check_schema, create_schema
from cqrs_celery.backends.sql.tables import metadata
from cqrs_celery.cli import cqrs as cqrs_command
from cqrs_celery.errors import (
    ConcurrencyError,
    DuplicateCommand,
    InvalidText,
    LeaseLost,
    SchemaError,
    StoreError,
    StoreUnavailable,
    TransactionConflict,
)
from cqrs_celery.store.events import (
    START,
    CommandRecord,
    History,
    Lease,
    StoredEvent,
    StreamAppend,
    Subscriber,
)
from cqrs_celery.store.reading import Reads
from cqrs_celery.store.relay_ports import LeaseCheck
from cqrs_celery.store.stream import ANY_VERSION, NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import (
    BOLT,
    NUT,
    EventStoreContract,
    append,
    command,
    event,
    events,
)
from cqrs_celery.testing.snapshot_store_contract import snapshot
from tests.chaos.wear_servers import PgBouncerNode
from tests.nodes import REPOSITORY, free_port
from tests.postgres import DRIVERS, PostgresNode, with_driver
from tests.sql_writers import LEASE, Writers, slow_and_unsteady
from tests.waiting import wait_until

needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="no pgbouncer on PATH"
)

Opened = Callable[..., PostgresqlEventStore]

NO_HISTORY = History([], "")


@pytest.fixture(scope="module", params=DRIVERS)
def database(request: pytest.FixtureRequest, postgres_node: PostgresNode) -> Iterator[str]:
    """Make a database with the tables, and one of the application's own; URLs of both drivers."""
    url = with_driver(postgres_node.create_database("contract"), request.param)
    store = open_event_store(url)
    assert isinstance(store, PostgresqlEventStore)
    create_schema(store)
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE own_rows (id TEXT PRIMARY KEY)"))
    store.close()
    yield url
    postgres_node.drop_database("contract")


@pytest.fixture
def opened(database: str) -> Iterator[Opened]:
    """Open stores on an emptied database."""
    stores = []

    def open_it(lease_check: LeaseCheck | None = None, pool_size: int = 20) -> PostgresqlEventStore:
        engine = create_engine(database, pool_size=pool_size)
        store = PostgresqlEventStore(engine, lease_check=lease_check, is_own_engine=True)
        stores.append(store)
        with engine.begin() as connection:
            names = ", ".join([*metadata.tables, "own_rows"])
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
        return store

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opened) -> PostgresqlEventStore:
    return opened()


class TestPostgresqlEventStore(EventStoreContract):
    has_gapless_positions = False
    keeps_bytes = False

    @pytest.fixture
    def store(self, opened: Opened) -> PostgresqlEventStore:
        return opened()


class TestPostgresqlEventStoreWithAnEngineOfTheApplications(EventStoreContract):
    has_gapless_positions = False
    keeps_bytes = False

    @pytest.fixture
    def store(self, opened: Opened) -> PostgresqlEventStore:
        store = open_event_store(engine=opened().engine)
        assert isinstance(store, PostgresqlEventStore)
        return store


class PortableStore(PostgresqlEventStore):
    """Append with the statements that every engine knows."""

    _append_in_own_transaction = SqlEventStore._append_in_own_transaction
    write = SqlEventStore.write_portably


class TestThePortableAppendOnPostgresql(EventStoreContract):
    has_gapless_positions = False
    keeps_bytes = False

    @pytest.fixture
    def store(self, opened: Opened) -> PortableStore:
        return PortableStore(opened().engine)


# ------------------------------------------------------------ reading beside writers


@pytest.mark.parametrize(
    "has_rows", [False, True], ids=["events alone", "a row of their own first"]
)
def test_64_writers_and_a_reader_skip_nothing_double_nothing_and_keep_the_order(
    opened: Opened, *, has_rows: bool
) -> None:
    # given a store whose commits take their time, and one in five is given up
    store = opened(lease_check=slow_and_unsteady(0.005), pool_size=80)
    # when 64 writers write, and a reader follows them
    writers = Writers(store, threads=64, commits=10, has_rows=has_rows)
    writers.run()
    # then
    writers.check()


def test_a_write_transaction_left_open_elsewhere_does_not_stall_the_reader(
    opened: Opened, database: str
) -> None:
    # given a write transaction that somebody leaves open
    store = opened(lease_check=slow_and_unsteady(0.002), pool_size=40)
    other = create_engine(store.engine.url, poolclass=NullPool).connect()
    other.execute(text("INSERT INTO own_rows VALUES ('left open')"))
    # when 16 writers write
    writers = Writers(store, threads=16, commits=10)
    writers.run(deadline_s=30)
    # then the reader has read everything while it was open
    writers.check()
    assert other.execute(text("SELECT count(*) FROM own_rows")).scalar() == 1
    other.close()


def test_a_reader_stops_in_front_of_a_gap_that_may_still_be_filled(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an append that has its position and is not committed, and one that came after it
    monkeypatch.setattr("cqrs_celery.backends.postgresql.gaps.GAP_WAIT_S", 0.2)
    has_position, may_commit = threading.Event(), threading.Event()

    def hold(lease: Lease) -> bool:
        has_position.set()
        return may_commit.wait(30)

    store = opened(lease_check=hold)
    append(store, BOLT, NO_STREAM, event())
    transaction = store.begin()
    slow = threading.Thread(
        target=lambda: transaction.append([StreamAppend(BOLT, 1, events(1))], lease=LEASE)
    )
    slow.start()
    try:
        assert has_position.wait(30)
        append(store, NUT, NO_STREAM, event())
        # when somebody reads, then only what stands in front of the gap is there
        assert [stored.global_position for stored in store.read_all()] == [1]
        assert list(store.read_all(after_position=1)) == []
    finally:
        may_commit.set()
        slow.join(30)
    # and everything is there once it has been filled
    assert [stored.global_position for stored in store.read_all()] == [1, 2, 3]


@pytest.fixture
def two_phase_store(fresh_postgres_node: PostgresNode) -> Iterator[PostgresqlEventStore]:
    """Open a store in a database that allows two-phase commits."""
    fresh_postgres_node.configure("max_prepared_transactions = 5")
    store = open_event_store(fresh_postgres_node.create_database("shop"))
    assert isinstance(store, PostgresqlEventStore)
    create_schema(store)
    yield store
    store.close()


def test_a_reader_stops_in_front_of_an_append_that_is_prepared_for_a_two_phase_commit(
    two_phase_store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cqrs_celery.backends.postgresql.gaps.GAP_WAIT_S", 0.2)
    store = two_phase_store
    append(store, BOLT, NO_STREAM, event())
    with closing(store.engine.raw_connection()) as pooled:
        other: Any = pooled.driver_connection
        # given an append whose connection has prepared it, and one that came after it
        append_by_hand(other, NUT)
        other.cursor().execute("PREPARE TRANSACTION 'nut'")
        append(store, BOLT, 1, event())
        # when somebody reads, then only what stands in front of it is there
        assert [one.global_position for one in store.read_all()] == [1]
        # and everything once it is committed
        commit_prepared(other)
    assert [one.global_position for one in store.read_all()] == [1, 2, 3]


def test_an_append_that_is_prepared_while_a_reader_waits_for_it_is_not_passed(
    two_phase_store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cqrs_celery.backends.postgresql.gaps.GAP_WAIT_S", 3)
    store = two_phase_store
    append(store, BOLT, NO_STREAM, event())
    with closing(store.engine.raw_connection()) as pooled:
        other: Any = pooled.driver_connection
        # given a reader that waits for an append that is in the middle of its transaction
        append_by_hand(other, NUT)
        append(store, BOLT, 1, event())
        looks: list[set[str]] = []
        look = store.gaps.appending

        def noted(what: str) -> set[str]:
            looks.append(look(what))
            return looks[-1]

        monkeypatch.setattr(store.gaps, "appending", noted)
        found: list[Any] = []
        reader = threading.Thread(target=lambda: found.extend(store.read_all()))
        reader.start()
        wait_until(lambda: len(looks) > 1, message="the reader to wait")
        # when that is prepared, so that no session has it any more
        other.cursor().execute("PREPARE TRANSACTION 'nut'")
        reader.join(30)
        # then it was waited for to the end
        assert [one.global_position for one in found] == [1]
        assert looks[0] & looks[-1]
        commit_prepared(other)
    assert [one.global_position for one in store.read_all()] == [1, 2, 3]


def commit_prepared(connection: Any) -> None:
    connection.commit()  # what the driver takes for its transaction
    connection.autocommit = True
    connection.cursor().execute("COMMIT PREPARED 'nut'")


def append_by_hand(connection: Any, stream: StreamName) -> None:
    """Append an event in an open transaction of the driver's own, as a commit in two phases is."""
    new = event()
    connection.cursor().execute(
        "SELECT cqrs_append_one_v1(%s, %s, %s, %s, -1, %s, %s, 1, %s, '{}', now(),"
        " NULL, NULL, NULL)",
        (stream.key, *stream, new.event_id, new.type, new.data.decode()),
    )


def test_numbers_that_were_settled_before_connections_were_lost_are_so_no_more(
    opened: Opened, postgres_node: PostgresNode
) -> None:
    # given a reader that knows of no number up to 1,000 that may still come
    store = opened()
    append(store, BOLT, NO_STREAM, event())
    store.gaps.settled = Settled(1_000, store.gaps.present("look").of)
    # when the server has ended its connections, as when it goes back to an earlier state
    end_connections(store, postgres_node)
    store.read_all()
    # then it knows of none
    assert store.gaps.settled == NOT_SETTLED


@needs_pgbouncer
def test_numbers_that_were_settled_before_a_restore_behind_a_pooler_are_so_no_more(
    fresh_postgres_node: PostgresNode, tmp_path: Path
) -> None:
    node = fresh_postgres_node
    direct = open_event_store(node.create_database("shop"))
    assert isinstance(direct, PostgresqlEventStore)
    create_schema(direct)
    pooler = PgBouncerNode(tmp_path, node.port, "transaction")
    pooler.start()
    try:
        reader = open_event_store(f"postgresql://postgres@127.0.0.1:{pooler.port}/shop")
        assert isinstance(reader, PostgresqlEventStore)
        # given a backup, and a reader that has passed a number which was rolled back after it
        append(direct, BOLT, NO_STREAM, event())
        backup = node.back_up()
        burn_number(direct)
        append(direct, BOLT, 1, *events(8))
        assert len(reader.read_all()) == 9
        assert reader.gaps.settled.position == 10
        # when it is restored while the reader is idle, and has more events than it had
        direct.close()
        node.kill()
        node.restore(backup)
        node.start()
        # and an append is in flight, behind which others have committed
        slow = direct.engine.connect()
        try:
            slow.begin()
            direct.write(slow, Batch.of([StreamAppend(NUT, ANY_VERSION, events(1))]), None)
            append(direct, BOLT, 1, *events(12))
            # then the reader stops in front of it
            assert [one.global_position for one in read_patiently(reader)] == [1]
            slow.commit()
        finally:
            slow.close()
        # and has it once it has committed
        assert [one.global_position for one in reader.read_all()] == [*range(1, 15)]
        reader.close()
    finally:
        direct.close()
        pooler.teardown()


def burn_number(store: SqlEventStore) -> None:
    """Take a position that no event will have, as an append does that is rolled back."""
    with store.engine.begin() as connection:
        connection.execute(text("SELECT nextval('cqrs_events_global_position_seq')"))


def read_patiently(store: SqlEventStore) -> Sequence[StoredEvent]:
    """Return what the store has, once its server answers again."""
    found: list[Sequence[StoredEvent]] = []

    def read() -> bool:
        with suppress(StoreUnavailable):
            found.append(store.read_all())
        return bool(found)

    wait_until(read, 30, "the server to answer")
    return found[0]


def test_numbers_that_were_settled_in_a_table_that_was_emptied_are_so_no_more(
    store: PostgresqlEventStore,
) -> None:
    # given a reader that has passed a number which was rolled back
    append(store, BOLT, NO_STREAM, event())
    burn_number(store)
    append(store, BOLT, 1, *events(3))
    assert len(store.read_all()) == 4
    # when the table is emptied, and filled with one append in flight
    with store.engine.begin() as connection:
        connection.execute(text("TRUNCATE cqrs_events, cqrs_streams RESTART IDENTITY"))
    with store.engine.connect() as slow:
        slow.begin()
        store.write(slow, Batch.of([StreamAppend(NUT, ANY_VERSION, events(1))]), None)
        append(store, BOLT, NO_STREAM, *events(9))
        # then the reader stops in front of it
        assert store.read_all() == []
        slow.commit()
    assert len(store.read_all()) == 10


def test_a_reader_at_a_gap_looks_less_and_less_often(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a transaction that may still fill a gap, and does not end
    store, looks = opened(), []

    def appending(what: str) -> set[str]:
        looks.append(what)
        return {"3/14"}

    monkeypatch.setattr(store.gaps, "appending", appending)
    # when a reader waits for it for two seconds
    assert not store.gaps.settle("read")
    # then it has looked a few dozen times, not hundreds
    assert 10 < len(looks) < 40


def test_numbers_of_appends_that_were_rolled_back_are_passed(opened: Opened) -> None:
    # given three appends of which the middle one was rolled back
    answers = iter([True, False, True])
    store = opened(lease_check=lambda lease: next(answers))
    for stream, outcome in ((BOLT, None), (NUT, LeaseLost), (NUT, None)):
        transaction = store.begin()
        appends = [StreamAppend(stream, NO_STREAM, events(1))]
        if outcome:
            with pytest.raises(outcome):
                transaction.append(appends, lease=LEASE)
        else:
            transaction.append(appends, lease=LEASE)
    # then its number is left out
    assert [stored.global_position for stored in store.read_all()] == [1, 3]
    assert [stored.stream for stored in store.read_all(after_position=1)] == [NUT]


# ------------------------------------------------------------ schema


def test_the_migrations_make_the_tables_that_the_statements_are_built_from(
    store: PostgresqlEventStore,
) -> None:
    found = inspect(store.engine)
    for name, table in metadata.tables.items():
        columns = {column["name"]: column for column in found.get_columns(name)}
        assert set(columns) == set(table.columns.keys())
        for column in table.columns:
            compiled = column.type.compile(store.engine.dialect)
            assert columns[column.name]["type"].compile(store.engine.dialect) == compiled
            assert columns[column.name]["nullable"] == column.nullable


def test_a_database_without_tables_is_one_clear_error(postgres_url: str) -> None:
    store = open_event_store(postgres_url)
    assert isinstance(store, PostgresqlEventStore)
    for use in (
        lambda: append(store, BOLT, NO_STREAM, event()),
        lambda: append(store, BOLT, NO_STREAM, *events(2)),
        lambda: store.read_all(),
        lambda: store.read_stream(BOLT),
        lambda: store.find_command("c-1"),
        lambda: check_schema(store),
    ):
        with pytest.raises(SchemaError, match="cqrs schema create") as refused:
            use()
        assert isinstance(refused.value.__cause__, Exception)
    store.close()


def test_two_that_make_the_tables_at_once_both_succeed(postgres_url: str) -> None:
    stores = [open_event_store(postgres_url) for _ in range(2)]
    failures: list[Exception] = []

    def create(store: SqlEventStore) -> None:
        try:
            create_schema(store)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=create, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    for store in stores:
        assert isinstance(store, PostgresqlEventStore)
        assert check_schema(store) == "0002"
        store.close()


def test_payloads_can_be_queried_as_jsonb(store: PostgresqlEventStore) -> None:
    append(store, BOLT, NO_STREAM, event(data=b'{"count": 5}'), event(data=b'{"count": 7}'))
    with store.engine.connect() as connection:
        counts = connection.execute(text("SELECT sum((payload->>'count')::int) FROM cqrs_events"))
        assert counts.scalar() == 12


@pytest.mark.parametrize("count", [1, 3])
def test_what_jsonb_can_not_hold_is_kept_all_the_same(
    store: PostgresqlEventStore, count: int
) -> None:
    data = b'{"nul": "\\u0000", "half": "\\ud800", "order": 1, "a": 2}'
    append(store, BOLT, NO_STREAM, *(event(data=data) for _ in range(count)))
    assert [stored.event.data for stored in store.read_stream(BOLT)] == [data] * count


# ------------------------------------------------------------ rows of the application's own


def insert_row(connection: object, id: str) -> None:
    connection.execute(text("INSERT INTO own_rows VALUES (:id)"), {"id": id})  # type: ignore[attr-defined]


def rows_of(store: SqlEventStore) -> list[str]:
    with store.engine.connect() as connection:
        return list(connection.execute(text("SELECT id FROM own_rows ORDER BY id")).scalars())


def test_rows_and_events_are_written_together(store: PostgresqlEventStore) -> None:
    transaction = store.begin()
    insert_row(transaction.connection, "1")
    transaction.append([StreamAppend(BOLT, NO_STREAM, events(2))], command=command("c-1"))
    assert (rows_of(store), len(store.read_all())) == (["1"], 2)


def test_rows_beside_a_stale_append_are_not_written(store: PostgresqlEventStore) -> None:
    append(store, BOLT, NO_STREAM, event())
    transaction = store.begin()
    insert_row(transaction.connection, "1")
    with pytest.raises(ConcurrencyError) as refused:
        transaction.append([StreamAppend(BOLT, NO_STREAM, events(1))])
    assert (refused.value.expected, refused.value.found) == (0, 1)
    assert (rows_of(store), len(store.read_all())) == ([], 1)


def test_a_repeated_append_does_not_write_its_rows_twice(store: PostgresqlEventStore) -> None:
    # given an append with a row, whose reply was lost
    for expected in (NO_STREAM, ANY_VERSION):
        appends = [StreamAppend(BOLT if expected == 0 else NUT, expected, events(2))]
        first = store.begin()
        insert_row(first.connection, f"first {expected}")
        committed = first.append(appends)
        # when it comes again
        again = store.begin()
        insert_row(again.connection, f"again {expected}")
        # then it returns what the first did, and its row is rolled back
        assert again.append(appends) == committed
    assert rows_of(store) == ["first -1", "first 0"]


def test_rows_alone_are_written_once_for_a_command(store: PostgresqlEventStore) -> None:
    for row in ("1", "2"):
        transaction = store.begin()
        insert_row(transaction.connection, row)
        if row == "1":
            transaction.commit(command=command("c-1", '"done"'))
            continue
        with pytest.raises(DuplicateCommand) as refused:
            transaction.commit(command=command("c-1"))
        assert refused.value.outcome == '"done"'
    assert rows_of(store) == ["1"]


def test_transactions_in_each_others_way_are_told_so(store: PostgresqlEventStore) -> None:
    # given two transactions, each with a row that the other one wants
    append(store, BOLT, NO_STREAM, event())
    with store.engine.begin() as connection:
        insert_row(connection, "1")
        insert_row(connection, "2")
    first, second = store.begin(), store.begin()
    change = text("UPDATE own_rows SET id = id WHERE id = :id")
    first.connection.execute(change, {"id": "1"})
    second.connection.execute(text("UPDATE cqrs_streams SET version = version"))

    def want_the_first_one_s_row() -> None:
        with suppress(TransactionConflict):
            second.connection.execute(change, {"id": "1"})

    other = threading.Thread(target=want_the_first_one_s_row)
    other.start()
    with store.engine.connect() as connection:
        wait_until(
            lambda: connection.execute(
                text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            ).scalar(),
            message="the second one to wait",
        )
    # when the first one appends to the stream that the second one has locked
    beaten: list[str] = []
    try:
        first.append([StreamAppend(BOLT, 1, events(1))])
    except TransactionConflict as error:
        beaten.append(error.stream)
    other.join(30)
    second.rollback()
    # then one of the two was ended, and nothing of it is there
    assert beaten in ([], ["InventoryItem-bolt"])
    assert len(store.read_all()) == (1 if beaten else 2)


def test_a_deadlock_in_a_statement_of_the_application_s_own_is_a_conflict(
    store: PostgresqlEventStore,
) -> None:
    # given two transactions, each with a row that the other one wants; the second one looks first
    with store.engine.begin() as connection:
        insert_row(connection, "1")
        insert_row(connection, "2")
    first, second = store.begin(), store.begin()
    change = text("UPDATE own_rows SET id = id WHERE id = :id")
    for transaction, timeout, row in ((first, "20s", "1"), (second, "10ms", "2")):
        transaction.connection.execute(text(f"SET LOCAL deadlock_timeout = '{timeout}'"))
        transaction.connection.execute(change, {"id": row})
    other = threading.Thread(target=lambda: first.connection.execute(change, {"id": "2"}))
    other.start()
    with store.engine.connect() as connection:
        wait_until(
            lambda: connection.execute(
                text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            ).scalar(),
            message="the first one to wait",
        )
    # when the second one asks for the first one's row, then it is ended, to be tried again
    with pytest.raises(TransactionConflict, match=r"deadlock detected.*Repeat the command"):
        second.connection.execute(change, {"id": "1"})
    second.rollback()
    other.join(30)
    first.append([StreamAppend(BOLT, NO_STREAM, events(1))])
    assert len(store.read_all()) == 1


def test_a_lock_that_the_application_did_not_want_to_wait_for_is_the_driver_s_error(
    store: PostgresqlEventStore,
) -> None:
    with store.engine.begin() as connection:
        insert_row(connection, "1")
    first, second = store.begin(), store.begin()
    lock = text("SELECT id FROM own_rows FOR UPDATE NOWAIT")
    first.connection.execute(lock)
    with pytest.raises(DBAPIError, match="could not obtain lock"):
        second.connection.execute(lock)
    second.rollback()
    first.rollback()


class AddRow(Command, name="own.add_row"):
    id: str


#: One for each run of the handler.
runs: list[str] = []


@command_handler(AddRow)
def add_row(command: AddRow, session: Session) -> None:
    runs.append(command.id)
    insert_row(session.connection, command.id)
    if len(runs) == 1:
        session.connection.execute(text("DO $$ BEGIN RAISE deadlock_detected; END $$"))


def test_a_handler_whose_own_statement_is_a_deadlock_s_victim_is_repeated(
    store: PostgresqlEventStore,
) -> None:
    # given a handler whose first run is ended by the database in a statement of its own
    app = Celery("own", set_as_current=False)
    cqrs = CQRS(app, store=store)
    runs.clear()
    # when it is called
    cqrs.execute(AddRow(id="1"))
    # then it was repeated, and its row is there once
    assert len(runs) == 2
    assert rows_of(store) == ["1"]
    app.close()


# ------------------------------------------------------------ a server that goes away


def is_there(pid: int) -> bool:
    """Tell whether a process is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_server_that_is_away_is_one_clear_error_and_comes_back(
    fresh_postgres_node: PostgresNode,
) -> None:
    # given a store whose server has died, with connections in the pool
    url = fresh_postgres_node.create_database("shop").replace("postgres@", "postgres:s3cret@")
    store = open_event_store(url)
    assert isinstance(store, PostgresqlEventStore)
    create_schema(store)
    append(store, BOLT, NO_STREAM, event())
    store.read_all()
    with closing(fresh_postgres_node.connect("shop")) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = 'shop' AND pid <> pg_backend_pid()"
        )
        serving = [pid for (pid,) in cursor.fetchall()]
    fresh_postgres_node.kill()
    # which its own processes, that serve these, notice in their own time
    wait_until(lambda: not any(is_there(pid) for pid in serving))
    # then everything says so, without the password
    for use in (
        lambda: append(store, BOLT, 1, event()),
        lambda: store.read_stream(BOLT),
        lambda: store.read_all(),
        lambda: store.find_command("c"),
        lambda: store.begin(),
    ):
        with pytest.raises(StoreUnavailable, match=r"postgresql://127\.0\.0\.1.*answer") as failed:
            use()
        assert "s3cret" not in f"{failed.value!r} {failed.value.__cause__!r} {store!r}"
    # and when it is back, everything that was committed is there, and it goes on
    fresh_postgres_node.start()
    assert append(store, BOLT, 1, event()).versions == (2,)
    store.close()


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    "end",
    [
        lambda transaction: transaction.append([StreamAppend(BOLT, NO_STREAM, events(1))]),
        lambda transaction: transaction.commit(command=command("c")),
    ],
    ids=["append", "commit"],
)
def test_a_transaction_whose_connection_was_lost_says_that_the_server_is_away(
    store: PostgresqlEventStore,
    postgres_node: PostgresNode,
    end: Callable[[Any], object],
    is_known: bool,
) -> None:
    # given an open transaction whose connection the server has ended, which its driver may know
    transaction = store.begin()
    connection: Any = transaction.connection.connection.dbapi_connection
    with closing(postgres_node.connect("contract")) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
    if is_known:
        with suppress(Exception):
            connection.cursor().execute("SELECT 1")
    # when it is to be ended
    with pytest.raises(StoreUnavailable):
        end(transaction)
    # then it is over, nothing was written, and the store goes on
    transaction.rollback()
    assert store.read_all() == []
    assert append(store, BOLT, NO_STREAM, event()).versions == (1,)


def test_a_connection_that_was_lost_in_the_pool_costs_nothing(
    store: PostgresqlEventStore, postgres_node: PostgresNode
) -> None:
    # given a store whose connections the server has ended
    append(store, BOLT, NO_STREAM, event())
    store.read_all()
    with closing(postgres_node.connect("contract")) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = 'contract' AND pid <> pg_backend_pid()"
        )
    # then it makes new ones
    assert append(store, BOLT, 1, event()).versions == (2,)
    assert len(store.read_all()) == 2


# ------------------------------------------------------------ a failover


#: What a server answers that is shut down, has crashed, has become a replica, is full, or whose
#: statement was ended while it was about to.
AWAY = [
    "08000", "08003", "08006", "08P01", "25006", "40003", "53100", "53200", "53300", "57014",
    "57P01", "57P02", "57P03", "57P05", "58030", "25P03", "25P04",
]  # fmt: skip


def raised(store: SqlEventStore, code: str, said: str = "said by the test") -> Exception:
    """Return the driver's error for an error that the server raises."""
    statement = f"DO $$ BEGIN RAISE EXCEPTION '{said}' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(DBAPIError) as caught, store.engine.begin() as connection:
        connection.execute(text(statement))
    assert isinstance(caught.value.orig, Exception)
    return caught.value.orig


@pytest.mark.parametrize("code", AWAY)
def test_what_a_server_answers_in_a_failover_is_tried_again(
    store: PostgresqlEventStore, code: str
) -> None:
    assert store.rules.failure(raised(store, code)) is Failure.AWAY


def test_of_the_errors_of_one_code_those_of_a_recovery_are_tried_again(
    store: PostgresqlEventStore,
) -> None:
    said = "cannot assign TransactionIds during recovery"
    assert store.rules.failure(raised(store, "55000", said)) is Failure.AWAY
    said = "cannot update table because it does not have a replica identity"
    assert store.rules.failure(raised(store, "55000", said)) is Failure.OTHER
    # nor is a transaction whose earlier error somebody has swallowed
    assert store.rules.failure(raised(store, "25P02")) is Failure.OTHER


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_transaction_that_the_server_ended_for_being_idle_means_that_it_is_away(
    store: PostgresqlEventStore, setting: str
) -> None:
    with store.engine.connect() as connection:
        names = text("SELECT count(*) FROM pg_settings WHERE name = :name")
        if not connection.execute(names, {"name": setting}).scalar():
            pytest.skip(f"this PostgreSQL has no {setting}")
    # given a transaction that was idle for longer than the server allows
    transaction = store.begin()
    transaction.connection.execute(text(f"SET LOCAL {setting} = '20ms'"))
    pid = transaction.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    wait_until(lambda: not is_there_in(store, pid), 20, "the server to end it")
    # when something is done in it, then that can be tried again
    with pytest.raises(StoreUnavailable):
        transaction.connection.execute(text("SELECT 1"))
    transaction.rollback()
    # and the store goes on
    append(store, BOLT, NO_STREAM, event())


def is_there_in(store: SqlEventStore, pid: int) -> bool:
    with store.engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"), {"pid": pid}
            ).scalar()
        )


@pytest.mark.parametrize("number", [-1, -(2**64), 2**63 - 1, 2**63, 2**64])
def test_a_number_that_no_database_holds_is_no_error_where_events_are_read(
    store: PostgresqlEventStore, number: int
) -> None:
    # given two events
    append(store, BOLT, NO_STREAM, *events(2))
    expected = 2 if number < 0 else 0
    # then behind a number that is too high there is nothing, and below one that is too low is all
    assert len(store.read_all(after_position=number)) == expected
    assert len(store.read_stream(BOLT, after_version=number)) == expected
    # and no more can be asked for than everything
    assert len(store.read_all(limit=number)) == 2 - expected
    assert len(store.read_stream(BOLT, limit=number)) == 2 - expected


def register_surrogate(store: SqlEventStore) -> None:
    store.outbox.register("shop", Subscriber("t\ud800", ("a",), "q", ("", "", "", "", "")))


def register_topic(store: SqlEventStore) -> None:
    store.outbox.register("shop", Subscriber("t", ("a\0",), "q", ("", "", "", "", "")))


def register_head(store: SqlEventStore) -> None:
    store.outbox.register("shop", Subscriber("t", ("a",), "q", ("\ud800", "", "", "", "")))


@pytest.mark.parametrize(
    "do",
    [
        register_surrogate,
        register_topic,
        register_head,
        lambda store: store.outbox.unregister("shop", "t\0", ("a",)),
        lambda store: store.outbox.unregister("shop\0", "t", ("a",)),
        lambda store: store.leadership("shop\0", broker="redis"),
        lambda store: store.leadership("shop\ud800", broker="redis"),
    ],
)
def test_a_name_that_can_not_be_kept_is_refused_as_such(
    store: PostgresqlEventStore, do: Callable[[SqlEventStore], object]
) -> None:
    with pytest.raises(InvalidText):
        do(store)


def test_a_driver_s_errors_without_a_code_mean_a_broken_connection(
    store: PostgresqlEventStore,
) -> None:
    driver: Any = store.engine.dialect.loaded_dbapi
    derived = type("ConnectionTimeout", (driver.OperationalError,), {})
    for cls in (driver.OperationalError, driver.InterfaceError, driver.DatabaseError, derived):
        assert store.rules.failure(cls("SSL SYSCALL error: EOF detected")) is Failure.AWAY
    for cls in (driver.ProgrammingError, driver.DataError, driver.NotSupportedError, ValueError):
        assert store.rules.failure(cls("no such thing")) is Failure.OTHER


READ_ONLY = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"


def demote(store: PostgresqlEventStore) -> None:
    """Make the connections that a store has be to a server that takes no writes any more."""
    append(store, NUT, ANY_VERSION, event())
    with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(READ_ONLY))
    for pooled in store.kept._idle:
        with pooled.dbapi_connection.cursor() as cursor:
            cursor.execute(READ_ONLY)


def end_connections(store: PostgresqlEventStore, node: PostgresNode) -> None:
    """Let the server end the connections that a store has."""
    append(store, NUT, ANY_VERSION, event())
    store.engine.connect().close()
    with closing(node.connect("contract")) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = 'contract' AND pid <> pg_backend_pid()"
        )


def row_and_event(store: PostgresqlEventStore) -> None:
    transaction = store.begin()
    insert_row(transaction.connection, "beside")
    transaction.append([StreamAppend(BOLT, NO_STREAM, events(1))])


def row_alone(store: PostgresqlEventStore) -> None:
    transaction = store.begin()
    insert_row(transaction.connection, "alone")
    transaction.commit(command=command("c-1"))


SUBSCRIBER = Subscriber("task", ("inventory.items_checked_in",), "queue", ("", "", "", "", ""))


def register_and_unregister(store: PostgresqlEventStore) -> None:
    store.outbox.register("shop", SUBSCRIBER)
    store.outbox.unregister("shop", SUBSCRIBER.name, SUBSCRIBER.topics)


def lead(store: PostgresqlEventStore) -> None:
    leadership = store.leadership("shop", broker="redis")
    assert leadership.claim("broker")
    assert leadership.save_checkpoint(START)
    leadership.release()


@pytest.mark.parametrize("beside", ["unregister", "register"])
def test_a_removal_undoes_nothing_that_is_registered_or_removed_at_the_same_time(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    # given a function that is removed from one of its topics, by a process that has read both
    outbox, other = opened().outbox, opened().outbox
    outbox.register("shop", SUBSCRIBER._replace(topics=("old", "kept")))
    has_read, may_write = threading.Event(), threading.Event()
    decode = sql_outbox._decode

    def pausing(row: str) -> Subscriber:
        if threading.current_thread() is removal and not has_read.is_set():
            has_read.set()
            assert may_write.wait(timeout=30)
        return decode(row)

    monkeypatch.setattr(sql_outbox, "_decode", pausing)
    removal = threading.Thread(target=outbox.unregister, args=("shop", "task", ["old"]))
    removal.start()
    assert has_read.wait(timeout=30)
    # when another process removes it from the other one, or registers it with a new one
    changes: dict[str, Callable[[], object]] = {
        "unregister": lambda: other.unregister("shop", "task", ["kept"]),
        "register": lambda: other.register("shop", SUBSCRIBER._replace(topics=("kept", "new"))),
    }
    change = threading.Thread(target=changes[beside])
    change.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with other.store.engine.connect() as connection:
        wait_until(
            lambda: not change.is_alive() or connection.scalar(text(waiting)),
            message="the other process to have done it, or to wait",
        )
    may_write.set()
    removal.join(timeout=30)
    change.join(timeout=30)
    # then that stands
    topics = [one.topics for one in outbox.subscribers("shop")]
    assert topics == {"unregister": [], "register": [("kept", "new")]}[beside]


#: What begins with a connection that lay in a pool.
FIRST_USES: dict[str, Callable[[PostgresqlEventStore], object]] = {
    "append": lambda store: append(store, BOLT, NO_STREAM, event()),
    "append of several": lambda store: append(store, BOLT, NO_STREAM, *events(3)),
    "row and event": row_and_event,
    "row alone": row_alone,
    "put a snapshot": lambda store: store.snapshots().put(snapshot(stream=NUT, version=1)),
    "remove a snapshot": lambda store: store.snapshots().remove(NUT),
    "lead": lead,
    "register": lambda store: store.outbox.register("shop", SUBSCRIBER),
    "unregister": register_and_unregister,
    "forget commands": lambda store: store.forget_expired_commands(),
    "make the tables": create_schema,
}

READS: dict[str, Callable[[PostgresqlEventStore], object]] = {
    "read everything": lambda store: store.read_all(),
    "read a stream": lambda store: store.read_stream(NUT),
    "read a history": lambda store: store.read_history(NUT),
    "find a command": lambda store: store.find_command("c-1"),
    "find a snapshot": lambda store: store.snapshots().find(NUT),
    "find a snapshot with newer": lambda store: store.snapshots().find_with_newer(NUT, 1),
    "list snapshots": lambda store: list(store.snapshots().streams("inventory", "Item")),
    "read the outbox": lambda store: store.outbox.read(0, 10),
    "last position": lambda store: store.outbox.last_position(),
    "pending": lambda store: store.outbox.pending(0),
    "checkpoint": lambda store: store.leadership("shop", broker="redis").checkpoint(),
    "who leads": lambda store: store.leadership("shop", broker="redis").led(),
    "subscribers": lambda store: store.outbox.subscribers("shop"),
    "check the tables": check_schema,
    "append again": lambda store: store.find_committed(
        Batch.of([StreamAppend(NUT, NO_STREAM, events(1))])
    ),
}


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES)
def test_a_connection_to_a_server_that_has_become_read_only_is_replaced(
    store: PostgresqlEventStore, use: Callable[[PostgresqlEventStore], object]
) -> None:
    # given a store whose connections lead to a server that was the primary once
    demote(store)
    # when something is written, then it is, on a connection to the primary
    use(store)
    # and nothing is left of the others
    for pooled in store.kept._idle:
        with pooled.dbapi_connection.cursor() as cursor:
            cursor.execute("SHOW transaction_read_only")
            assert cursor.fetchall() == [("off",)]
    row_and_event_again = store.begin()
    insert_row(row_and_event_again.connection, "again")
    row_and_event_again.commit()
    store.close()


@pytest.mark.parametrize("use", [*FIRST_USES.values(), *READS.values()], ids=[*FIRST_USES, *READS])
def test_a_connection_that_the_server_has_ended_meanwhile_is_replaced(
    store: PostgresqlEventStore,
    postgres_node: PostgresNode,
    use: Callable[[PostgresqlEventStore], object],
) -> None:
    # given a store whose connections the server has ended
    end_connections(store, postgres_node)
    # then nobody notices
    use(store)
    store.close()


@pytest.fixture(scope="module")
def role(database: str) -> Iterator[Engine]:
    """Give connections of a role that has exactly the rights that the check asks for."""
    # Tests in between end connections, and start the server anew.
    owner = create_engine(database, poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text('CREATE ROLE "till-app" LOGIN'))
        connection.execute(text('GRANT ALL ON own_rows TO "till-app"'))
    engine = create_engine(make_url(database).set(username="till-app"), poolclass=NullPool)
    with pytest.raises(StoreError, match='the role "till-app" may not do all') as refused:
        check_rights(PostgresqlEventStore(engine))
    with owner.begin() as connection:
        for grant in str(refused.value).partition(" run: ")[2].split("; "):
            connection.execute(text(grant))
    yield engine
    with owner.begin() as connection:
        connection.execute(text('DROP OWNED BY "till-app"'))
        connection.execute(text('DROP ROLE "till-app"'))


#: What an application does, other than making its tables.
USES = {**FIRST_USES, **READS}
del USES["make the tables"]


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_rights_that_are_checked_are_enough_for_all_that_a_store_does(
    opened: Opened, role: Engine, use: Callable[[PostgresqlEventStore], object]
) -> None:
    # given a store with something in it, used by a role that has those rights and no others
    append(opened(), NUT, NO_STREAM, event())
    store = PostgresqlEventStore(role)
    check_rights(store)
    # then it may do this
    use(store)
    store.close()


def test_each_right_that_is_missing_is_named_with_the_statement_that_gives_it(
    opened: Opened, role: Engine
) -> None:
    owner, store = opened().engine, PostgresqlEventStore(role)
    rights = [(right, table) for table, all_of in TABLES.items() for right in all_of]
    for right, thing in [*rights, *(("USAGE", f"SEQUENCE {one}") for one in SEQUENCES.values())]:
        with owner.begin() as connection:
            connection.execute(text(f'REVOKE {right} ON {thing} FROM "till-app"'))
        with pytest.raises(StoreError) as refused:
            check_rights(store)
        grant = f'GRANT {right} ON {thing} TO "till-app"'
        assert str(refused.value).partition(" run: ")[2] == grant
        with owner.begin() as connection:
            connection.execute(text(grant))
    check_rights(store)
    store.close()


def test_the_schemas_check_ends_with_1_where_a_right_is_missing(
    database: str, role: Engine
) -> None:
    # given an application whose role may not look at the tables' version
    app: Any = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.cqrs_event_store = role.url.render_as_string(hide_password=False)
    cqrs = CQRS(app)
    obj = type("Context", (), {"app": app})()
    owner = create_engine(database, poolclass=NullPool)
    with owner.begin() as connection:
        connection.execute(text('REVOKE SELECT ON cqrs_schema FROM "till-app"'))
    # then the check says what to do
    result = CliRunner().invoke(cqrs_command, ["schema", "check"], obj=obj)
    assert result.exit_code == 1
    assert 'GRANT SELECT ON cqrs_schema TO "till-app"' in result.output
    # and all is well when that is done
    with owner.begin() as connection:
        connection.execute(text('GRANT SELECT ON cqrs_schema TO "till-app"'))
    result = CliRunner().invoke(cqrs_command, ["schema", "check"], obj=obj)
    assert result.exit_code == 0, result.output
    cqrs.bare_store.close()
    app.close()


def test_a_server_that_takes_no_writes_is_away_until_it_does(
    store: PostgresqlEventStore, postgres_node: PostgresNode
) -> None:
    # given a database that takes no writes, as that of a replica
    append(store, NUT, NO_STREAM, event())
    with closing(postgres_node.connect()) as other, other.cursor() as cursor:
        cursor.execute("ALTER DATABASE contract SET default_transaction_read_only = on")
        try:
            store.close()
            # then whoever writes is told so, be it a statement of the application's own
            for use in FIRST_USES.values():
                if use is create_schema:
                    continue
                with pytest.raises(StoreUnavailable, match="read-only"):
                    use(store)
            assert len(store.read_all()) == 1
        finally:
            cursor.execute("ALTER DATABASE contract RESET default_transaction_read_only")
    # and when it takes them again, then the store writes, on new connections
    for name in ("append", "row alone", "lead"):
        FIRST_USES[name](store)
    assert rows_of(store) == ["alone"]


def test_a_statement_of_the_application_s_own_on_a_lost_connection_is_unavailability(
    store: PostgresqlEventStore, postgres_node: PostgresNode
) -> None:
    # given a transaction whose connection the server ends before the application's statement
    transaction = store.begin()
    end_connections(store, postgres_node)
    # when that comes, then the error is ours: a command is tried again
    with pytest.raises(StoreUnavailable, match=r"postgresql://127\.0\.0\.1") as lost:
        insert_row(transaction.connection, "1")
    assert store.rules.failure(lost.value.__cause__ or ValueError()) is Failure.AWAY
    transaction.rollback()
    # and any other error is its own
    transaction = store.begin()
    with pytest.raises(DBAPIError, match="nowhere"):
        transaction.connection.execute(text("INSERT INTO nowhere VALUES (1)"))
    transaction.rollback()
    # as is that of one that is too slow, as it would be the next time
    transaction = store.begin()
    transaction.connection.execute(text("SET LOCAL statement_timeout = 10"))
    with pytest.raises(DBAPIError, match="statement timeout"):
        transaction.connection.execute(text("SELECT pg_sleep(10)"))
    transaction.rollback()
    # as is one on the engine outside
    with pytest.raises(DBAPIError), store.engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert append(store, BOLT, NO_STREAM, event()).versions == (1,)


@pytest.mark.parametrize("read", [READS["read everything"], READS["last position"]])
def test_a_read_that_a_replica_ends_for_its_recovery_is_done_again(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, read: Callable[[SqlEventStore], object]
) -> None:
    # given a replica that ends what it reads, twice, since it has to catch up
    store = opened()
    append(store, NUT, NO_STREAM, event())
    failures = [raised(store, "40001") for _ in range(2)]
    for owner, name in ((store.kept, "run"), (Connection, "execute")):
        real = getattr(owner, name)

        def end_some(*args: Any, real: Any = real, **options: Any) -> Any:
            if failures:
                raise failures.pop()
            return real(*args, **options)

        monkeypatch.setattr(owner, name, end_some)
    # then that is nobody's trouble
    read(store)
    assert not failures


def test_appends_on_many_connections_go_on_after_a_restart_and_nothing_is_lost_or_there_twice(
    fresh_postgres_node: PostgresNode,
) -> None:
    # given threads that append, each to a stream of its own, and repeat what failed
    url = fresh_postgres_node.create_database("shop")
    store = open_event_store(url)
    assert isinstance(store, PostgresqlEventStore)
    create_schema(store)
    is_over = threading.Event()
    streams = [StreamName("shop", "Item", str(number)) for number in range(8)]
    said: dict[StreamName, list[str]] = {stream: [] for stream in streams}
    others: list[BaseException] = []

    def work(stream: StreamName) -> None:
        while not is_over.is_set():
            new = event()
            is_there = False
            while not is_there:
                try:
                    append(store, stream, len(said[stream]), new)
                    is_there = True
                except StoreUnavailable:
                    is_over.wait(0.02)
                except BaseException as error:  # noqa: BLE001
                    others.append(error)
                    return
            said[stream].append(new.event_id)

    threads = [threading.Thread(target=work, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()

    # when the server dies under all of them, and comes back, again and again
    def wait_for(count: int) -> None:
        wait_until(lambda: all(len(ids) >= count for ids in said.values()))

    for count in (5, 10, 15):
        wait_for(count)
        fresh_postgres_node.kill()
        fresh_postgres_node.start()
    wait_for(20)
    is_over.set()
    for thread in threads:
        thread.join()
    # then each stream has what was said to be there, once
    assert not others
    for stream in streams:
        assert [stored.event.event_id for stored in store.read_stream(stream)] == said[stream]
    store.close()


def taken_of(engine: Engine) -> int:
    """Return the number of connections that are not in an engine's pool."""
    pool: Any = engine.pool
    return int(pool.checkedout())


def test_a_connection_in_use_when_others_were_lost_is_not_kept(opened: Opened) -> None:
    # given an append that waits for a transaction of somebody else's
    store = opened()
    append(store, BOLT, NO_STREAM, event())
    with store.engine.begin() as blocker:
        blocker.execute(text("SELECT * FROM cqrs_streams FOR UPDATE"))
        waiting = threading.Thread(target=append, args=(store, BOLT, 1, event()))
        waiting.start()
        wait_until(lambda: taken_of(store.engine) == 2)
        # when the store gives up all others, as after a restart
        store.forget_lost()
    waiting.join()
    # then that one is not used again either, though it is as old as they
    assert len(store.read_stream(BOLT)) == 2
    assert taken_of(store.engine) == 1


@pytest.mark.parametrize("pool_size", [1, 2, 3])
def test_kept_connections_leave_half_the_pool_to_others(database: str, pool_size: int) -> None:
    # given as many threads that append and read as there are connections
    engine = create_engine(database, pool_size=pool_size, max_overflow=0, pool_timeout=5)
    with closing(PostgresqlEventStore(engine, is_own_engine=True)) as store:
        together = threading.Barrier(pool_size)

        def work(number: int) -> None:
            together.wait()
            stream = StreamName("shop", "Room", f"{pool_size}-{number}")
            append(store, stream, ANY_VERSION, event())
            assert store.read_stream(stream)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(pool_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # then a transaction can begin beside what is kept
        assert taken_of(engine) <= pool_size // 2
        store.begin().rollback()


def test_the_applications_engine_gets_its_connections_back_as_they_were(database: str) -> None:
    # given an engine of the application's
    engine = create_engine(database, pool_size=1)
    store = open_event_store(engine=engine)
    # when the store has used it
    append(store, NUT, ANY_VERSION, event())
    store.read_all()
    # then nothing is kept, and its connections don't commit by themselves
    assert taken_of(engine) == 0
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO own_rows VALUES ('not committed')"))
        connection.rollback()
        rows = connection.execute(text("SELECT * FROM own_rows WHERE id = 'not committed'"))
        assert rows.all() == []
    engine.dispose()


def test_a_statement_that_the_server_does_not_answer_in_time_is_given_up(
    store: PostgresqlEventStore,
) -> None:
    # given a stream that another transaction holds, as a server that hangs would
    append(store, BOLT, NO_STREAM, event())
    with store.engine.connect() as other:
        other.execute(text("SELECT 1 FROM cqrs_streams FOR UPDATE"))
        # when one waits for it for longer than allowed, then that is a server that is away
        with store.limited(0.1), pytest.raises(StoreUnavailable):
            append(store, BOLT, 1, event())
        transaction = store.begin()
        with store.limited(0.1), pytest.raises(StoreUnavailable):
            transaction.append([StreamAppend(BOLT, 1, events(1))])
        # and nobody else is in its way
        others = threading.Thread(target=lambda: append(store, NUT, NO_STREAM, event()))
        others.start()
        others.join(30)
        assert not others.is_alive()
    # and the store goes on
    wait_until(lambda: not is_waiting(store), 30, "the server to end what was given up")
    append(store, BOLT, ANY_VERSION, event())


def is_waiting(store: SqlEventStore) -> bool:
    """Return whether a session waits for a lock."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with store.engine.connect() as connection:
        return bool(connection.execute(waiting).scalar())


def test_a_connection_notices_that_its_host_is_gone_unless_the_url_says_otherwise(
    database: str,
) -> None:
    # given a URL that says something of it
    store = open_event_store(f"{database}?connect_timeout=3&keepalives_idle=77")
    assert isinstance(store, PostgresqlEventStore)
    # when a connection is opened
    with store.engine.connect() as connection:
        info = connection.connection.dbapi_connection.info  # type: ignore[union-attr]
        asked = getattr(info, "dsn_parameters", None) or info.get_parameters()
    store.close()
    # then the rest has what a dead host is noticed by
    assert (asked["connect_timeout"], asked["keepalives_idle"]) == ("3", "77")
    assert (asked["keepalives_interval"], asked["keepalives_count"]) == ("5", "3")
    assert asked["tcp_user_timeout"] == "15000"


def test_statements_that_the_server_no_longer_knows_are_run_unprepared(
    opened: Opened, database: str
) -> None:
    """A pooler that changes servers between statements, as PgBouncer does, makes it so."""
    # given connections on which what was prepared is gone
    store = opened()
    for statement in ("DEALLOCATE ALL", "DISCARD ALL"):
        version = append(store, BOLT, ANY_VERSION, event()).versions[0]
        append(store, BOLT, version, event(), event())
        assert len(store.read_stream(BOLT)) == version + 2
        (pooled,) = store.kept._idle
        with pooled.dbapi_connection.cursor() as cursor:
            cursor.execute(statement)
        # then everything is done all the same, once
        assert append(store, BOLT, version + 2, event()).versions == (version + 3,)
        assert append(store, BOLT, version + 3, event(), event()).versions == (version + 5,)
        assert len(store.read_stream(BOLT)) == version + 5
        assert len(store.read_all()) == version + 5
        assert store.find_command("c") is None
        store.close()
        store.engine.dispose()


def test_statements_that_somebody_else_has_prepared_are_run_unprepared(opened: Opened) -> None:
    # given a connection on which the names are taken
    store = opened()
    append(store, BOLT, NO_STREAM, event())
    (pooled,) = store.kept._idle
    pooled.info.clear()
    # then nothing is missing
    assert append(store, BOLT, 1, event()).versions == (2,)
    assert len(store.read_stream(BOLT)) == 2


def test_a_statement_that_the_database_refuses_is_a_store_error(
    store: PostgresqlEventStore,
) -> None:
    with pytest.raises(StoreError, match="refused it"):
        append(store, BOLT, NO_STREAM, event(data=b"no json"))
    assert append(store, BOLT, NO_STREAM, event()).versions == (1,)


# ------------------------------------------------------------ leases, commands, replicas, processes


def test_an_append_under_a_lost_lease_is_refused_and_writes_nothing(opened: Opened) -> None:
    held = [True]
    store = opened(lease_check=lambda lease: held[0])
    store.append([StreamAppend(BOLT, NO_STREAM, events(1))], lease=LEASE)
    held[0] = False
    with pytest.raises(LeaseLost):
        store.append([StreamAppend(BOLT, 1, events(1))], lease=LEASE)
    assert len(store.read_all()) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_command_is_remembered_for_its_time_to_live(
    store: PostgresqlEventStore, count: int
) -> None:
    over = CommandRecord("c-1", '"over"', ttl_s=-1)
    store.append([StreamAppend(BOLT, NO_STREAM, events(count))], command=over)
    assert store.find_command("c-1") is None
    now = CommandRecord("c-1", '"now"', ttl_s=60)
    store.append([StreamAppend(BOLT, count, events(count))], command=now)
    found = store.find_command("c-1")
    assert found is not None
    assert found.outcome == '"now"'
    store.append([StreamAppend(NUT, 0, events(1))], command=CommandRecord("c-2", "1", -1))
    assert store.forget_expired_commands() == 1


def test_a_read_that_a_replica_cancels_is_repeated(
    store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = store.engine.dialect.loaded_dbapi

    class Cancelled(driver.OperationalError):
        pgcode = sqlstate = "40001"

    # given a replica that cancels what reads rows which it is about to remove, twice
    answers: list[Any] = [Cancelled("conflict with recovery"), Cancelled("conflict"), []]

    def run(*_: Any) -> Any:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(store.kept_to_read, "run", run)
    # then nobody hears of it
    assert store.read_stream(BOLT) == []
    # when it always does
    answers[:] = [Cancelled("conflict with recovery")]
    # then that is an error that is public
    with pytest.raises(TransactionConflict, match="5 times in a row"):
        store.read_stream(BOLT)


def test_expired_commands_are_deleted_a_few_at_a_time_the_oldest_first(
    store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given three expired commands, and one that is not
    monkeypatch.setattr("cqrs_celery.backends.sql.event_store.FORGET_ROWS", 2)
    for version, ttl_s in enumerate((-1, -3, -2, 60)):
        record = CommandRecord(f"c-{version}", "1", ttl_s)
        store.append([StreamAppend(BOLT, version, events(1))], command=record)
    # then two are deleted, then one, then none
    remaining = text("SELECT command_id FROM cqrs_commands ORDER BY command_id")
    for count, left in ((2, ["c-0", "c-3"]), (1, ["c-3"]), (0, ["c-3"])):
        assert store.forget_expired_commands() == count
        with store.engine.connect() as connection:
            assert connection.execute(remaining).scalars().all() == left


def test_a_purge_passes_over_commands_that_another_transaction_has_locked(
    store: PostgresqlEventStore,
) -> None:
    # given expired commands, of which another session holds one
    for version in range(3):
        record = CommandRecord(f"c-{version}", "1", -1)
        store.append([StreamAppend(BOLT, version, events(1))], command=record)
    locked = text("SELECT 1 FROM cqrs_commands WHERE command_id = 'c-1' FOR UPDATE")
    with store.engine.connect() as other:
        other.execute(locked)
        # when they are deleted, then it does not wait
        assert forget_within(store, 20) == 2
    # and the one that was held goes later
    assert store.forget_expired_commands() == 1


def forget_within(store: SqlEventStore, seconds: float) -> int | None:
    """Return how many expired commands a thread has deleted; None if it waits for a lock."""
    deleted: list[int] = []
    thread = threading.Thread(
        target=lambda: deleted.append(store.forget_expired_commands()), daemon=True
    )
    thread.start()
    thread.join(seconds)
    return deleted[0] if deleted else None


def test_two_purges_at_once_share_the_commands_and_neither_waits_for_a_frozen_one(
    store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given more expired commands than one purge deletes
    monkeypatch.setattr("cqrs_celery.backends.sql.event_store.FORGET_ROWS", 2)
    for version in range(5):
        record = CommandRecord(f"c-{version}", "1", -1)
        store.append([StreamAppend(BOLT, version, events(1))], command=record)
    change, is_frozen, thaw = store.rules.changed, threading.Event(), threading.Event()

    def freeze(connection: Connection, statement: Any) -> int:
        deleted = change(connection, statement)
        is_frozen.set()
        assert thaw.wait(30)
        return deleted

    # when a process is frozen right after the statement of its purge
    monkeypatch.setattr(store.rules, "changed", freeze)
    frozen = threading.Thread(target=store.forget_expired_commands)
    frozen.start()
    assert is_frozen.wait(30)
    monkeypatch.setattr(store.rules, "changed", change)
    # then another one deletes the others
    assert [forget_within(store, 20) for _ in range(3)] == [2, 1, 0]
    thaw.set()
    frozen.join(30)


def test_a_process_that_is_frozen_while_it_registers_a_subscriber_holds_up_nobody(
    store: PostgresqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a subscriber, and a process that is frozen right after it has changed it
    subscriber = Subscriber("task", ("a",), "queue", ("", "", "", "", ""))
    store.outbox.register("shop", subscriber)
    change, is_frozen, thaw = store.rules.changed, threading.Event(), threading.Event()

    def freeze(connection: Connection, statement: Any) -> int:
        changed = change(connection, statement)
        is_frozen.set()
        assert thaw.wait(30)
        return changed

    monkeypatch.setattr(store.rules, "changed", freeze)
    frozen = threading.Thread(target=store.outbox.register, args=("shop", subscriber))
    frozen.start()
    assert is_frozen.wait(30)
    monkeypatch.setattr(store.rules, "changed", change)
    # when another one registers it
    other = threading.Thread(
        target=store.outbox.register, args=("shop", subscriber._replace(topics=("a", "b")))
    )
    other.start()
    other.join(20)
    # then it does not wait
    assert not other.is_alive()
    assert [one.topics for one in store.outbox.subscribers("shop")] == [("a", "b")]
    thaw.set()
    frozen.join(30)


def test_a_stream_is_read_from_the_replica_unless_it_was_just_written_here(
    store: PostgresqlEventStore, database: str, postgres_url: str
) -> None:
    # given a replica that has nothing yet
    replica = open_event_store(postgres_url)
    assert isinstance(replica, PostgresqlEventStore)
    create_schema(replica)
    both = open_event_store(database, read_url=postgres_url)
    append(store, NUT, NO_STREAM, event())
    # then a stream that others wrote is not seen there
    assert list(both.read_stream(NUT)) == []
    assert list(both.read_all()) == []
    # nor does a relay wait for the replica
    assert isinstance(both, PostgresqlEventStore)
    assert [one.stream for one in both.outbox.read(0, 10)] == [NUT]
    # but one that was written here is, and one that was found to have changed
    append(both, BOLT, NO_STREAM, event())
    assert len(both.read_stream(BOLT)) == 1
    with pytest.raises(ConcurrencyError):
        append(both, NUT, NO_STREAM, event())
    assert len(both.read_stream(NUT)) == 1
    # and what decides about a commit is asked of the database itself
    append(store, NUT, 1, event(), command=command("c-1"))
    assert both.find_command("c-1") is not None
    both.close()
    replica.close()


def test_what_must_come_from_the_primary_does(
    store: PostgresqlEventStore, database: str, postgres_url: str
) -> None:
    # given a replica that has nothing yet
    replica = open_event_store(postgres_url)
    assert isinstance(replica, PostgresqlEventStore)
    create_schema(replica)
    replica.close()
    append(store, NUT, NO_STREAM, event())
    both = open_event_store(database, read_url=postgres_url)
    assert isinstance(both, PostgresqlEventStore)
    snapshots = both.snapshots()

    def found() -> list[int]:
        return [
            len(both.read_stream(NUT)),
            len((both.read_history(NUT) or NO_HISTORY).events),
            len(both.read_all()),
            len(snapshots.find_with_newer(NUT, 1)[1]),
        ]

    # when a replica may answer, then it does, and that is known
    with Reads() as reads:
        assert found() == [0, 0, 0, 0]
    assert reads.used_replica
    # and when it may not, then it does not
    with Reads(from_primary=True) as reads:
        assert found() == [1, 1, 1, 1]
    assert not reads.used_replica
    both.close()


def test_a_replica_that_is_away_is_named_and_the_primary_goes_on(
    store: PostgresqlEventStore, database: str
) -> None:
    append(store, NUT, NO_STREAM, event())
    port = free_port()
    both = open_event_store(database, read_url=f"postgresql://postgres@127.0.0.1:{port}/shop")
    assert isinstance(both, PostgresqlEventStore)
    with pytest.raises(StoreUnavailable, match=f"the replica postgresql://127.0.0.1:{port}/shop"):
        both.read_stream(NUT)
    assert len(both.outbox.read(0, 10)) == 1
    assert append(both, NUT, 1, event()).versions == (2,)
    both.close()


def test_a_forked_child_makes_connections_of_its_own(store: PostgresqlEventStore) -> None:
    append(store, BOLT, NO_STREAM, event())
    store.read_all()
    child = os.fork()
    if child == 0:
        try:
            append(store, BOLT, 1, event())
            store.read_all()
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert append(store, BOLT, 2, event()).versions == (3,)


#: Greenlets that wait for the server together.
GREENLETS = """
from gevent import monkey
monkey.patch_all()
import json, sys, time
import gevent
from sqlalchemy import text
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.testing.event_store_contract import append, event
from cqrs_celery.store.stream import StreamName

store = open_event_store(sys.argv[1])
def work(number):
    append(store, StreamName("shop", "Item", str(number)), 0, event())
    with store.engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(0.5)"))
start = time.monotonic()
gevent.joinall([gevent.spawn(work, number) for number in range(10)], raise_error=True)
print(json.dumps([time.monotonic() - start, len(store.read_all())]))
store.close()
"""


@pytest.mark.alone  # measures time
def test_greenlets_wait_for_the_server_together(store: PostgresqlEventStore, database: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", GREENLETS, database],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    took_s, count = json.loads(found.stdout)
    assert count == 10
    assert took_s < 4


def test_appends_that_cross_never_deadlock(store: PostgresqlEventStore) -> None:
    # given two writers that append to the same streams in opposite orders
    deadline = time.monotonic() + 1

    def write(streams: list[object]) -> None:
        while time.monotonic() < deadline:
            store.append([StreamAppend(stream, ANY_VERSION, events(1)) for stream in streams])  # type: ignore[arg-type]

    threads = [
        threading.Thread(target=write, args=(streams,)) for streams in ([BOLT, NUT], [NUT, BOLT])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # then the server saw none
    with store.engine.connect() as connection:
        found = connection.execute(
            text("SELECT deadlocks FROM pg_stat_database WHERE datname = 'contract'")
        )
        deadlocks = found.scalar()
    assert deadlocks is not None
    assert len(store.read_stream(BOLT)) == len(store.read_stream(NUT)) > 0
