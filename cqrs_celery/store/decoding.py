"""Turn stored events into the typed events that aggregates and subscribers get.

A stored event becomes one typed event, unless an upcaster splits it into several or drops it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from ..errors import MessageError
from ..messages.metadata import Metadata
from ..messages.serializer import Serializer
from .events import HistoricRow, RecordedEvent, RecordedPart, StoredEvent
from .stream import StreamName

#: The facts of a RecordedEvent, in addition to the event, in the order of its attributes.
Facts = tuple[str, str, str, str, int, int, datetime, Metadata]


class DroppedEvent(NamedTuple):
    """A stand-in for a stored event that an upcaster has dropped; its version stays taken."""

    aggregate_id: str
    version: int
    event: None = None


class ReplayedEvent(msgspec.Struct, frozen=True, gc=False):
    """An event of which only the columns that a replay needs were read.

    Attributes:
        event: the typed event; None if an upcaster has dropped it, but its version stays taken.
        aggregate_id: the id of its aggregate.
        version: its place in the aggregate's stream, from 1.
        part: its number, from 1, if an upcaster has split the stored event.
    """

    event: Any
    aggregate_id: str
    version: int
    part: int = 1


def replayed_events(
    history: Iterable[HistoricRow], stream: StreamName, serializer: Serializer
) -> Iterator[ReplayedEvent]:
    """Yield the events of a stream's history, decoded, in their order.

    Raises:
        MessageError: as `recorded_events` does.
    """
    aggregate_id, readers = stream.aggregate_id, serializer.readers("event")
    for version, name, type_version, data in history:
        read = readers.get((name, type_version))
        try:
            message = None if read is None else read(data)
        except ValueError:
            message = None  # compressed, or wrong
        if message is not None:
            yield ReplayedEvent(message, aggregate_id, version)
            continue
        try:
            messages = serializer.decode_all("event", name, type_version, data)
        except MessageError as error:
            error.add_note(f"stored in {stream} at version {version}")
            raise
        if len(messages) == 1:
            yield ReplayedEvent(messages[0], aggregate_id, version)
        elif messages:
            for part, message in enumerate(messages, 1):
                yield ReplayedEvent(message, aggregate_id, version, part)
        else:
            yield ReplayedEvent(None, aggregate_id, version)


def recorded_events(
    history: Iterable[StoredEvent], serializer: Serializer
) -> Iterator[RecordedEvent[Any] | DroppedEvent]:
    """Yield stored events, decoded, with the facts of their recording.

    Yields:
        In their order: one typed event for each stored one. If an upcaster split a stored event,
        several with the same version and position; if it dropped one, a `DroppedEvent`.

    Raises:
        UnknownMessageType: a name and version are not registered.
        MalformedMessage: an event's data do not fit its type.
        UpcastFailed: an upcaster failed. All carry a note that says where the event is stored.
    """
    readers = serializer.readers("event")
    for stored in history:
        event = stored.event
        read = readers.get((event.type, event.type_version))
        try:
            message = None if read is None else read(event.data)
        except ValueError:
            message = None  # compressed, or wrong
        if message is None:
            messages = _decoded(stored, serializer)
            if len(messages) != 1:
                yield from _several(stored, messages)
                continue
            message = messages[0]
        # As `with_facts` does for a single event, which most are.
        application, aggregate_type, aggregate_id = stored.stream
        yield RecordedEvent(
            message,
            event.event_id,
            application,
            aggregate_type,
            aggregate_id,
            stored.version,
            stored.global_position,
            event.timestamp,
            event.metadata,
        )


def _decoded(stored: StoredEvent, serializer: Serializer) -> Sequence[Any]:
    event = stored.event
    try:
        return serializer.decode_all("event", event.type, event.type_version, event.data)
    except MessageError as error:
        error.add_note(
            f"stored in {stored.stream} at version {stored.version},"
            f" global position {stored.global_position}"
        )
        raise


def _several(
    stored: StoredEvent, messages: Sequence[Any]
) -> Sequence[RecordedEvent[Any] | DroppedEvent]:
    if messages:
        return with_facts(messages, _facts(stored))
    return [DroppedEvent(stored.stream.aggregate_id, stored.version)]


def _facts(stored: StoredEvent) -> Facts:
    event = stored.event
    return (
        event.event_id,
        *stored.stream,
        stored.version,
        stored.global_position,
        event.timestamp,
        event.metadata,
    )


def with_facts(events: Sequence[Any], facts: Facts) -> list[RecordedEvent[Any]]:
    """Return the typed events of one stored event, each with the facts of its recording."""
    if len(events) == 1:
        return [RecordedEvent(events[0], *facts)]
    return [RecordedPart(event, *facts, part, len(events)) for part, event in enumerate(events, 1)]
