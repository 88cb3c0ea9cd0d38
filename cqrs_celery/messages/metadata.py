"""Where a message came from: the ids that tie a command to its events and what they set off."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

import msgspec


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Be the trace of an event.

    Attributes:
        correlation_id: the same for everything that one request set off; the id of what began it.
        causation_id: the id of the message that directly caused this one; "" if nothing did.
    """

    correlation_id: str = ""
    causation_id: str = ""


#: Of what nothing caused that we know of.
NO_METADATA: Final = Metadata()


def new_id() -> str:
    """Return a new unique id for a message."""
    return str(uuid4())


def utc_now() -> datetime:
    """Return the time now, in UTC."""
    return datetime.now(UTC)
