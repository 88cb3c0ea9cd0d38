"""Commands, messages and recorded events as plain values, which are a task's argument.

The body of a task's message is JSON, which Celery turns into plain values. These are decoded inside
the task: a message that can't be read fails there, and becomes a dead letter with its reason.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from ..errors import MalformedMessage, MessageError
from ..messages.metadata import Metadata
from ..messages.serializer import Serializer
from ..store.decoding import with_facts
from ..store.events import RecordedEvent, StoredEvent
from ..store.stream import StreamName
from .context import current_metadata
from .keys import checked_key

#: The name of the caller's key, next to a command's type, version and data.
IDEMPOTENCY_KEY = "idempotency_key"

#: The name of a message's trace.
METADATA = "metadata"

#: The name of the id of a message that is not stored; recorded events have `event_id`.
MESSAGE_ID = "message_id"


class _Facts(msgspec.Struct):
    """The facts of an event's recording, without its data."""

    stream: str
    position: int
    version: int
    event_id: str
    type: str
    type_version: int
    timestamp: datetime
    data: Any
    metadata: Metadata = Metadata()


def pack_command(command: Any, serializer: Serializer) -> dict[str, Any]:
    """Return a command as a task's argument, with the trace of its sender.

    Raises:
        UnwritableMessage: the command is too large, or would be read back as another value.
    """
    plain = serializer.to_plain(command)
    metadata = current_metadata()
    if metadata.correlation_id:
        plain[METADATA] = msgspec.to_builtins(metadata)
    return plain


def unpack_command(
    plain: Any, serializer: Serializer, *, root_id: str = "", parent_id: str = ""
) -> tuple[Any, Metadata]:
    """Return the command in a task's argument, and the trace of its sender.

    Args:
        plain: the value that `pack_command` returned, or the same after a passage through JSON.
        serializer: decodes the command.
        root_id: Celery's root id, for a command that is a part of a chain, group or chord.
        parent_id: Celery's parent id: of the task that sent the command, or the one before it in
            the chain.

    Raises:
        UnknownMessageType: the command's name and version are not registered.
        MalformedMessage: the command does not fit its type.
    """
    command = serializer.from_plain("command", plain)
    came_with = plain.get(METADATA) if isinstance(plain, dict) else None
    if not came_with:
        return command, Metadata(correlation_id=root_id, causation_id=parent_id)
    trace = _trace(came_with, plain)
    if not trace.causation_id:
        trace = msgspec.structs.replace(trace, causation_id=parent_id)
    return command, trace


def with_context_of(plain: Any, before: Any) -> Any:
    """Return a command's plain values, with the context of the command before it in a chain.

    Args:
        plain: the command's plain values; if they have a trace, they stay as they are.
        before: the plain values of the command before it; anything else is ignored.
    """
    trace = before.get(METADATA) if isinstance(before, dict) else None
    trace = trace if isinstance(trace, dict) else {}
    context = trace.get("context")
    if not context or not isinstance(plain, dict) or plain.get(METADATA):
        return plain
    inherited = {"correlation_id": trace.get("correlation_id", ""), "context": context}
    return {**plain, METADATA: inherited}


def _trace(came_with: Any, plain: dict[str, Any]) -> Metadata:
    try:
        return msgspec.convert(came_with, Metadata)
    except msgspec.ValidationError as error:
        raise MalformedMessage(
            f"a {plain['type']} came without a trace that can be read: {error}",
            name=plain["type"],
            version=plain["version"],
        ) from error


def key_of(plain: Any) -> str | None:
    """Return the idempotency key in a command's plain values, or None if there is none.

    Raises:
        MalformedMessage: it is not a valid key.
    """
    key = plain.get(IDEMPOTENCY_KEY) if isinstance(plain, dict) else None
    try:
        return None if key is None else checked_key(key)
    except ValueError as error:
        raise MalformedMessage(str(error), name="", version=0) from error


def pack_message(message: Any, serializer: Serializer, *, message_id: str) -> dict[str, Any]:
    """Return a message as the argument of its subscribers' tasks, with its publisher's trace.

    Raises:
        UnwritableMessage: the message is too large, or would be read back as another value.
    """
    metadata = Metadata.caused_by(message_id, current_metadata())
    plain = serializer.to_plain(message)
    return {**plain, MESSAGE_ID: message_id, METADATA: msgspec.to_builtins(metadata)}


def is_message(plain: Any) -> bool:
    """Return whether a subscription task's argument is a message, not a recorded event."""
    return isinstance(plain, dict) and MESSAGE_ID in plain


def unpack_message(plain: dict[str, Any], serializer: Serializer) -> tuple[Any, Metadata]:
    """Return the message in a task's argument, and the metadata for what it causes.

    Raises:
        UnknownMessageType: the message's name and version are not registered.
        MalformedMessage: the message does not fit its type.
    """
    return serializer.from_plain("message", plain), _trace(plain.get(METADATA), plain)


def pack_event(stored: StoredEvent) -> dict[str, Any]:
    """Return a stored event as a task's argument, in the form that the Redis script makes."""
    event = stored.event
    return {
        "stream": stored.stream.key,
        "position": stored.global_position,
        "version": stored.version,
        "event_id": event.event_id,
        "type": event.type,
        "type_version": event.type_version,
        "timestamp": event.timestamp.isoformat(),
        "data": msgspec.json.decode(event.data),
        "metadata": msgspec.to_builtins(event.metadata),
    }


def unpack_events(plain: Any, serializer: Serializer) -> list[RecordedEvent[Any]]:
    """Return the recorded event in a task's argument; an upcaster may make several of it, or none.

    Raises:
        UnknownMessageType: the event's name and version are not registered.
        MalformedMessage: the event does not fit its type, or the argument is not an event.
        UpcastFailed: an upcaster failed.
    """
    try:
        facts = msgspec.convert(plain, _Facts)
        stream = StreamName.from_key(facts.stream)
    except (msgspec.ValidationError, TypeError) as error:
        raise MalformedMessage(
            f"a recorded event was expected; found something else: {error}", name="", version=0
        ) from error
    try:
        events = serializer.convert_all("event", facts.type, facts.type_version, facts.data)
    except MessageError as error:
        error.add_note(f"recorded in {stream} at version {facts.version}")
        raise
    return with_facts(
        events,
        (
            facts.event_id,
            *stream,
            facts.version,
            facts.position,
            facts.timestamp,
            facts.metadata,
        ),
    )
