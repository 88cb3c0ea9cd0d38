"""Keep events in SQL Server.

A position is the row version of an event, which the database counts for all of its tables: it
increases, with numbers left out wherever anything else was written. A reader stops below the oldest
row version of a transaction that has not ended, so it sees no event before one that may still come.
A write transaction that is left open anywhere in the database therefore holds up the relay, unlike
on PostgreSQL.

The streams of an append are locked by hints: SQL Server has no FOR UPDATE.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Select, and_, cast, func, literal_column, text

from ...store.stream import StreamName
from ..sql.event_store import SqlEventStore
from ..sql.failures import Failure
from ..sql.tables import streams

#: Locks each row that is read, and the place of each that is missing, until the transaction ends.
LOCK_HINT: Final = "WITH (UPDLOCK, HOLDLOCK, ROWLOCK)"

_ROW_VERSION: Final[ColumnElement[Any]] = literal_column("cqrs_events.row_version")

#: SQL Server's numbers of errors, by what they mean.
_TAKEN: Final = ("2627", "2601")
_BEATEN: Final = ("1205", "3960", "1222")
_SCHEMA: Final = ("208", "207", "2812")


class SqlServerEventStore(SqlEventStore):
    """Be an EventStore in SQL Server, from version 2016."""

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means, by SQLSTATE and SQL Server's number in its text."""
        arguments = list(error.args)
        state = str(arguments[0]) if len(arguments) > 1 else ""
        said = str(error)
        for numbers, failure in (
            (_TAKEN, Failure.TAKEN),
            (_BEATEN, Failure.BEATEN),
            (_SCHEMA, Failure.SCHEMA),
        ):
            if any(f"({number})" in said for number in numbers):
                return failure
        if state == "40001":
            return Failure.BEATEN
        is_away = state.startswith("08") or state in {"HYT00", "HYT01", "IM002", "28000", "01000"}
        return Failure.AWAY if is_away else Failure.OTHER

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the server's clock, in milliseconds since 1970."""
        return func.datediff_big(text("ms"), text("'19700101'"), func.sysutcdatetime())

    def _position(self) -> ColumnElement[int]:
        return cast(_ROW_VERSION, BigInteger)

    def _order(self) -> ColumnElement[Any]:
        return _ROW_VERSION

    def _after(self, position: int) -> ColumnElement[bool]:
        floor = func.convert(text("BINARY(8)"), cast(position, BigInteger))
        end = func.min_active_rowversion()
        return and_(floor < _ROW_VERSION, end > _ROW_VERSION)

    def _up_to(self, position: int) -> ColumnElement[bool]:
        return func.convert(text("BINARY(8)"), cast(position, BigInteger)) >= _ROW_VERSION

    def _key(self, stream: StreamName) -> str:
        return hashlib.sha256(stream.key.encode()).hexdigest()

    def _locked(self, statement: Select[Any]) -> Select[Any]:
        return statement.with_hint(streams, LOCK_HINT, "mssql")
