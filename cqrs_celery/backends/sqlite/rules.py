"""The rules of SQLite: one writer at a time, no server, and its own functions for times."""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, Dialect, Select, cast, func

from ..sql.failures import Failure
from ..sql.rules import SqlRules

#: The Julian day at the beginning of 1970, and the milliseconds of a day.
JULIAN_1970: Final = 2440587.5
DAY_MS: Final = 86_400_000


class SqliteRules(SqlRules):
    """The rules of SQLite."""

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means."""
        said = str(error)
        if isinstance(error, sqlite3.IntegrityError):
            return Failure.TAKEN if "UNIQUE" in said else Failure.OTHER
        if isinstance(error, sqlite3.OperationalError):
            is_missing = said.startswith(("no such table", "no such column"))
            return Failure.SCHEMA if is_missing else Failure.AWAY
        return Failure.AWAY if isinstance(error, sqlite3.DatabaseError) else Failure.OTHER

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL leads to no folder, or to a file of another kind."""
        return str(error) in ("unable to open database file", "file is not a database")

    def is_away(self, error: BaseException) -> bool:
        """Return False: there is no server, and bad SQL and locks are one error to the driver."""
        return False

    def is_deadlock(self, error: BaseException) -> bool:
        """Return False: there is one writer at a time."""
        return False

    def serves(self, connection: Any, dialect: Dialect) -> bool:
        """Return True: a file has no server that could go away."""
        return True

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the machine's clock, in milliseconds since 1970."""
        return cast((func.julianday("now") - JULIAN_1970) * DAY_MS, BigInteger)

    def on_begin(self, connection: Connection) -> None:
        """Become the writer at once."""
        self.lock_append(connection)

    def lock_append(self, connection: Connection) -> None:
        """Become the writer, if this transaction is not yet."""
        # A transaction that began with a read could not become the writer's once another one wrote.
        driver: Any = connection.connection.dbapi_connection
        if not driver.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def locked(self, statement: Select[Any]) -> Select[Any]:
        """Return the statement as it is: the writer has the whole file locked."""
        return statement
