"""Keep snapshots in PostgreSQL, and read them by statements that it has parsed already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ...store.stream import StreamName
from ..sql.snapshot_store import SqlSnapshotStore
from .prepared import Statement

if TYPE_CHECKING:
    from .event_store import PostgresqlEventStore

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
    """Be a SnapshotStore in PostgreSQL.

    Args:
        store: the event store of the same streams, whose connections it uses.
    """

    def __init__(self, store: PostgresqlEventStore) -> None:
        super().__init__(store)
        self._read = store.read_kept

    def _rows_with_newer(self, stream: StreamName, what: str, schema_version: int) -> Sequence[Any]:
        return self._read(stream, what, _READ, stream.key, schema_version)
