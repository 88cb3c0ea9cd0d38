"""A snapshot: the state of an aggregate at a version, so that a load replays only later events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .stream import StreamName


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of an aggregate at a version of its stream.

    Attributes:
        stream: whose it is.
        version: how many of its events are in it.
        schema_version: the class's `snapshot_version` by which it was taken.
        taken_at: when it was taken, UTC.
        data: the state, as UTF-8 text.
    """

    stream: StreamName
    version: int
    schema_version: int
    taken_at: datetime
    data: bytes

    def is_superseded_by(self, other: Snapshot) -> bool:
        """Return whether another snapshot of the same stream takes the place of this one."""
        return other.schema_version != self.schema_version or other.version >= self.version
