"""Recognise a task's retry, so that it takes the place of the message that the task runs for.

Celery publishes a retry as a new message, and then acknowledges the old one. In between, both
exist, and in a sequence the new message is behind the ones that must come after it. Here the
publish replaces the old message's payload, in one step; the later acknowledgement is ignored.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from ...transport import envelope


class Delivery(NamedTuple):
    """The delivery that a task runs for.

    Attributes:
        consumer: the name of the consumer that holds it.
        message_id: the message's id.
        fence: the number of the delivery.
    """

    consumer: str
    message_id: int
    fence: int


def retried_delivery(headers: dict[str, Any], queues: list[str]) -> Delivery | None:
    """Return the delivery that an outgoing message retries; None if it is not a retry.

    Args:
        headers: the message's headers.
        queues: the queues that it goes to; a retry to another queue is a new message.
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
