"""What only a correction of the URL can help, told from a server that is away for a while."""

from __future__ import annotations

import sqlite3

import psycopg
import psycopg2
import pytest
from sqlalchemy import create_engine

from cqrs_celery.backends.postgresql.event_store import PostgresqlEventStore
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.failures import Failure, meaning_of
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.backends.sqlserver.event_store import SqlServerEventStore
from cqrs_celery.errors import StoreUnavailable
from tests.odbc import Driver

POSTGRESQL = PostgresqlEventStore(create_engine("postgresql+psycopg2://h/d"))
SQLITE = SqliteEventStore(create_engine("sqlite:///events.db"))
SQL_SERVER = SqlServerEventStore(Driver().engine())

#: How libpq begins what a server said.
AT = 'connection to server at "127.0.0.1", port 5432 failed: '


class OdbcError(Exception):
    """An error of pyodbc's: SQLSTATE and text."""


WRONG = [
    (POSTGRESQL, psycopg2.OperationalError(f'{AT}FATAL:  database "shop" does not exist\n')),
    (POSTGRESQL, psycopg2.OperationalError(f'{AT}FATAL:  role "bob" does not exist\n')),
    (
        POSTGRESQL,
        psycopg.OperationalError(f'{AT}FATAL:  role "bob" does not exist'),
    ),
    (
        POSTGRESQL,
        psycopg2.OperationalError(f'{AT}FATAL:  password authentication failed for user "bob"\n'),
    ),
    (POSTGRESQL, psycopg2.OperationalError(f'{AT}FATAL:  no pg_hba.conf entry for host "::1"\n')),
    (POSTGRESQL, psycopg2.OperationalError(f"{AT}fe_sendauth: no password supplied\n")),
    (
        POSTGRESQL,
        psycopg2.OperationalError(
            'connection to server at "localhost" (::1), port 5432 failed: Connection refused\n'
            "\tIs the server running on that host and accepting TCP/IP connections?\n"
            f'{AT}FATAL:  database "shop" does not exist\n'
        ),
    ),
    (SQLITE, sqlite3.OperationalError("unable to open database file")),
    (SQLITE, sqlite3.DatabaseError("file is not a database")),
    (SQL_SERVER, OdbcError("IM002", "[IM002] Data source name not found (0) (SQLDriverConnect)")),
    (
        SQL_SERVER,
        OdbcError("01000", "[01000] Can't open lib 'ODBC Driver' : file not found (0)"),
    ),
    (SQL_SERVER, OdbcError("28000", "[28000] Login failed for user 'bob'. (18456) (SQLConnect)")),
]

AWAY = [
    (POSTGRESQL, psycopg2.OperationalError(f"{AT}Connection refused\n")),
    (POSTGRESQL, psycopg2.OperationalError(f"{AT}FATAL:  the database system is starting up\n")),
    (POSTGRESQL, psycopg2.OperationalError(f"{AT}FATAL:  sorry, too many clients already\n")),
    (POSTGRESQL, psycopg2.OperationalError('could not translate host name "h" to address')),
    (SQLITE, sqlite3.OperationalError("database is locked")),
    (SQLITE, sqlite3.OperationalError("disk I/O error")),
    (
        SQL_SERVER,
        OdbcError(
            "28000",
            "[28000] Login failed for user 'bob'. (18456) (SQLDriverConnect); [28000] Cannot open"
            " database requested by the login. (4060)",
        ),
    ),
    (SQL_SERVER, OdbcError("08001", "[08001] TCP Provider: Error code 0x2749 (10057)")),
    (SQL_SERVER, OdbcError("HYT00", "[HYT00] Login timeout expired (0) (SQLDriverConnect)")),
]


@pytest.mark.parametrize(("store", "error"), WRONG)
def test_what_no_waiting_helps_is_misconfigured(store: SqlEventStore, error: Exception) -> None:
    meaning = meaning_of(store, "read", error)
    assert isinstance(meaning, StoreUnavailable)
    assert meaning.is_misconfigured
    assert f"could not read: {store.where} can't be opened (" in str(meaning)
    # and the text has what the server said, not what another address did not
    assert "refused" not in str(meaning)


@pytest.mark.parametrize(("store", "error"), AWAY)
def test_what_is_away_for_a_while_is_not_misconfigured(
    store: SqlEventStore, error: Exception
) -> None:
    assert store.rules.failure(error) is Failure.AWAY
    meaning = meaning_of(store, "read", error)
    assert isinstance(meaning, StoreUnavailable)
    assert not meaning.is_misconfigured
