"""Attempts at messages, by which each message takes effect once.

An attempt has the message, the id under which its commit is recorded, and the lookup of that
record. It also continues the trace of the message's cause.
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
    """The part of an application's runtime that remembers the handled messages."""

    @property
    def store(self) -> EventStore:
        """The event store, which keeps the records."""

    @property
    def command_id_ttl_s(self) -> int:
        """The seconds for which a record is kept."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a message: everything that a run of its handler needs.

    Attributes:
        message: the command or event; a list of recorded events for a batch.
        metadata: the metadata of the events that it records and the messages that it sends.
        record: returns the record to commit with its events, or None to commit none; its argument
            is the handler's return value.
        find: returns the record of an earlier commit of this message, or None. It is called when
            the handler raises, since the reason may be the state that the earlier commit left.
        looks_first: whether `find` is called before the handler runs as well.
        stream: the stream of the command's aggregate, which may be locked; None for none.
        recorded: the facts of the event's recording, for a subscription.
        lease: the worker's lease on its message.
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
            definition: the definition of its handler.
            runtime: the application's runtime, which remembers the command.
            command_id: the command's id; it is the causation id of what the command causes.
            trace: the trace of the command's sender; if it has no correlation id, the command
                begins a trace.
            stream: the stream of its aggregate, see `stream_of`; None for none.
            is_remembered: False for a command that can't be repeated, since its id is new.
            lease: the worker's lease on its message.
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
            # Always: the command may have been sent twice, or be redelivered although the queue
            # does not know that it was started, as after a lost reply of the store.
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
        """Return an attempt at a recorded event; it commits once, however often it is delivered.

        Args:
            recorded: the event, or a part of one that an upcaster has split.
            definition: the definition of the subscription's function.
            runtime: the application's runtime, which remembers the event.
            task_name: the name of the function's task; each function has records of its own.
            lease: the worker's lease on its message.
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
            # If a later part failed, the whole event is redelivered: earlier parts have committed.
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
            definition: the definition of the subscription's function.
            runtime: the application's runtime, which remembers the message.
            message_id: its id.
            metadata: the metadata for what the message causes, packed by its publisher.
            task_name: the name of the function's task; each function has records of its own.
            lease: the worker's lease on its message.
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
        """Return an attempt at several events; a batch has no session, so it has no record.

        Args:
            recorded: the events, at least one. The trace of the first one is continued.
        """
        first = recorded[0]
        return cls(recorded, Metadata.caused_by(first.event_id, first.metadata, is_stored=True))

    def repeats(self) -> Callable[[], Attempt]:
        """Return a function that returns this attempt with a fresh copy of its message."""
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
    """Return the id under which a subscription's function records a message.

    Args:
        message_id: the id of the event, of its part or of the published message.
        task_name: the name of the function's task.
    """
    return f"{message_id}:{task_name}"


def _handled(
    record_id: str, definition: Definition, runtime: Memory
) -> Callable[[Any], CommandRecord]:
    """Return a function that makes a subscription's record, which keeps no result."""
    returned, ttl_s = definition.returned, runtime.command_id_ttl_s
    return lambda _: CommandRecord(record_id, returned.write(None, of=record_id), ttl_s)


def _with(recorded: RecordedEvent[Any], event: Any) -> RecordedEvent[Any]:
    return msgspec.structs.replace(recorded, event=event)


def stream_of(command: Command, application: str) -> StreamName | None:
    """Return the stream of the aggregate that a command is addressed to, or None for none.

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
