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
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    BINARY,
    BigInteger,
    ColumnElement,
    Connection,
    Delete,
    Select,
    Update,
    bindparam,
    cast,
    column,
    text,
)
from sqlalchemy.dialects.mssql import ROWVERSION

from ...store.stream import StreamName
from ..sql.event_store import SqlEventStore, reading_from
from ..sql.failures import Failure
from ..sql.leading import Leadership
from ..sql.tables import events, streams

#: Locks each row that is read, and the place of each that is missing, until the transaction ends.
LOCK_HINT: Final = "WITH (UPDLOCK, HOLDLOCK, ROWLOCK)"

#: A column that the other engines do not have. It knows its table, for statements of nothing else.
_ROW_VERSION: Final[ColumnElement[Any]] = column("row_version", ROWVERSION(), _selectable=events)  # type: ignore[no-untyped-call]

#: Reads events in the order of row versions. The end is looked up before the statement that reads:
#: inside it, it could be later than what that sees under READ_COMMITTED_SNAPSHOT, and events
#: committed in between would be passed for ever. The page is cut from the index before the join.
_READ_ALL: Final = text(
    "DECLARE @end BINARY(8) = MIN_ACTIVE_ROWVERSION();"
    " SELECT cqrs_streams.application, cqrs_streams.aggregate_type, cqrs_streams.aggregate_id,"
    " CAST(page.row_version AS BIGINT) AS position, page.version, page.event_id, page.type,"
    " page.type_version, page.payload, page.metadata, page.recorded_at"
    " FROM (SELECT TOP (:limit) row_version, stream_id, version, event_id, type, type_version,"
    " payload, metadata, recorded_at FROM cqrs_events WITH (FORCESEEK)"
    " WHERE row_version > :after AND row_version < @end ORDER BY row_version) AS page"
    " JOIN cqrs_streams ON cqrs_streams.stream_id = page.stream_id ORDER BY page.row_version"
).bindparams(bindparam("after", type_=BINARY(8)), bindparam("limit", type_=BigInteger()))

_LEAD: Final = text(
    "SET NOCOUNT ON; DECLARE @answer int; EXEC @answer = sp_getapplock @Resource = 'cqrs_relay',"
    " @LockMode = 'Exclusive', @LockOwner = 'Session', @LockTimeout = 0; SET NOCOUNT OFF;"
    " SELECT CASE WHEN @answer >= 0 THEN 1 ELSE 0 END"
)

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

    def lead(self) -> Leadership | None:
        """Return what makes a relay the active one; None if another one is."""
        return self.lead_by_lock(_LEAD)

    def changed(self, connection: Connection, statement: Update | Delete) -> int:
        """Run a statement that changes rows; returns how many it has changed.

        The rows themselves are counted: where NOCOUNT is on, by the server's or the login's own
        options, a driver says -1.
        """
        keys = statement.table.primary_key
        return len(connection.execute(statement.returning(*keys)).all())

    def _position(self) -> ColumnElement[int]:
        return cast(_ROW_VERSION, BigInteger)

    def _order(self) -> ColumnElement[Any]:
        return _ROW_VERSION

    def _after(self, position: int) -> ColumnElement[bool]:
        # The column itself is compared: what is cast can't be sought in its index.
        return self._order() > _row_version(position)

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        # Never from a replica: MIN_ACTIVE_ROWVERSION there knows nothing of the primary's
        # transactions.
        return self._rows(
            _READ_ALL, reading_from(after_position), self._primary_reader,
            after=_row_version(after_position), limit=limit,
        )  # fmt: skip

    def _key(self, stream: StreamName) -> str:
        return hashlib.sha256(stream.key.encode()).hexdigest()

    def _locked(self, statement: Select[Any]) -> Select[Any]:
        return statement.with_hint(streams, LOCK_HINT, "mssql")


def _row_version(position: int) -> bytes:
    """Return the row version that is a position."""
    return position.to_bytes(8, "big")
