"""Write events in the form that a stream's list holds, and read them again."""

from __future__ import annotations

from datetime import datetime

import msgspec

from ...messages.metadata import Metadata
from ...store.events import NewEvent, StoredEvent
from ...store.stream import StreamName


class _Record(msgspec.Struct):
    """An event in the form that a stream's list holds."""

    event_id: str
    type: str
    type_version: int
    timestamp: datetime
    data: msgspec.Raw
    metadata: Metadata = Metadata()
    position: int = 0
    version: int = 0


class _NewRecord(msgspec.Struct):
    """The part of a record that is known before the append."""

    event_id: str
    type: str
    type_version: int
    timestamp: datetime
    data: msgspec.Raw
    metadata: Metadata


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Record).decode


def record_of(event: NewEvent) -> bytes:
    """Return an event as JSON without its first brace; the script prepends the other fields."""
    record = _NewRecord(
        event.event_id,
        event.type,
        event.type_version,
        event.timestamp,
        msgspec.Raw(event.data),
        event.metadata,
    )
    return _encode(record)[1:]


def stored_event(stream: StreamName, record: bytes) -> StoredEvent:
    """Return an event of a stream from its record."""
    found = _decode(record)
    return StoredEvent(
        stream,
        found.version,
        found.position,
        NewEvent(
            found.event_id,
            found.type,
            found.type_version,
            found.timestamp,
            bytes(found.data),
            found.metadata,
        ),
    )
