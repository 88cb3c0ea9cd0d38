"""Distinguish channels of the reliable queue from those of any other transport."""

from __future__ import annotations

from typing import Any

#: The method by which channels of the reliable queue are recognised.
MARK = "ack_unsure"


def is_ours(channel: Any) -> bool:
    """Return whether a channel, or a channel class, belongs to the reliable queue."""
    return hasattr(channel, MARK)


def is_connected_to_ours(consumer: Any) -> bool:
    """Return whether a worker's consumer uses the reliable queue.

    Args:
        consumer: Celery's consumer; it must have a connection.
    """
    return is_ours(consumer.connection.transport.Channel)
