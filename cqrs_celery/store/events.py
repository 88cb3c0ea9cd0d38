"""Events on their way into a store and out of it.

Those of which thousands are made at a time are msgspec structs: a frozen dataclass takes ten times
as long to make.
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
        type_version: of the content's shape.
        timestamp: when it was recorded, UTC.
        data: the event's fields as a JSON object.
        metadata: where it came from.
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
        stream: whose it is.
        version: its place in the stream, from 1.
        global_position: its place in the store; a SQL store may leave numbers out.
        event: what was appended.
    """

    stream: StreamName
    version: int
    global_position: int
    event: NewEvent


#: The header in which the message of an event that is retried keeps the event's position.
POSITION_HEADER: Final = "cqrs_position"

#: An event of a stream that somebody knows: its version, and its id.
KnownEvent = tuple[int, str]

#: What a replay needs of an event: version, type, the type's version, data.
HistoricRow = tuple[int, str, int, bytes]


class History(NamedTuple):
    """What a replay needs of a stream's events.

    Attributes:
        events: oldest first.
        last_id: the id of the last one; empty without one, or where it could not be told.
    """

    events: Sequence[HistoricRow]
    last_id: str


class RecordedEvent(msgspec.Struct, Generic[E], frozen=True, gc=False):
    """An event with the facts of its recording, as subscribers and aggregates get it.

    Attributes:
        event: the typed event.
        event_id: unique.
        application: that recorded it.
        aggregate_type: of the aggregate that recorded it.
        aggregate_id: of the aggregate that recorded it.
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
        """Which of the events it is, from 1, that an upcaster has made of one stored event.

        They have the same event id, version and position; 1 for all others.
        """
        return 1

    @property
    def parts(self) -> int:
        """Of how many events that an upcaster has made of one stored event it is one."""
        return 1


class RecordedPart(RecordedEvent[E], Generic[E], frozen=True, gc=False):
    """One of several events that an upcaster has made of one stored event."""

    _part: int
    _parts: int

    @property
    def part(self) -> int:
        """Which of them it is, from 1."""
        return self._part

    @property
    def parts(self) -> int:
        """How many there are."""
        return self._parts


@dataclass(frozen=True, slots=True)
class StreamAppend:
    """The events to append to one stream.

    Attributes:
        stream: the stream.
        expected_version: its version before the append; or NO_STREAM, or ANY_VERSION.
        events: oldest first; at least one.
    """

    stream: StreamName
    expected_version: int
    events: Sequence[NewEvent]


class Lease(NamedTuple):
    """A worker's hold on the message it is working on; an append under a lost lease is refused."""

    consumer: str
    message_id: int
    fence: int


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """The command that an append carries out, recorded so that it is carried out once.

    Attributes:
        command_id: the command's id.
        outcome: JSON text kept with it, and handed to whoever repeats the command.
        ttl_s: seconds for which it is remembered.
    """

    command_id: str
    outcome: str
    ttl_s: int


class CommandOutcome(NamedTuple):
    """The record of a command that has committed: its last event's position, and its outcome.

    The position is 0 if it committed rows of its own and no event.
    """

    position: int
    outcome: str


class Committed(NamedTuple):
    """The end of a commit.

    `position` is the global position of its last event; `versions` has the version of each
    stream after it, in the order of the append.
    """

    position: int
    versions: tuple[int, ...]


class DeadLetterPolicy(NamedTuple):
    """What becomes of a subscriber's events that keep failing.

    Attributes:
        kind: "block": a dead letter holds up its sequence; "continue": it does not; "discard": it
            does, until it is deleted past its time.
        first_redrive_s: seconds until it is tried again by itself; doubled each time.
        most_redrive_s: the most seconds between two tries.
        ttl_s: seconds for which it is tried again.
        crowd: how many events may wait behind it without alarm.
    """

    kind: str = "block"
    first_redrive_s: float = 300
    most_redrive_s: float = 3600
    ttl_s: float = 7 * 24 * 3600
    crowd: int = 10_000


class Subscriber(NamedTuple):
    """A durable registration: which events go to which task on which queue.

    It stays until it is unregistered: what is committed while no worker runs arrives later.

    Attributes:
        name: the task's.
        topics: full event names.
        queue: where its messages go.
        head: the task message's head in five pieces, between which go the event id, the event id,
            the root id and the parent id.
        order: "aggregate": an aggregate's events stay in order; "subscription": all of the queue's
            do; "none".
        dead_letters: what its dead letters do; the same for all subscribers of a queue.
    """

    name: str
    topics: tuple[str, ...]
    queue: str
    head: tuple[str, str, str, str, str]
    order: str = "aggregate"
    dead_letters: DeadLetterPolicy = DeadLetterPolicy()


class Place(NamedTuple):
    """A place in a store's order: a position, and the id of the event there.

    A position alone does not tell that a store went back to an earlier state, and on from there.
    The id is empty in front of the first event, and where an earlier version did not keep it.
    """

    position: int
    event_id: str = ""


#: In front of the first event.
START: Final = Place(0)
