"""Where a message came from: the ids that tie a command to its events and what they set off."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, Self
from uuid import uuid4

import msgspec


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace of an event; every field is a text.

    Attributes:
        correlation_id: the same for everything that one request set off; the id of what began it.
        causation_id: the id of the message that directly caused this one; "" if nothing did.
        causation_parent_id: the id of what caused that message, where it is a command or a
            published message: neither is stored, so its own cause is kept here. "" if nothing
            caused it, or if it is an event, whose own metadata has its cause.
    """

    correlation_id: str = ""
    causation_id: str = ""
    causation_parent_id: str = ""

    @classmethod
    def caused_by(cls, message_id: str, trace: Metadata, *, is_stored: bool = False) -> Self:
        """Return the trace of what a message brings about; every trace is continued here.

        Args:
            message_id: of the command, event or published message.
            trace: of that message itself; without a correlation id, the message begins a trace.
            is_stored: whether the message's own cause can be read from the event store.
        """
        return cls(
            correlation_id=trace.correlation_id or message_id,
            causation_id=message_id,
            causation_parent_id="" if is_stored else trace.causation_id,
        )


#: Of what nothing caused that we know of.
NO_METADATA: Final = Metadata()


def new_id() -> str:
    """Return a new unique id for a message."""
    return str(uuid4())


def utc_now() -> datetime:
    """Return the time now, in UTC."""
    return datetime.now(UTC)
