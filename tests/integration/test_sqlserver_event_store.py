"""The SQL Server store keeps every store's contract, where CQRS_TEST_MSSQL_URL names a server.

The database is emptied for every test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sql.snapshot_store import SqlSnapshotStore
from cqrs_celery.backends.sql.tables import metadata
from cqrs_celery.backends.sqlserver.event_store import SqlServerEventStore
from cqrs_celery.testing.event_store_contract import EventStoreContract
from cqrs_celery.testing.snapshot_store_contract import SnapshotsBesideEventsContract
from tests.conftest import NO_MSSQL
from tests.integration.test_snapshot_stores import SqlContract
from tests.sql_writers import Writers, slow_and_unsteady

URL = os.environ.get("CQRS_TEST_MSSQL_URL", "")

# One database for all of them, also where several processes run tests.
pytestmark = [pytest.mark.skipif(not URL, reason=NO_MSSQL), pytest.mark.alone]


@pytest.fixture
def store() -> Iterator[SqlServerEventStore]:
    store = open_event_store(URL, lease_check=slow_and_unsteady(0.002))
    assert isinstance(store, SqlServerEventStore)
    create_schema(store)
    with store.engine.begin() as connection:
        for name in metadata.tables:
            connection.execute(text(f"DELETE FROM {name}"))
    yield store
    store.close()


class TestSqlServerEventStore(EventStoreContract):
    has_gapless_positions = False

    @pytest.fixture
    def store(self, store: SqlServerEventStore) -> SqlServerEventStore:
        return store


class TestSqlServerSnapshotStore(SqlContract):
    @pytest.fixture
    def snapshots(self, store: SqlServerEventStore) -> SqlSnapshotStore:
        return store.snapshots()


class TestSqlServerSnapshotsBesideEvents(SnapshotsBesideEventsContract):
    @pytest.fixture
    def store(self, store: SqlServerEventStore) -> SqlServerEventStore:
        return store


def test_16_writers_and_a_reader_skip_nothing_double_nothing_and_keep_the_order(
    store: SqlServerEventStore,
) -> None:
    writers = Writers(store, threads=16, commits=10)
    writers.run()
    writers.check()
