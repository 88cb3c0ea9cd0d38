"""Name what subscribers register for."""

from __future__ import annotations

from typing import Any

from ..messages.serializer import Serializer

#: In front of the name of a message that is not stored: an event may have the same name.
MESSAGE_TOPIC = "message:"


def topic_of(cls: type[Any], serializer: Serializer) -> str:
    """Return the topic of an event or message class."""
    name = serializer.name_of(cls)
    return MESSAGE_TOPIC + name if cls.__kind__ == "message" else name
