"""How a Kombu message lies in the queue: its head as one line of JSON, then the body as it is.

The body is neither escaped nor base64-encoded, so it costs its own size, and the event store can
put a head in front of a body that several queues share. A whole stock message, as other producers
push it, is read too.
"""

from __future__ import annotations

from typing import Any

from kombu.utils.json import dumps, loads

from ..queue.values import Taken

#: The header that names what a message must stay in order with; see DESIGN's "sequence".
SEQUENCE_HEADER = "cqrs_sequence"

#: The delivery info that says who holds a message: consumer, message id, fence.
LEASE = "cqrs_lease"

#: The delivery info that says from which queue a message came.
QUEUE = "queue"

#: Where a message's due time is kept once the queue has waited for it.
WAITED_HEADER = "cqrs_eta"

#: A head's parts, in the order in which they are written.
_HEAD = ("content-encoding", "content-type", "properties", "headers")


class UnreadableEnvelope(ValueError):
    """What lies in the queue is no message."""


def head_of(message: dict[str, Any]) -> str:
    """Return a message's head as one line of JSON."""
    return str(dumps({name: message.get(name) for name in _HEAD}))


def body_of(message: dict[str, Any]) -> bytes:
    """Return a message's body as bytes."""
    body = message["body"]
    return body.encode() if isinstance(body, str) else body or b""


def joined(head: str, body: bytes) -> bytes:
    """Return a message as the queue keeps it: head, newline, body."""
    return head.encode() + b"\n" + body


def decode(taken: Taken, tag: str, consumer: str) -> dict[str, Any]:
    """Return the Kombu message of a delivery.

    Args:
        taken: the delivery.
        tag: becomes its delivery tag.
        consumer: holds it.

    Raises:
        UnreadableEnvelope: its head is not a message's head.
    """
    head, _, body = taken.payload.partition(b"\n")
    try:
        message = loads(head)
        headers, properties = message["headers"] or {}, message["properties"]
        info = properties.setdefault("delivery_info", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableEnvelope(
            f"message {taken.id} of queue {taken.queue} has no readable head: {error}"
        ) from error
    # A stock message has its body inside; then nothing follows the head.
    message.setdefault("body", taken.body or body)
    info["redelivered"] = taken.tries > 0
    if taken.tries:
        # Where Kombu's Redis transport says it too.
        headers["redelivered"] = True
    info[QUEUE] = taken.queue
    info[LEASE] = (consumer, taken.id, taken.fence)
    if headers.get("eta"):
        # Celery would wait for it a second time.
        headers[WAITED_HEADER] = headers.pop("eta")
    message["headers"] = headers
    properties["delivery_tag"] = tag
    return message  # type: ignore[no-any-return]
