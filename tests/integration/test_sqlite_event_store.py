"""The SQLite store keeps the contract that every store keeps; what is its own comes after it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import check_schema, create_schema
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.errors import ConcurrencyError, LeaseLost, SchemaError, StoreUnavailable
from cqrs_celery.store.events import CommandRecord, Lease, StreamAppend
from cqrs_celery.store.relay_ports import LeaseCheck
from cqrs_celery.store.stream import NO_STREAM
from cqrs_celery.testing.event_store_contract import (
    BOLT,
    NUT,
    EventStoreContract,
    append,
    event,
    events,
)
from tests.nodes import REPOSITORY
from tests.sql_writers import LEASE, Writers, slow_and_unsteady

Opened = Callable[..., SqliteEventStore]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'events.db'}"


@pytest.fixture
def opened(url: str) -> Iterator[Opened]:
    stores = []

    def open_it(lease_check: LeaseCheck | None = None) -> SqliteEventStore:
        store = open_event_store(url, lease_check=lease_check)
        assert isinstance(store, SqliteEventStore)
        stores.append(store)
        create_schema(store)
        return store

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opened) -> SqliteEventStore:
    return opened()


class TestSqliteEventStore(EventStoreContract):
    @pytest.fixture
    def store(self, opened: Opened) -> SqliteEventStore:
        return opened()


class PortableStore(SqliteEventStore):
    """Append with the statements that every engine knows."""

    _append_in_own_transaction = SqlEventStore._append_in_own_transaction
    write = SqlEventStore.write_portably


class TestThePortableAppendOnSqlite(EventStoreContract):
    @pytest.fixture
    def store(self, opened: Opened) -> PortableStore:
        return PortableStore(opened().engine)


@pytest.mark.parametrize("has_rows", [False, True])
def test_8_writers_and_a_reader_skip_nothing_double_nothing_and_keep_the_order(
    opened: Opened, *, has_rows: bool
) -> None:
    # given a store whose commits take their time, and one in five is given up
    store = opened(lease_check=slow_and_unsteady(0.002))
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE own_rows (id TEXT)"))
    # when 8 writers write, with rows of their own or without, and a reader follows them
    writers = Writers(store, threads=8, commits=25, has_rows=has_rows)
    writers.run()
    # then
    writers.check()


def test_a_write_left_open_elsewhere_does_not_stall_the_reader(
    store: SqliteEventStore, tmp_path: Path
) -> None:
    # given events, and a write transaction that somebody leaves open
    append(store, BOLT, NO_STREAM, *events(3))
    with closing(sqlite3.connect(tmp_path / "events.db")) as other:
        other.execute("CREATE TABLE own_rows (id TEXT)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO own_rows VALUES ('1')")
        # then the reader reads on
        assert len(store.read_all()) == 3
        assert len(store.read_stream(BOLT)) == 3


def test_a_file_without_tables_is_one_clear_error(url: str) -> None:
    store = open_event_store(url)
    assert isinstance(store, SqliteEventStore)
    for use in (
        lambda: append(store, BOLT, NO_STREAM, event()),
        lambda: store.read_all(),
        lambda: store.read_stream(BOLT),
        lambda: store.find_command("c-1"),
        lambda: check_schema(store),
    ):
        with pytest.raises(SchemaError, match="cqrs schema create") as refused:
            use()
        assert isinstance(refused.value.__cause__, Exception)


def test_a_file_that_can_not_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    store = open_event_store(f"sqlite:///{tmp_path}/missing/events.db")
    with pytest.raises(StoreUnavailable, match=r"missing/events\.db can't be opened") as failed:
        store.read_all()
    assert failed.value.is_misconfigured


def test_tables_that_are_there_are_left_alone(store: SqliteEventStore) -> None:
    append(store, BOLT, NO_STREAM, event())
    assert create_schema(store) == check_schema(store) == "0002"
    assert len(store.read_all()) == 1


def test_an_append_under_a_lost_lease_is_refused_and_writes_nothing(opened: Opened) -> None:
    held = [True]
    store = opened(lease_check=lambda lease: held[0])
    store.append([StreamAppend(BOLT, NO_STREAM, events(1))], lease=LEASE)
    held[0] = False
    with pytest.raises(LeaseLost):
        store.append([StreamAppend(BOLT, 1, events(1))], lease=LEASE)
    assert len(store.read_all()) == 1


def test_rows_and_events_are_written_together_or_not_at_all(store: SqliteEventStore) -> None:
    # given a table of the application's own
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE own_rows (id TEXT)"))
    # when one transaction succeeds, and one is stale
    good = store.begin()
    good.connection.execute(text("INSERT INTO own_rows VALUES ('1')"))
    good.append([StreamAppend(BOLT, NO_STREAM, events(1))])
    stale = store.begin()
    stale.connection.execute(text("INSERT INTO own_rows VALUES ('2')"))
    with pytest.raises(ConcurrencyError):
        stale.append([StreamAppend(BOLT, NO_STREAM, events(1))])
    # then there is one row and one event
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM own_rows")).scalar() == 1
    assert len(store.read_all()) == 1


def test_a_command_is_remembered_for_its_time_to_live(store: SqliteEventStore) -> None:
    over = CommandRecord("c-1", '"over"', ttl_s=-1)
    store.append([StreamAppend(BOLT, NO_STREAM, events(1))], command=over)
    assert store.find_command("c-1") is None
    store.append([StreamAppend(BOLT, 1, events(1))], command=CommandRecord("c-1", '"now"', 60))
    found = store.find_command("c-1")
    assert found is not None
    assert found.outcome == '"now"'
    store.append([StreamAppend(NUT, 0, events(1))], command=CommandRecord("c-2", "1", -1))
    assert store.forget_expired_commands() == 1


def test_expired_commands_are_deleted_a_few_at_a_time_the_oldest_first(
    store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("number", [-1, -(2**64), 2**63 - 1, 2**63, 2**64])
def test_a_number_that_no_database_holds_is_no_error_where_events_are_read(
    store: SqliteEventStore, number: int
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


def replace_by(file: Path, other: Path) -> None:
    """Move a file to the place of a database's, as a backup is put back while processes run."""
    for path in (Path(f"{file}-wal"), Path(f"{file}-shm"), file):
        path.unlink(missing_ok=True)
    other.replace(file)


