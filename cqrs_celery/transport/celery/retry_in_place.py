"""Recognise a task's retry, so that it takes the place of the message that the task is running for.

Celery publishes a retry as a new message, and then acknowledges the old one: in between, both are
there, and in a sequence the new one stands behind what must come after it. Here the publish puts
the new payload in the old message's place, in one step; the later acknowledgement counts nothing.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from ...transport import envelope


class Delivery(NamedTuple):
    """The delivery that a task runs for."""

    consumer: str
    message_id: int
    fence: int


def retried_delivery(headers: dict[str, Any], queues: list[str]) -> Delivery | None:
    """Return the delivery that a message being published is the retry of; None if it is none.

    Args:
        headers: the message's.
        queues: where it is going; a retry to another queue is a message of its own.
    """
    state = sys.modules.get("celery._state")
    task = state.get_current_worker_task() if state else None
    if task is None or not task.acks_late:
        return None
    request = task.request
    is_retry = headers.get("id") == request.id and headers.get("retries") == request.retries + 1
    info = (request.properties or {}).get("delivery_info") or {}
    if not is_retry or envelope.LEASE not in info or queues != [info.get(envelope.QUEUE)]:
        return None
    return Delivery(*info[envelope.LEASE])
