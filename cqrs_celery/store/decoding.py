"""Turn an event as stored into the typed event that aggregates and subscribers get."""

from __future__ import annotations

from typing import Any

from ..errors import MessageError
from ..messages.serializer import Serializer
from .events import RecordedEvent, StoredEvent


def recorded(stored: StoredEvent, serializer: Serializer) -> RecordedEvent[Any]:
    """Return a stored event, decoded, with the facts of its recording.

    Raises:
        UnknownMessageType: its name and version are not registered.
        MalformedMessage: its data does not fit its type. Both carry a note that says where the
            event is stored.
    """
    event = stored.event
    try:
        message = serializer.decode("event", event.type, event.type_version, event.data)
    except MessageError as error:
        error.add_note(
            f"stored in {stored.stream} at version {stored.version},"
            f" global position {stored.global_position}"
        )
        raise
    return RecordedEvent(
        event=message,
        event_id=event.event_id,
        application=stored.stream.application,
        aggregate_type=stored.stream.aggregate_type,
        aggregate_id=stored.stream.aggregate_id,
        version=stored.version,
        global_position=stored.global_position,
        timestamp=event.timestamp,
        metadata=event.metadata,
    )
