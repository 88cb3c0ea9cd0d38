"""The SQL Server that CQRS_TEST_MSSQL_URL names, or a stand-in, for tests.

Its tests are skipped where there is none. They share one database, which they empty, so they run
with nothing beside them.
"""

from __future__ import annotations

import os

import pytest
from sqlalchemy import text

from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import VERSION_TABLE, create_schema
from cqrs_celery.backends.sql.tables import metadata
from tests.conftest import NO_MSSQL

URL = os.environ.get("CQRS_TEST_MSSQL_URL", "")

#: For a test that needs the server.
NEEDS_MSSQL = (pytest.mark.skipif(not URL, reason=NO_MSSQL), pytest.mark.alone)


def drop_tables(store: SqlEventStore) -> None:
    """Drop all tables of the event store's."""
    with store.engine.begin() as connection:
        for name in (*metadata.tables, VERSION_TABLE):
            connection.execute(text(f"DROP TABLE IF EXISTS {name}"))


def make_tables_anew(store: SqlEventStore) -> None:
    """Make the tables, empty, of a store that tells itself from those before it."""
    drop_tables(store)
    create_schema(store)
