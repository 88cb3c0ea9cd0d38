"""A snapshot: the state of an aggregate at a version, so that a load replays only later events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .stream import StreamName


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an aggregate at a version of its stream.

    Attributes:
        stream: the aggregate's stream.
        version: the stream's version that the state includes.
        schema_version: the class's `snapshot_version` when the snapshot was taken.
        taken_at: when it was taken, UTC.
        data: the state, as UTF-8 text.
    """

    stream: StreamName
    version: int
    schema_version: int
    taken_at: datetime
    data: bytes

    def is_superseded_by(self, other: Snapshot) -> bool:
        """Return whether another snapshot of the same stream replaces this one."""
        return other.schema_version != self.schema_version or other.version >= self.version
