"""Keep events in SQL Server.

A position is the row version of an event, which the database counts for all of its tables: it
increases, with numbers left out wherever anything else was written. A reader stops below the oldest
row version of a transaction that has not ended, so it sees no event before one that may still come.
A write transaction that is left open anywhere in the database therefore holds up the relay, unlike
on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BINARY, BigInteger, bindparam, text

from ..sql.event_store import SqlEventStore
from ..sql.reading import reading_from
from .rules import SqlServerRules, row_version

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


class SqlServerEventStore(SqlEventStore):
    """An EventStore in SQL Server, from version 2016."""

    rules = SqlServerRules()

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        # Never from a replica: MIN_ACTIVE_ROWVERSION there knows nothing of the primary's
        # transactions.
        return self.rows(
            _READ_ALL, reading_from(after_position), self.primary_reader,
            after=row_version(after_position), limit=limit,
        )  # fmt: skip