def backed_up(store: SqliteEventStore) -> Path:
    """Return a copy of the database, with what it has now."""
    path = store.file.with_name("backup.db")
    with closing(sqlite3.connect(store.file)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
    return path


def test_a_file_that_is_replaced_is_opened_anew_and_nothing_is_written_to_the_old_one(
    store: SqliteEventStore,
) -> None:
    # given a backup, connections in the pool, and an event of after it
    append(store, BOLT, NO_STREAM, event())
    backup = backed_up(store)
    append(store, BOLT, 1, event())
    transaction = store.begin()
    transaction.rollback()
    # when the backup is put in the file's place
    replace_by(store.file, backup)
    # then what is read is the backup's, and what is committed is in the new file
    assert len(store.read_stream(BOLT)) == 1
    append(store, BOLT, 1, event())
    with closing(sqlite3.connect(store.file)) as other:
        assert other.execute("SELECT count(*) FROM cqrs_events").fetchone() == (2,)


def test_a_commit_to_a_file_that_is_replaced_meanwhile_is_made_again_in_the_new_one(
    opened: Opened,
) -> None:
    # given a store whose file is replaced between an append's statements and its commit
    backups: list[Path] = []

    def replace(lease: Lease) -> bool:
        if backups:
            backup = backups.pop()
            replace_by(backup.with_name("events.db"), backup)
        return True

    store = opened(lease_check=replace)
    backups.append(backed_up(store))
    # when events are appended
    store.append([StreamAppend(BOLT, NO_STREAM, events(2))], lease=LEASE)
    # then they are in the new file
    with closing(sqlite3.connect(store.file)) as other:
        assert other.execute("SELECT count(*) FROM cqrs_events").fetchone() == (2,)
    # and rows of one's own are not said to be committed
    backups.append(backed_up(store))
    transaction = store.begin()
    transaction.connection.execute(text("CREATE TABLE own_rows (id TEXT)"))
    with pytest.raises(StoreUnavailable, match="what was committed is lost"):
        transaction.append([StreamAppend(NUT, NO_STREAM, events(1))], lease=LEASE)
    assert store.read_stream(NUT) == []


def test_while_a_file_is_gone_none_is_made_and_the_store_goes_on_once_it_is_there(
    store: SqliteEventStore,
) -> None:
    # given a store whose file is removed
    append(store, BOLT, NO_STREAM, event())
    backup = backed_up(store)
    store.file.unlink()
    # when it is used, then that is tried again later, and no empty file is made
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="is gone"):
            append(store, BOLT, 1, event())
        with pytest.raises(StoreUnavailable, match="is gone"):
            store.read_stream(BOLT)
    assert not store.file.exists()
    # and when it is back, the store goes on
    replace_by(store.file, backup)
    append(store, BOLT, 1, event())
    assert len(store.read_stream(BOLT)) == 2


