"""The rules of SQL Server: locks by hint, positions by row version, errors by number.

The streams of an append are locked by hints: SQL Server has no FOR UPDATE.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Delete,
    Select,
    Update,
    cast,
    column,
    func,
    text,
)
from sqlalchemy.dialects.mssql import ROWVERSION

from ...store.stream import StreamName
from ..sql.failures import Failure
from ..sql.rules import SqlRules
from ..sql.tables import commands, events, streams

#: Locks each row that is read, and the place of each that is missing, until the transaction ends.
#: Always by seeks in an index: a scan, the cheaper plan for a small table, would lock every stream,
#: and two plans that take locks in two orders could deadlock.
LOCK_HINT: Final = "WITH (UPDLOCK, HOLDLOCK, ROWLOCK, FORCESEEK)"

#: Locks the rows that are read, but for those that are locked, which are passed over.
SKIP_HINT: Final = "WITH (UPDLOCK, READPAST, ROWLOCK)"

#: A column that the other engines do not have. It knows its table, for statements of nothing else.
ROW_VERSION: Final[ColumnElement[Any]] = column("row_version", ROWVERSION(), _selectable=events)  # type: ignore[no-untyped-call]

#: A lock was not free in time.
LOCK_TIMEOUT: Final = 1222

#: There is no such login, or its password is another one.
LOGIN_FAILED: Final = 18456

#: What SQL Server's numbers of errors mean.
_FAILURES: Final = {
    # A unique key.
    2627: Failure.TAKEN,
    2601: Failure.TAKEN,
    # A deadlock, a lock that was not granted in time, a row that has changed since the snapshot.
    1205: Failure.BEATEN,
    LOCK_TIMEOUT: Failure.BEATEN,
    3960: Failure.BEATEN,
    # A table, a column or a procedure.
    208: Failure.SCHEMA,
    207: Failure.SCHEMA,
    2812: Failure.SCHEMA,
    # The database can't be opened, or the login not be served yet.
    4060: Failure.AWAY,
    4221: Failure.AWAY,
    18401: Failure.AWAY,
    # The server is paused, shuts down, or has ended the session.
    596: Failure.AWAY,
    6005: Failure.AWAY,
    17142: Failure.AWAY,
    # A replica is not, or no longer, the one to write to.
    976: Failure.AWAY,
    983: Failure.AWAY,
    3906: Failure.AWAY,
    # Azure: the database moves, or is busy.
    10928: Failure.AWAY,
    10929: Failure.AWAY,
    40197: Failure.AWAY,
    40501: Failure.AWAY,
    40613: Failure.AWAY,
    49918: Failure.AWAY,
    49919: Failure.AWAY,
    49920: Failure.AWAY,
}

#: What SQLSTATE means where no number says more.
_STATES: Final = {
    "40001": Failure.BEATEN,
    "42S02": Failure.SCHEMA,
    "42S22": Failure.SCHEMA,
    "HYT00": Failure.AWAY,
    "HYT01": Failure.AWAY,
    "IM002": Failure.AWAY,
    "28000": Failure.AWAY,
    "01000": Failure.AWAY,
}

#: The number of one error; an ODBC driver writes it behind the text, which may have numbers too.
_NUMBER: Final = re.compile(r"\((\d+)\)(?= \(SQL|; \[|$)")


class SqlServerRules(SqlRules):
    """The rules of SQL Server.

    Events are inserted one by one: in which order the rows of one INSERT get their row versions is
    not promised, neither for VALUES nor for SELECT … ORDER BY, which orders numbers of IDENTITY
    alone.
    """

    events_per_insert = 1

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means, by SQL Server's numbers in its text, or SQLSTATE."""
        for number in _numbers_of(error):
            found = _FAILURES.get(number)
            if found is not None:
                return found
        state = str(error.args[0]) if len(error.args) > 1 else ""
        if state.startswith("08"):
            return Failure.AWAY
        return _STATES.get(state, Failure.OTHER)

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL is to blame: its driver is not there, or its login refused.

        A database that can't be opened may be recovering, and refuses logins meanwhile.
        """
        state = str(error.args[0]) if len(error.args) > 1 else ""
        if state == "IM002" or "Can't open lib" in str(error):
            return True
        return state == "28000" and set(_numbers_of(error)) <= {LOGIN_FAILED}

    def is_deadlock(self, error: BaseException) -> bool:
        """Return whether the database ended the transaction in a statement of the application's.

        A lock that was not free in time is the application's own choice, by LOCK_TIMEOUT.
        """
        return super().is_deadlock(error) and LOCK_TIMEOUT not in _numbers_of(error)

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the server's clock, in milliseconds since 1970."""
        return func.datediff_big(text("ms"), text("'19700101'"), func.sysutcdatetime())

    def key(self, stream: StreamName) -> str:
        """Return the hash of a stream's name, which suits short indexes."""
        return hashlib.sha256(stream.key.encode()).hexdigest()

    def position(self) -> ColumnElement[int]:
        """Return the position of an event: its row version, as a number."""
        return cast(ROW_VERSION, BigInteger)

    def order(self) -> ColumnElement[Any]:
        """Return the row version, which has an index."""
        return ROW_VERSION

    def after(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands behind a position."""
        # The column itself is compared: what is cast can't be sought in its index.
        return self.order() > row_version(position)

    def up_to(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands at a position or in front of it."""
        return self.order() <= row_version(position)

    def locked(self, statement: Select[Any]) -> Select[Any]:
        """Return a statement that locks the streams that it reads until the transaction's end."""
        return statement.with_hint(streams, LOCK_HINT, "mssql")

    def delete_unlocked(self, first: Select[Any], is_expired: ColumnElement[bool]) -> Delete:
        """Return a statement that deletes commands, and passes over those that are locked."""
        first = first.with_hint(commands, SKIP_HINT, "mssql")
        statement = super().delete_unlocked(first, is_expired)
        return statement.with_hint(SKIP_HINT, dialect_name="mssql")

    def changed(self, connection: Connection, statement: Update | Delete) -> int:
        """Run a statement that changes rows; returns how many it has changed.

        The rows themselves are counted: where NOCOUNT is on, by the server's or the login's own
        options, a driver says -1.
        """
        keys = statement.table.primary_key
        return len(connection.execute(statement.returning(*keys)).all())


def row_version(position: int) -> bytes:
    """Return the row version that is a position."""
    return position.to_bytes(8, "big")


def _numbers_of(error: BaseException) -> list[int]:
    """Return SQL Server's numbers in the text of a driver's error."""
    return [int(number) for number in _NUMBER.findall(str(error.args[-1]) if error.args else "")]
