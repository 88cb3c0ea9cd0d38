"""What the SQL Server store sends, and how it takes the answers, which the tests give.

The store's contract runs against a server where CQRS_TEST_MSSQL_URL names one.
"""

from __future__ import annotations

from datetime import UTC, datetime

from cqrs_celery.backends.sqlserver.event_store import SqlServerEventStore
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import StreamName
from tests.odbc import Driver, Rows

ITEM = StreamName("shop", "Item", "1")
AT = datetime(2026, 1, 2, tzinfo=UTC)

#: The answer to the look for the number of a stream.
STREAM_5 = ("AS anon_1", Rows([(5,)]))


def open_store(driver: Driver) -> SqlServerEventStore:
    return SqlServerEventStore(driver.engine())


# Snapshots


def test_a_new_snapshot_is_inserted_under_its_stream_s_number() -> None:
    # given a stream without a snapshot
    driver = Driver([STREAM_5])
    # when one is put
    assert open_store(driver).snapshots().put(Snapshot(ITEM, 7, 1, AT, b"{}"))
    # then the table is not taken for one that numbers its rows (error 8106)
    assert not [one for one in driver.statements if "IDENTITY_INSERT" in one]
    assert driver.statements[-1].startswith("INSERT INTO cqrs_snapshots (stream_id, ")


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
