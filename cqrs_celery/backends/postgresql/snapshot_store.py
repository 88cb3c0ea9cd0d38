"""Keep snapshots in PostgreSQL, and read them by statements that it has parsed already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ...store.stream import StreamName
from ..sql.reading import SqlReading
from ..sql.snapshot_store import SqlSnapshotStore
from .prepared import Statement

_READ: Final = Statement(
    "cqrs_read_from_snapshot",
    ("text", "integer"),
    "WITH stream AS MATERIALIZED (SELECT stream_id FROM cqrs_streams WHERE stream_key = $1),"
    " snapshot AS MATERIALIZED (SELECT version, schema_version, payload::text, taken_at"
    " FROM cqrs_snapshots WHERE stream_id = (SELECT stream_id FROM stream)"
    " AND schema_version = $2)"
    " SELECT 0::bigint AS global_position, version, '' AS event_id, '' AS type, schema_version,"
    " payload, NULL AS metadata, taken_at::text FROM snapshot"
    " UNION ALL SELECT global_position, version, event_id, type, type_version, payload::text,"
    " NULLIF(metadata, '{}')::text, recorded_at::text FROM cqrs_events"
    " WHERE stream_id = (SELECT stream_id FROM stream)"
    " AND version > coalesce((SELECT version FROM snapshot), 0) ORDER BY version",
)


class PostgresqlSnapshotStore(SqlSnapshotStore):
    """A SnapshotStore in PostgreSQL.

    Args:
        store: the event store of the same streams, whose connections it uses.
        read: runs a prepared statement that reads of a stream: stream, what is done, statement,
            arguments.
    """

    def __init__(self, store: SqlReading, read: Callable[..., Sequence[Any]]) -> None:
        super().__init__(store)
        self._read = read

    def _rows_with_newer(self, stream: StreamName, what: str, schema_version: int) -> Sequence[Any]:
        return self._read(stream, what, _READ, stream.key, schema_version)
