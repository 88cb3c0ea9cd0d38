"""Keep snapshots in the event store's database, one row a stream.

The data are JSON inside a JSON string: PostgreSQL's jsonb would change the order of keys, by which
a dict remembers what came first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Connection,
    ScalarSelect,
    String,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from ...store.capabilities import SnapshotCapabilities
from ...store.events import StoredEvent
from ...store.refusals import check_stream
from ...store.snapshot import Snapshot
from ...store.stream import StreamName
from .reading import SqlReading
from .tables import events, snapshots, streams

#: Streams in one page.
PAGE: Final = 500

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(str).decode


class SqlSnapshotStore:
    """A SnapshotStore in a SQL database; a stream without events has none.

    Args:
        store: the event store of the same streams, whose connections it uses.
    """

    def __init__(self, store: SqlReading) -> None:
        self._store = store
        # Made once: to make it takes as long as to run it.
        self._select = (
            select(
                snapshots.c.version,
                snapshots.c.schema_version,
                snapshots.c.taken_at,
                store.rules.as_text(snapshots.c.payload).label("payload"),
            )
            .join(streams, streams.c.stream_id == snapshots.c.stream_id)
            .where(streams.c.stream_key == bindparam("key"))
        )
        self._select_with_newer = self._made_with_newer()

    def _made_with_newer(self) -> CompoundSelect[Any]:
        """Return the statement of `find_with_newer`: the snapshot has a row as if it were an event.

        It comes first, since the events behind it have later versions.
        """
        snapshot = (
            select(
                snapshots.c.version,
                snapshots.c.schema_version,
                self._store.rules.as_text(snapshots.c.payload).label("payload"),
                snapshots.c.taken_at,
            )
            .join(streams, streams.c.stream_id == snapshots.c.stream_id)
            .where(
                streams.c.stream_key == bindparam("key"),
                snapshots.c.schema_version == bindparam("schema_version"),
            )
            .cte("snapshot")
        )
        kept = select(
            literal_column("0", BigInteger()).label("position"),
            snapshot.c.version,
            literal_column("''", String()).label("event_id"),
            literal_column("''", String()).label("type"),
            snapshot.c.schema_version,
            snapshot.c.payload,
            literal_column("''", String()).label("metadata"),
            snapshot.c.taken_at,
        )
        stream_id = select(streams.c.stream_id).where(streams.c.stream_key == bindparam("key"))
        newer = select(*self._store.columns).where(
            events.c.stream_id == stream_id.scalar_subquery(),
            events.c.version
            > func.coalesce(select(snapshot.c.version).scalar_subquery(), literal_column("0")),
        )
        return union_all(kept, newer).order_by("version")

    def __repr__(self) -> str:
        return f"<SqlSnapshotStore {self._store.where}>"

    @property
    def capabilities(self) -> SnapshotCapabilities:
        """What the store can do in addition to the port."""
        return SnapshotCapabilities(with_newer=self)

    def find(self, stream: StreamName) -> Snapshot | None:
        """Return a stream's snapshot; see `SnapshotStore.find`."""
        check_stream(stream)
        rows = self._store.rows(
            self._select,
            f"look for the snapshot of {stream}",
            key=self._store.rules.key(stream),
        )
        return self._snapshot(stream, *rows[0]) if rows else None

    def find_with_newer(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent]]:
        """Return a snapshot and the events behind it; see `SnapshotsBesideEvents`."""
        check_stream(stream)
        rows = self._rows_with_newer(stream, f"read {stream} from its snapshot on", schema_version)
        if not rows or not _is_snapshot(rows[0]):
            return None, self._store.stored(stream, rows)
        _, version, _, _, schema_version, text, _, taken_at = rows[0]
        snapshot = self._snapshot(stream, version, schema_version, taken_at, text)
        return snapshot, self._store.stored(stream, rows[1:])

    def _rows_with_newer(self, stream: StreamName, what: str, schema_version: int) -> Sequence[Any]:
        """Return rows of events, in front of them the snapshot's: its position is 0."""
        store = self._store
        reader = store.reader_of(stream)
        return store.rows(
            self._select_with_newer, what, reader,
            key=store.rules.key(stream), schema_version=schema_version,
        )  # fmt: skip

    def _snapshot(
        self, stream: StreamName, version: int, schema_version: int, taken_at: datetime, text: str
    ) -> Snapshot:
        taken_at = self._store.rules.as_utc(taken_at)
        return Snapshot(stream, version, schema_version, taken_at, _decode(text).encode())

    def put(self, snapshot: Snapshot) -> bool:
        """Keep a snapshot unless there is a newer one; see `SnapshotStore.put`."""
        check_stream(snapshot.stream)
        what = f"keep the snapshot of {snapshot.stream}"
        return self._store.run_each(what, partial(self._put, snapshot))

    def remove(self, stream: StreamName) -> bool:
        """Delete a stream's snapshot; see `SnapshotStore.remove`."""
        check_stream(stream)
        statement = delete(snapshots).where(snapshots.c.stream_id == self._id_of(stream))
        return self._store.run_each(
            f"remove the snapshot of {stream}",
            lambda connection: bool(self._store.rules.changed(connection, statement)),
        )

    def _put(self, snapshot: Snapshot, connection: Connection) -> bool:
        stream_id = connection.execute(select(self._id_of(snapshot.stream))).scalar()
        if stream_id is None:
            return False
        values: dict[str, Any] = {
            "version": snapshot.version,
            "schema_version": snapshot.schema_version,
            "payload": _encode(snapshot.data.decode()).decode(),
            "taken_at": self._store.rules.to_time(snapshot.taken_at),
        }
        is_of_stream = snapshots.c.stream_id == stream_id
        if connection.execute(select(snapshots.c.version).where(is_of_stream)).first() is None:
            connection.execute(insert(snapshots).values(stream_id=stream_id, **values))
            return True
        is_older = or_(
            snapshots.c.schema_version != snapshot.schema_version,
            snapshots.c.version <= snapshot.version,
        )
        statement = update(snapshots).where(is_of_stream, is_older).values(**values)
        return bool(self._store.rules.changed(connection, statement))

    def streams(self, application: str, aggregate_type: str) -> Iterator[StreamName]:
        """Return the streams of a type that have snapshots; see `SnapshotStore.streams`."""
        last = -1
        while True:
            rows = self._store.rows(
                select(
                    streams.c.stream_id,
                    streams.c.application,
                    streams.c.aggregate_type,
                    streams.c.aggregate_id,
                )
                .join(snapshots, snapshots.c.stream_id == streams.c.stream_id)
                .where(
                    streams.c.application == application,
                    streams.c.aggregate_type == aggregate_type,
                    streams.c.stream_id > last,
                )
                .order_by(streams.c.stream_id)
                .limit(PAGE),
                f"look for snapshots of {aggregate_type}",
            )
            for stream_id, *parts in rows:
                last = stream_id
                stream = StreamName(*parts)
                # SQL Server does not compare spaces at the end.
                if stream[:2] == (application, aggregate_type):
                    yield stream
            if len(rows) < PAGE:
                return

    def _id_of(self, stream: StreamName) -> ScalarSelect[Any]:
        return (
            select(streams.c.stream_id)
            .where(streams.c.stream_key == self._store.rules.key(stream))
            .scalar_subquery()
        )


def _is_snapshot(row: Any) -> bool:
    # Events are counted from 1.
    return bool(row[0] == 0)
