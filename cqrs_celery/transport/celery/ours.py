"""Tell channels of the reliable queue from those of any other transport."""

from __future__ import annotations

from typing import Any

#: The method by which channels of the reliable queue are known.
MARK = "ack_unsure"


def is_ours(channel: Any) -> bool:
    """Return whether a channel, or a class of channels, is one of the reliable queue."""
    return hasattr(channel, MARK)


def is_connected_to_ours(consumer: Any) -> bool:
    """Return whether a worker's consumer, which has a connection, uses the reliable queue."""
    return is_ours(consumer.connection.transport.Channel)