def test_a_backup_that_is_restored_into_the_file_is_seen_at_once(store: SqliteEventStore) -> None:
    # given a backup, and an event of after it
    append(store, BOLT, NO_STREAM, event())
    backup = backed_up(store)
    append(store, BOLT, 1, event())
    # when it is written into the file by SQLite's own means
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(store.file)) as file:
        source.backup(file)
    # then the store has what the backup has
    assert len(store.read_stream(BOLT)) == 1
    append(store, BOLT, 1, event())
    assert len(store.read_all()) == 2


def test_a_database_that_is_made_anew_has_another_id(
    store: SqliteEventStore, tmp_path: Path
) -> None:
    # given a store whose id is known
    first = store.outbox.store_id
    # when its file is replaced by one of another store
    other = open_event_store(f"sqlite:///{tmp_path / 'other.db'}")
    assert isinstance(other, SqliteEventStore)
    create_schema(other)
    second = other.outbox.store_id
    other.close()
    replace_by(store.file, tmp_path / "other.db")
    # then it has that one's, from the next use on
    assert store.read_all() == []
    assert store.outbox.store_id == second != first


def test_a_forked_child_makes_connections_of_its_own(store: SqliteEventStore) -> None:
    append(store, BOLT, NO_STREAM, event())
    child = os.fork()
    if child == 0:
        try:
            append(store, BOLT, 1, event())
            os._exit(0)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert append(store, BOLT, 2, event()).versions == (3,)


#: A process that forks while two threads use SQLite, and make and drop connections.
FORKING = """
import os, sys, threading, time
from cqrs_celery.backends.opening import open_event_store

store, rounds = open_event_store(sys.argv[1]), int(sys.argv[2])
def use():
    while True:
        store.close()
        store.read_all()
for _ in range(2):
    threading.Thread(target=use, daemon=True).start()
for _ in range(rounds):
    child = os.fork()
    if child == 0:
        store.read_all()
        os._exit(0)
    deadline = time.monotonic() + 20
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            sys.exit("the child hangs")
        time.sleep(0.001)
os._exit(0)
"""


def test_a_process_that_forks_while_threads_use_the_store_has_children_that_can(
    opened: Opened, url: str
) -> None:
    opened()
    forking = [sys.executable, "-c", FORKING, url, "100"]
    ended = subprocess.run(forking, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_transaction_whose_connection_was_lost_says_that_the_store_is_away(
    store: SqliteEventStore,
) -> None:
    for end in (
        lambda one: one.append([StreamAppend(BOLT, NO_STREAM, events(1))]),
        lambda one: one.commit(),
    ):
        transaction = store.begin()
        driver: Any = transaction.connection.connection.dbapi_connection
        driver.close()
        with pytest.raises(StoreUnavailable):
            end(transaction)
        transaction.rollback()
    # and what is used next is whole
    assert append(store, BOLT, NO_STREAM, event()).versions == (1,)
