"""What the SQL Server store sends, and how it takes the answers, which the tests give.

The store's contract runs against a server where CQRS_TEST_MSSQL_URL names one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from cqrs_celery.backends.sql.connecting import meaning_of_statement
from cqrs_celery.backends.sql.failures import Failure
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sqlserver.event_store import SqlServerEventStore
from cqrs_celery.errors import StoreUnavailable, TransactionConflict
from cqrs_celery.store.events import START, Subscriber
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import StreamName
from cqrs_celery.testing.event_store_contract import append, event, events
from tests.odbc import Count, Driver, Error, Rows

ITEM = StreamName("shop", "Item", "1")
AT = datetime(2026, 1, 2, tzinfo=UTC)

SUBSCRIBER = Subscriber("shop.till", ("shop.paid",), "till", ("", "", "", "", ""))

#: The answer to the look for the number of a stream.
STREAM_5 = ("AS anon_1", Rows([(5,)]))


def open_store(driver: Driver) -> SqlServerEventStore:
    return SqlServerEventStore(driver.engine())


def written(driver: Driver) -> list[str]:
    """Return the statements but those by which a connection goes back as it was."""
    return [one for one in driver.statements if not one.startswith("SET TRANSACTION")]


# Snapshots


def test_a_new_snapshot_is_inserted_under_its_stream_s_number() -> None:
    # given a stream without a snapshot
    driver = Driver([STREAM_5])
    # when one is put
    assert open_store(driver).snapshots().put(Snapshot(ITEM, 7, 1, AT, b"{}"))
    # then the table is not taken for one that numbers its rows (error 8106)
    assert not [one for one in driver.statements if "IDENTITY_INSERT" in one]
    assert written(driver)[-1].startswith("INSERT INTO cqrs_snapshots (stream_id, ")


# Keys: SQL Server takes `cmd ` for `cmd`


def test_no_key_ends_with_a_space_and_no_two_become_one() -> None:
    # given ids that SQL Server would take for one, and those that a careless escape would make one
    ids = ["cmd", "cmd ", "cmd  ", "cmd\\", "cmd \\", "cmd\\ ", "cmd\\\\", " ", "\\", ""]
    driver = Driver()
    store = open_store(driver)
    # when they are looked for
    for command_id in ids:
        assert store.find_command(command_id) is None
    # then what the server gets differs before a space at the end
    sent = [parameters[0] for _, parameters in driver.asked]
    assert len({key.rstrip(" ") for key in sent}) == len(ids)
    assert sent[0] == "cmd"


def test_a_subscriber_s_name_is_such_a_key() -> None:
    driver = Driver([("OUTPUT", Rows())])
    open_store(driver).outbox.register("shop", SUBSCRIBER._replace(name="shop.till "))
    assert [one.split()[0] for one in written(driver)] == ["UPDATE", "INSERT", "DELETE"]
    assert all("shop.till \\" in parameters for _, parameters in driver.asked[:3])


def test_snapshots_of_another_type_by_spaces_alone_are_not_listed() -> None:
    found = Rows([(1, "shop", "Item", "1"), (2, "shop", "Item ", "2")])
    snapshots = open_store(Driver([("SELECT TOP 500", found)])).snapshots()
    assert list(snapshots.streams("shop", "Item")) == [ITEM]


# Locking

ROWS_OF_APPEND = [
    ("SELECT cqrs_streams.stream_key", Rows([(SqlServerEventStore.rules.key(ITEM), 5, 0)])),
    ("AS position \nFROM", Rows([(2_001,)])),
]


def test_a_stream_s_key_is_bound_as_its_column_is_so_that_its_index_can_be_sought() -> None:
    # given a key that is a CHAR: bound as NVARCHAR, the column would be converted, not the key
    driver = Driver(ROWS_OF_APPEND)
    store = open_store(driver)
    append(store, ITEM, 0, event())
    store.read_stream(ITEM)
    # then it is a VARCHAR wherever a stream is looked for
    looks = [
        types[0][0]
        for statement, types in zip(driver.statements, driver.types, strict=True)
        if "stream_key" in statement
    ]
    assert looks == [Driver.SQL_VARCHAR] * 2


# The order of positions


def test_the_events_of_an_append_are_inserted_one_by_one() -> None:
    # Which row of an INSERT of several gets the lower row version, SQL Server does not promise.
    driver = Driver(ROWS_OF_APPEND)
    new = events(3)
    # when three events are appended
    assert append(open_store(driver), ITEM, 0, *new) == (2_001, (3,))
    # then there are three statements, in the order of the events
    inserts = [asked for asked in driver.asked if asked[0].startswith("INSERT INTO cqrs_events")]
    assert [parameters[1:3] for _, parameters in inserts] == [
        (version, one.event_id) for version, one in enumerate(new, 1)
    ]


# Reading everything


def test_everything_is_read_from_the_database_itself_where_there_is_a_replica() -> None:
    # given a store with a replica, which knows nothing of the transactions that are open
    driver, replica = Driver(), Driver()
    store = SqlServerEventStore(driver.engine(), read_engine=replica.engine())
    # when everything is read, and a stream
    assert store.read_all(after_position=258, limit=10) == []
    assert store.read_stream(ITEM) == []
    # then the replica is asked for the stream alone; a position is bound as a row version
    [(statement, parameters)] = driver.asked
    assert "MIN_ACTIVE_ROWVERSION()" in statement
    assert parameters == (10, b"\0\0\0\0\0\0\1\2")
    assert len(replica.asked) == 1


def test_the_last_position_and_what_is_pending_are_looked_up_in_the_table() -> None:
    driver = Driver(
        [
            ("TOP 1 CAST", [Rows(), Rows([(2_001,)])]),
            ("count(*)", Rows([(3, AT.replace(tzinfo=None))])),
        ]
    )
    outbox = open_store(driver).outbox
    assert outbox.last_position() == 0
    assert outbox.last_position() == 2_001
    assert outbox.pending(1_998) == (3, AT)
    assert all("FROM cqrs_events" in one for one in driver.statements)


# NOCOUNT: the driver says -1 of every statement that changes rows


@pytest.mark.parametrize(
    ("found", "sent"),
    [([], ["UPDATE", "INSERT", "DELETE"]), ([("x",)], ["UPDATE", "DELETE"])],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.outbox.register("shop", SUBSCRIBER),
    ],
    ids=["register"],
)
def test_what_is_not_there_is_inserted_whatever_is_said_of_the_number_of_rows(
    write: Callable[[SqlServerEventStore], object], found: list[tuple[str]], sent: list[str]
) -> None:
    # given a row, or none, and a server that says nothing of how many rows were changed
    driver = Driver([("OUTPUT", Rows(found)), ("UPDATE", Count(-1)), ("INSERT", Count(-1))])
    # when it is written
    write(open_store(driver))
    # then it is changed, or else inserted
    assert [one.split()[0] for one in written(driver)] == sent


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_snapshot_is_said_to_be_kept_or_removed_if_it_was(is_changed: bool) -> None:
    # given a snapshot that another one may have replaced or removed by then
    there = ("SELECT cqrs_snapshots.version", Rows([(8,)]))
    changed = ("OUTPUT", Rows([(5,)] if is_changed else []))
    driver = Driver([STREAM_5, there, changed, ("UPDATE", Count(-1)), ("DELETE", Count(-1))])
    snapshots = open_store(driver).snapshots()
    # then what is said is not the driver's -1
    assert snapshots.put(Snapshot(ITEM, 7, 1, AT, b"{}")) is is_changed
    assert snapshots.remove(ITEM) is is_changed


# A deadlock's victim (1205)

DEADLOCK = Error("40001", "[40001] [Microsoft][SQL Server]was deadlocked (1205) (SQLExecDirectW)")

#: What a store does in a transaction of its own, or by a single statement, and what it ends with.
WORK: dict[str, tuple[str, Callable[[SqlServerEventStore], object]]] = {
    "save_checkpoint": (
        "UPDATE",
        lambda store: store.leadership("shop", broker="redis").save_checkpoint(START),
    ),
    "register": ("UPDATE", lambda store: store.outbox.register("shop", SUBSCRIBER)),
    "subscribers": ("SELECT", lambda store: store.outbox.subscribers("shop")),
    "read_all": ("SELECT", lambda store: store.read_all()),
    "read_stream": ("SELECT", lambda store: store.read_stream(ITEM)),
    "find_command": ("SELECT", lambda store: store.find_command("c-1")),
    "forget_expired_commands": ("DELETE", lambda store: store.forget_expired_commands()),
    "put_snapshot": ("SELECT", lambda s: s.snapshots().put(Snapshot(ITEM, 7, 1, AT, b"{}"))),
    "remove_snapshot": ("DELETE", lambda store: store.snapshots().remove(ITEM)),
}


@pytest.mark.parametrize(("text", "work"), WORK.values(), ids=WORK)
def test_what_the_database_ended_for_another_transaction_is_done_again(
    text: str, work: Callable[[SqlServerEventStore], object]
) -> None:
    # given a statement that is a deadlock's victim twice
    driver = Driver([(text, [DEADLOCK, DEADLOCK, Rows()])])
    # then it is sent three times, and nobody hears of it
    work(open_store(driver))
    assert len([one for one in driver.statements if text in one]) >= 3


@pytest.mark.parametrize(("text", "work"), WORK.values(), ids=WORK)
def test_what_the_database_always_ends_is_one_public_error(
    text: str, work: Callable[[SqlServerEventStore], object]
) -> None:
    driver = Driver([(text, DEADLOCK)])
    with pytest.raises(TransactionConflict, match=r"5 times in a row .*1205.* Repeat it") as raised:
        work(open_store(driver))
    assert "mssql://h/d" in str(raised.value)


def test_a_deadlock_in_the_application_s_own_statement_is_a_conflict_a_timeout_is_not() -> None:
    store = open_store(Driver([]))
    timeout = Error(
        "HYT00", "[HYT00] [Microsoft][SQL Server]Lock request time out (1222) (SQLExec)"
    )
    assert isinstance(meaning_of_statement(store, DEADLOCK), TransactionConflict)
    assert store.rules.failure(timeout) is Failure.BEATEN
    assert meaning_of_statement(store, timeout) is None


# Making the tables


def test_migrations_run_under_a_lock_of_the_schema_s_that_ends_with_the_transaction() -> None:
    # given a database without tables
    made = ("INSERT INTO cqrs_schema", Rows([("0001",)]))
    driver = Driver([("sp_getapplock", Rows([(0,)])), made])
    # when they are made
    create_schema(open_store(driver))
    # then the lock is taken first, in a transaction that a look at a table has begun
    lock, *others = driver.statements
    assert lock.index("FROM sys.schemas") < lock.index("sp_getapplock")
    assert "@LockOwner = 'Transaction'" in lock
    assert "SCHEMA_NAME()" in lock
    assert lock.index("SET NOCOUNT OFF") < lock.index("SELECT @answer")
    assert [one for one in others if "CREATE TABLE cqrs_events" in one]
    # and they are committed once
    assert driver.ends[0] == "commit"


def test_tables_that_another_process_makes_without_an_end_are_one_clear_error() -> None:
    driver = Driver([("sp_getapplock", Rows([(-1,)]))])
    with pytest.raises(StoreUnavailable, match=r"another process .* 60 s .* repeat"):
        create_schema(open_store(driver))
    assert len(driver.asked) == 1
    assert "commit" not in driver.ends
