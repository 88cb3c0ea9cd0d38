"""What makes a message run once: the factory of attempts.

An attempt says what its handler runs for, under which id its commit is remembered, and how that is
found again. The trace of what caused the message is continued here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import msgspec

from ..messages.codec import codec_of
from ..messages.message import Command
from ..messages.metadata import Metadata
from ..store.events import CommandOutcome, CommandRecord, Lease, RecordedEvent
from ..store.ports import EventStore
from ..store.refusals import check_stream
from ..store.stream import StreamName
from .definitions import Definition


class Memory(Protocol):
    """The part of an application's runtime that remembers what was carried out."""

    @property
    def store(self) -> EventStore:
        """The store that remembers what was carried out."""

    @property
    def command_id_ttl_s(self) -> int:
        """The seconds for which it is remembered."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a message: everything that a run of its handler is given.

    Attributes:
        message: the command or event; a list of recorded events for a batch.
        metadata: of what it records and sends.
        record: returns the record that is committed with its events; None to keep none.
        find: looks up what was recorded when the same was committed before; asked when a handler
            raises, which may be because of the state that it has itself made.
        looks_first: whether that is asked before the handler runs, too.
        stream: of the aggregate that a command is for, which may be locked; None for none.
        recorded: the event's facts, for a subscription.
        lease: the worker's hold on its message.
    """

    message: Any
    metadata: Metadata
    record: Callable[[Any], CommandRecord | None] = lambda value: None
    find: Callable[[], CommandOutcome | None] = lambda: None
    looks_first: bool = False
    stream: StreamName | None = None
    recorded: RecordedEvent[Any] | None = None
    lease: Lease | None = None

    @classmethod
    def for_command(
        cls,
        command: Command,
        definition: Definition,
        runtime: Memory,
        *,
        command_id: str,
        trace: Metadata,
        stream: StreamName | None,
        is_remembered: bool = True,
        lease: Lease | None = None,
    ) -> Self:
        """Return an attempt at a command, which takes effect once per id.

        Args:
            command: the message.
            definition: of its handler.
            runtime: of the application, which remembers it.
            command_id: causes what follows.
            trace: of what sent the command; without a correlation id, the command begins one.
            stream: of the aggregate that it is for, see `stream_of`; None for none.
            is_remembered: False for a command that nobody can repeat: its id is new.
            lease: the worker's hold on its message.
        """
        metadata = Metadata.caused_by(command_id, trace)
        if not is_remembered:
            return cls(command, metadata, stream=stream, lease=lease)
        returned, ttl_s = definition.returned, runtime.command_id_ttl_s
        return cls(
            command,
            metadata,
            record=lambda value: CommandRecord(
                command_id, returned.write(value, of=command_id), ttl_s
            ),
            find=lambda: runtime.store.find_command(command_id),
            # Always: it may have been sent twice, or come again without the queue's knowing that it
            # was started, as after a store's reply that was lost.
            looks_first=True,
            stream=stream,
            lease=lease,
        )

    @classmethod
    def for_event(
        cls,
        recorded: RecordedEvent[Any],
        definition: Definition,
        runtime: Memory,
        *,
        task_name: str,
        lease: Lease | None = None,
    ) -> Self:
        """Return an attempt at a recorded event; it commits once, however often the event comes.

        Args:
            recorded: the event, or a part of one that an upcaster has split.
            definition: of the subscription's function.
            runtime: of the application, which remembers it.
            task_name: of the function; each remembers an event for itself.
            lease: the worker's hold on its message.
        """
        is_part = recorded.parts > 1
        part = f"#{recorded.part}" if is_part else ""
        record_id = handled_id(f"{recorded.event_id}{part}", task_name)
        metadata = Metadata.caused_by(recorded.event_id, recorded.metadata, is_stored=True)
        return cls(
            recorded.event,
            metadata,
            record=_handled(record_id, definition, runtime),
            find=lambda: runtime.store.find_command(record_id),
            # What comes again for a later part's sake was done up to that.
            looks_first=is_part,
            recorded=recorded,
            lease=lease,
        )

    @classmethod
    def for_message(
        cls,
        message: Any,
        definition: Definition,
        runtime: Memory,
        *,
        message_id: str,
        metadata: Metadata,
        task_name: str,
        lease: Lease | None = None,
    ) -> Self:
        """Return an attempt at a published message, which commits once per id.

        Args:
            message: the message.
            definition: of the subscription's function.
            runtime: of the application, which remembers it.
            message_id: its id.
            metadata: what its publisher has packed for what it brings about.
            task_name: of the function; each remembers a message for itself.
            lease: the worker's hold on its message.
        """
        record_id = handled_id(message_id, task_name)
        return cls(
            message,
            metadata,
            record=_handled(record_id, definition, runtime),
            find=lambda: runtime.store.find_command(record_id),
            lease=lease,
        )

    @classmethod
    def for_batch(cls, recorded: list[RecordedEvent[Any]]) -> Self:
        """Return an attempt at several events; a batch has no session, so nothing is remembered.

        Args:
            recorded: the events, at least one; the first one's trace is continued.
        """
        first = recorded[0]
        return cls(recorded, Metadata.caused_by(first.event_id, first.metadata, is_stored=True))

    def repeats(self) -> Callable[[], Attempt]:
        """Return what gives this attempt as it is now, whatever a handler does to its message."""
        message, recorded = self.message, self.recorded
        if isinstance(message, list):
            batch = [(one, codec_of(type(one.event)).keep(one.event)) for one in message]
            return lambda: replace(self, message=[_with(one, copy()) for one, copy in batch])
        copy = codec_of(type(message)).keep(message)

        def again() -> Attempt:
            fresh = copy()
            return replace(self, message=fresh, recorded=recorded and _with(recorded, fresh))

        return again


def handled_id(message_id: str, task_name: str) -> str:
    """Return the id under which a subscription's function remembers a message.

    Args:
        message_id: of the event, its part or the published message.
        task_name: the function's.
    """
    return f"{message_id}:{task_name}"


def _handled(
    record_id: str, definition: Definition, runtime: Memory
) -> Callable[[Any], CommandRecord]:
    """Return what makes a subscription's record; it keeps no result."""
    returned, ttl_s = definition.returned, runtime.command_id_ttl_s
    return lambda _: CommandRecord(record_id, returned.write(None, of=record_id), ttl_s)


def _with(recorded: RecordedEvent[Any], event: Any) -> RecordedEvent[Any]:
    return msgspec.structs.replace(recorded, event=event)


def stream_of(command: Command, application: str) -> StreamName | None:
    """Return the stream of the aggregate that a command is for; None if it is for none.

    Raises:
        InvalidText: the aggregate's id has a NUL, or half of a surrogate pair.
    """
    aggregate, key = command.__aggregate__, command.__key__
    if aggregate is None or key is None:
        return None
    kind = getattr(aggregate, "__aggregate_type__", aggregate.__name__)
    name = command.__registered__.full_name(application)
    stream = StreamName(name.partition(".")[0], kind, str(getattr(command, key)))
    check_stream(stream)
    return stream
