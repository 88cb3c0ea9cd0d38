"""The origin of a message: what links a command to its events and to what those cause."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Self
from uuid import uuid4

import msgspec


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace of an event.

    Attributes:
        correlation_id: the id of the first message of the trace; all messages that one request
            causes share it.
        causation_id: the id of the message that directly caused this one; "" if there is none.
        causation_parent_id: the id of the message that caused the causing one, if that is a command
            or a published message: neither is stored, so its own cause is kept here. "" if the
            causing message has no cause, or if it is an event, whose own metadata has the cause.
        context: what `CQRS.context` said of the request that began the trace, such as its user:
            texts by their names. All messages that the request causes share it.
    """

    correlation_id: str = ""
    causation_id: str = ""
    causation_parent_id: str = ""
    context: dict[str, str] = {}

    @classmethod
    def caused_by(cls, message_id: str, trace: Metadata, *, is_stored: bool = False) -> Self:
        """Return the trace of what a message causes; every trace is continued here.

        Args:
            message_id: the id of the causing command, event or published message.
            trace: the trace of that message; without a correlation id, the message begins a trace.
            is_stored: whether the message's own cause can be read from the event store.
        """
        return cls(
            correlation_id=trace.correlation_id or message_id,
            causation_id=message_id,
            causation_parent_id="" if is_stored else trace.causation_id,
            context=trace.context,
        )

    def texts(self) -> list[str]:
        """Return every text that it holds: the ids, then the context's names and values."""
        ids = [self.correlation_id, self.causation_id, self.causation_parent_id]
        return [*ids, *self.context, *self.context.values()] if self.context else ids


#: The trace of a message without a known cause.
NO_METADATA: Final = Metadata()


def new_id() -> str:
    """Return a new unique id for a message."""
    return str(uuid4())


def utc_now() -> datetime:
    """Return the time now, in UTC."""
    return datetime.now(UTC)
