"""Keep snapshots in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from ...store.refusals import check_stream
from ...store.snapshot import Snapshot
from ...store.stream import StreamName


class MemorySnapshotStore:
    """A SnapshotStore whose snapshots exist as long as the object does. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._snapshots: dict[StreamName, Snapshot] = {}

    def find(self, stream: StreamName) -> Snapshot | None:
        """Return a stream's snapshot; see `SnapshotStore.find`."""
        check_stream(stream)
        return self._snapshots.get(stream)

    def put(self, snapshot: Snapshot) -> bool:
        """Keep a snapshot unless there is a newer one; see `SnapshotStore.put`."""
        check_stream(snapshot.stream)
        with self._lock:
            last = self._snapshots.get(snapshot.stream)
            if last is not None and not last.is_superseded_by(snapshot):
                return False
            self._snapshots[snapshot.stream] = snapshot
        return True

    def remove(self, stream: StreamName) -> bool:
        """Delete a stream's snapshot; see `SnapshotStore.remove`."""
        check_stream(stream)
        return self._snapshots.pop(stream, None) is not None

    def streams(self, application: str, aggregate_type: str) -> Iterable[StreamName]:
        """Return the streams of a type that have snapshots; see `SnapshotStore.streams`."""
        with self._lock:
            return [name for name in self._snapshots if name[:2] == (application, aggregate_type)]
