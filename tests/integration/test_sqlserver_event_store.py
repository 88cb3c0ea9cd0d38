"""The SQL Server store keeps every store's contract, where CQRS_TEST_MSSQL_URL names a server.

The database is emptied for every test.
"""

from __future__ import annotations

import subprocess
import sys
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
from tests.integration.test_snapshot_stores import SqlContract
from tests.mssql import NEEDS_MSSQL, URL, drop_tables
from tests.nodes import REPOSITORY
from tests.sql_writers import Writers, slow_and_unsteady

pytestmark = [*NEEDS_MSSQL]


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


#: A process that makes the tables when it is told to.
MAKER = """
import sys
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.schema import check_schema, create_schema

store = open_event_store(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
create_schema(store)
print(check_schema(store))
"""


def test_four_processes_that_make_the_tables_at_once_all_succeed(
    store: SqlServerEventStore,
) -> None:
    # given a database without tables
    drop_tables(store)
    # when four processes make them at once
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKER, URL],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None
    # then all of them have
    for maker in makers:
        said, complained = maker.communicate(timeout=90)
        assert (maker.returncode, said) == (0, "0002\n"), complained


def test_16_writers_and_a_reader_skip_nothing_double_nothing_and_keep_the_order(
    store: SqlServerEventStore,
) -> None:
    writers = Writers(store, threads=16, commits=10)
    writers.run()
    writers.check()
