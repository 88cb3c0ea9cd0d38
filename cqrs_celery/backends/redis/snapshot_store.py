"""Keep snapshots in Redis, in one hash for each aggregate type.

<prefix>cq:snapshots:<application>:<aggregate type>  HASH  id -> the newest snapshot
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, cast

import redis

from ...queue.scripts import load
from ...store.capabilities import SnapshotCapabilities
from ...store.events import StoredEvent
from ...store.refusals import check_stream
from ...store.snapshot import Snapshot
from ...store.stream import StreamName
from .reaching import reaching
from .records import stored_event

_put = load("put_snapshot", __package__ + ".scripts")
_read = load("read_from_snapshot", __package__ + ".scripts")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)

#: The approximate number of ids that one scan of a hash returns.
PAGE: Final = 500


class RedisSnapshotStore:
    """A SnapshotStore in one Redis database, under one key prefix.

    Args:
        client: returns a redis client that returns bytes; called once per operation.
        prefix: the prefix of every key; on Redis Cluster it contains the hash tag.
        where: names the server in errors, without credentials.
    """

    def __init__(
        self, client: Callable[[], redis.Redis], *, prefix: str = "", where: str = "Redis"
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._where = where

    def __repr__(self) -> str:
        return f"<RedisSnapshotStore {self._where}>"

    @property
    def capabilities(self) -> SnapshotCapabilities:
        """What the store can do in addition to the port."""
        return SnapshotCapabilities(with_newer=self)

    def find(self, stream: StreamName) -> Snapshot | None:
        """Return a stream's snapshot; see `SnapshotStore.find`."""
        check_stream(stream)
        with reaching(self._where, f"look for the snapshot of {stream}"):
            found = self._client().hget(self._key(*stream[:2]), stream.aggregate_id)
        return _snapshot(stream, cast(bytes, found)) if found else None

    def find_with_newer(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent]]:
        """Return a snapshot and the events after it; see `SnapshotsBesideEvents`."""
        check_stream(stream)
        with reaching(self._where, f"read {stream} from its snapshot on"):
            found, *records = _read(
                self._client(),
                [f"{self._prefix}cq:id"],
                [
                    self._prefix,
                    f"{stream.application}:{stream.aggregate_type}",
                    stream.aggregate_id,
                    stream.key,
                    schema_version,
                ],
            )
        events = [stored_event(stream, record) for record in records]
        return (_snapshot(stream, found) if found else None), events

    def put(self, snapshot: Snapshot) -> bool:
        """Keep a snapshot unless there is a newer one; see `SnapshotStore.put`."""
        check_stream(snapshot.stream)
        stream = snapshot.stream
        taken_us = (snapshot.taken_at - _EPOCH) // _US
        head = f"{snapshot.schema_version}\x1f{snapshot.version}\x1f{taken_us}\x1f"
        with reaching(self._where, f"keep the snapshot of {stream}"):
            answer = _put(
                self._client(),
                [f"{self._prefix}cq:id"],
                [
                    self._prefix,
                    f"{stream.application}:{stream.aggregate_type}",
                    stream.aggregate_id,
                    snapshot.schema_version,
                    snapshot.version,
                    head.encode() + snapshot.data,
                ],
            )
        return bool(answer)

    def remove(self, stream: StreamName) -> bool:
        """Delete a stream's snapshot; see `SnapshotStore.remove`."""
        check_stream(stream)
        with reaching(self._where, f"remove the snapshot of {stream}"):
            return bool(self._client().hdel(self._key(*stream[:2]), stream.aggregate_id))

    def streams(self, application: str, aggregate_type: str) -> Iterator[StreamName]:
        """Return the streams of a type that have snapshots; see `SnapshotStore.streams`."""
        key, cursor, seen = self._key(application, aggregate_type), 0, set[bytes]()
        while True:
            with reaching(self._where, f"look for snapshots of {aggregate_type}"):
                answer = self._client().hscan(key, cursor, count=PAGE)
            cursor, found = cast("tuple[int, dict[bytes, bytes]]", answer)
            for aggregate_id in found.keys() - seen:
                yield StreamName(application, aggregate_type, aggregate_id.decode())
            # The scan of a hash that changes meanwhile may return an id twice.
            seen.update(found)
            if not cursor:
                return

    def _key(self, application: str, aggregate_type: str) -> str:
        return f"{self._prefix}cq:snapshots:{application}:{aggregate_type}"


def _snapshot(stream: StreamName, found: bytes) -> Snapshot:
    schema, version, taken_us, data = found.split(b"\x1f", 3)
    taken_at = _EPOCH + timedelta(microseconds=int(taken_us))
    return Snapshot(stream, int(version), int(schema), taken_at, data)
