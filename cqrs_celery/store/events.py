"""Events on their way into a store and out of it.

The values that are created by the thousand are msgspec structs: creating a frozen dataclass takes
ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

from ..messages.metadata import NO_METADATA, Metadata
from .stream import StreamName

E = TypeVar("E")


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """An event to append; the store gives it a version and a position.

    Attributes:
        event_id: unique; the same whenever the append is repeated.
        type: the event's full registered name.
        type_version: the version of the event's type.
        timestamp: when it was recorded, UTC.
        data: the event's fields as a JSON object.
        metadata: correlation and causation.
    """

    event_id: str
    type: str
    type_version: int
    timestamp: datetime
    data: bytes
    metadata: Metadata = NO_METADATA


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """An event as a store holds it.

    Attributes:
        stream: the stream that holds it.
        version: its place in the stream, from 1.
        global_position: its place in the store; a SQL store may leave numbers out.
        event: the event that was appended.
    """

    stream: StreamName
    version: int
    global_position: int
    event: NewEvent


#: The header that keeps an event's position when the event's message is retried.
POSITION_HEADER: Final = "cqrs_position"

#: An event that a reader already knows: its version and its id.
KnownEvent = tuple[int, str]

#: The columns of an event that a replay needs: version, type, the type's version, data.
HistoricRow = tuple[int, str, int, bytes]


class History(NamedTuple):
    """The part of a stream's events that a replay needs.

    Attributes:
        events: oldest first.
        last_id: the id of the last event; empty if there is no event, or the id is not known.
    """

    events: Sequence[HistoricRow]
    last_id: str


class RecordedEvent(msgspec.Struct, Generic[E], frozen=True, gc=False):
    """An event with the facts of its recording, as subscribers and aggregates get it.

    Attributes:
        event: the typed event.
        event_id: the event's unique id.
        application: the application that recorded it.
        aggregate_type: the type of the aggregate that recorded it.
        aggregate_id: the id of the aggregate that recorded it.
        version: its place in the aggregate's stream, from 1.
        global_position: its place in the store; a SQL store may leave numbers out.
        timestamp: when it was recorded, UTC.
        metadata: correlation and causation.
    """

    event: E
    event_id: str
    application: str
    aggregate_type: str
    aggregate_id: str
    version: int
    global_position: int
    timestamp: datetime
    metadata: Metadata

    @property
    def stream(self) -> StreamName:
        """The stream that holds it."""
        return StreamName(self.application, self.aggregate_type, self.aggregate_id)

    @property
    def part(self) -> int:
        """The number of this event, from 1, among those that an upcaster made of one stored event.

        These events share event id, version and position. An event that was not split is number 1.
        """
        return 1

    @property
    def parts(self) -> int:
        """How many events an upcaster has made of the stored event; 1 if it was not split."""
        return 1


class RecordedPart(RecordedEvent[E], Generic[E], frozen=True, gc=False):
    """One of several events that an upcaster has made of one stored event."""

    _part: int
    _parts: int

    @property
    def part(self) -> int:
        """The number of this event among the parts, from 1."""
        return self._part

    @property
    def parts(self) -> int:
        """The number of parts."""
        return self._parts


@dataclass(frozen=True, slots=True)
class StreamAppend:
    """The events to append to one stream.

    Attributes:
        stream: the stream.
        expected_version: the stream's version before the append; or NO_STREAM, or ANY_VERSION.
        events: oldest first; none, to only check that the stream is at the expected version, in a
            store that declares `checks_versions`.
    """

    stream: StreamName
    expected_version: int
    events: Sequence[NewEvent]


class Lease(NamedTuple):
    """A worker's lease on its current message; an append under a lost lease is refused."""

    consumer: str
    message_id: int
    fence: int


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """The command that an append carries out, recorded so that it is carried out once.

    Attributes:
        command_id: the command's id.
        outcome: JSON text, recorded with it and returned when the command is repeated.
        ttl_s: seconds for which the command is remembered.
    """

    command_id: str
    outcome: str
    ttl_s: int


class CommandOutcome(NamedTuple):
    """The record of a command that has committed: its last event's position, and its outcome.

    The position is 0 if the command committed rows of its own and no event.
    """

    position: int
    outcome: str


class Committed(NamedTuple):
    """The end of a commit.

    `position` is the global position of the commit's last event. `versions` holds the version of
    each stream after the commit, in the order of the append.
    """

    position: int
    versions: tuple[int, ...]


class DeadLetterPolicy(NamedTuple):
    """The policy for a subscriber's events that keep failing.

    Attributes:
        kind: "block": a dead letter blocks its sequence; "continue": it does not; "discard": it
            blocks its sequence until its time is over and it is deleted.
        first_redrive_s: seconds until the first automatic retry; doubled for each further one.
        most_redrive_s: the most seconds between two retries.
        ttl_s: seconds for which it is retried.
        crowd: how many events may wait behind it before the log raises an alarm.
    """

    kind: str = "block"
    first_redrive_s: float = 300
    most_redrive_s: float = 3600
    ttl_s: float = 7 * 24 * 3600
    crowd: int = 10_000


class Subscriber(NamedTuple):
    """A durable registration: which events go to which task on which queue.

    It stays until it is unregistered: events that are committed while no worker runs arrive later.

    Attributes:
        name: the name of the task.
        topics: full event names.
        queue: the queue of its messages.
        head: the head of the task's message in five pieces; between them go the event id, the event
            id again, the root id and the parent id.
        order: "aggregate" keeps the events of each aggregate in order, "subscription" all events of
            the queue; "none" keeps no order.
        dead_letters: the policy for its dead letters; the same for all subscribers of a queue.
    """

    name: str
    topics: tuple[str, ...]
    queue: str
    head: tuple[str, str, str, str, str]
    order: str = "aggregate"
    dead_letters: DeadLetterPolicy = DeadLetterPolicy()


class Place(NamedTuple):
    """A place in a store's order: a position, and the id of the event at that position.

    A position alone would not reveal that a store went back to an earlier state and went on from
    there. The id is empty before the first event, and if an earlier release did not keep it.
    """

    position: int
    event_id: str = ""


#: The place before the first event.
START: Final = Place(0)
