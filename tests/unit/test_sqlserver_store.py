"""What the SQL Server store sends, and how it takes the answers; a driver of the tests' own answers.

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
