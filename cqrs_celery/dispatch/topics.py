"""Name the topics that subscribers register for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..messages.serializer import Serializer

#: The prefix of the topic of a message that is not stored, since an event may have the same name.
MESSAGE_TOPIC = "message:"


def topic_of(cls: type[Any], serializer: Serializer) -> str:
    """Return the topic of an event or message class."""
    name = serializer.name_of(cls)
    return MESSAGE_TOPIC + name if cls.__kind__ == "message" else name


def topics_of(classes: Iterable[type[Any]], serializer: Serializer) -> tuple[str, ...]:
    """Return the topics of classes: of their own names, and of the names that are read as theirs.

    These are aliases, and the names of events that an upcaster turns into one of the classes: old
    code may still write them, and a relay may still read them.
    """
    found: dict[str, None] = {}
    for cls in classes:
        kind, name = cls.__kind__, serializer.name_of(cls)
        prefix = MESSAGE_TOPIC if kind == "message" else ""
        for origin in serializer.registry.origins(kind, name, serializer.application):
            found[prefix + origin] = None
    return tuple(found)
