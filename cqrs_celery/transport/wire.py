"""How a Kombu message lies in the queue: its head as one line of JSON, then the body as it is.

The body is neither escaped nor base64-encoded, so it costs its own size, and the event store can
put a head in front of a body that several queues share. A whole stock message, as other producers
push it, is read too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from kombu.utils.json import JSONEncoder, loads

from ..queue.values import Taken

#: The header that names what a message must stay in order with; see DESIGN's "sequence".
SEQUENCE_HEADER = "cqrs_sequence"

#: The delivery info that says who holds a message: consumer, message id, fence.
LEASE = "cqrs_lease"

#: The delivery info that says until when, by the monotonic clock of this machine, nobody else can
#: have the message; later, Redis must be asked.
HELD_UNTIL = "cqrs_held_until"

#: The delivery info that says from which queue a message came.
QUEUE = "queue"

#: Where a message's due time is kept once the queue has waited for it.
WAITED_HEADER = "cqrs_eta"

#: A head's parts, in the order in which they are written.
_HEAD = ("content-encoding", "content-type", "properties", "headers")


#: Kombu's encoder, made once and without spaces.
_encode = JSONEncoder(separators=(",", ":")).encode

#: In JSON that has a value of a type that JSON does not know, as Kombu writes it.
_TYPED = b"__type__"


class UnreadableEnvelope(ValueError):
    """What lies in the queue is no message."""


def head_of(message: dict[str, Any]) -> str:
    """Return a message's head as one line of JSON."""
    return str(_encode({name: message.get(name) for name in _HEAD}))


def body_of(message: dict[str, Any]) -> bytes:
    """Return a message's body as bytes."""
    body = message["body"]
    return body.encode() if isinstance(body, str) else body or b""


def read_json(text: bytes) -> Any:
    """Return what JSON says, as Kombu would read it, in a quarter of the time.

    Raises:
        ValueError: it is no JSON.
    """
    if _TYPED not in text:
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            # Stricter than Kombu: NaN, for one, is no JSON.
            pass
    return loads(text)


def joined(head: str, body: bytes) -> bytes:
    """Return a message as the queue keeps it: head, newline, body."""
    return head.encode() + b"\n" + body


def split(payload: bytes, shared: bytes) -> tuple[bytes, bytes]:
    """Return a stored message's head and body.

    Args:
        payload: the message's own: all of it, its head, or nothing.
        shared: what it shares with the same message in other queues: nothing, its body, or all.
    """
    head, _, body = (payload or shared).partition(b"\n")
    return head, (shared or body) if payload else body


def decode(taken: Taken, tag: str, consumer: str, *, held_until: float = 0.0) -> dict[str, Any]:
    """Return the Kombu message of a delivery.

    Args:
        taken: the delivery.
        tag: becomes its delivery tag.
        consumer: holds it.
        held_until: monotonic time until which it surely does.

    Raises:
        UnreadableEnvelope: its head is not a message's head.
    """
    head, body = split(taken.payload, taken.body)
    try:
        message = read_json(head)
        headers, properties = message["headers"] or {}, message["properties"]
        info = properties.setdefault("delivery_info", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableEnvelope(
            f"message {taken.id} of queue {taken.queue} has no readable head: {error}"
        ) from error
    # A stock message has its body inside; then nothing follows the head, and nothing has waited.
    is_stock = "body" in message
    message.setdefault("body", body)
    info["redelivered"] = taken.tries > 0 or taken.has_letter
    if info["redelivered"]:
        # Where Kombu's Redis transport says it too.
        headers["redelivered"] = True
    info[QUEUE] = taken.queue
    info[LEASE] = (consumer, taken.id, taken.fence)
    info[HELD_UNTIL] = held_until
    if headers.get("eta") and not is_stock:
        # Celery would wait for it a second time.
        headers[WAITED_HEADER] = headers.pop("eta")
    message["headers"] = headers
    properties["delivery_tag"] = tag
    return message  # type: ignore[no-any-return]


def task_of(taken: Taken) -> str:
    """Return "name[id]" of a delivery's task, for a log; "" if it is none or can't be read."""
    try:
        headers = read_json(split(taken.payload, taken.body)[0])["headers"]
        return f"{headers['task']}[{headers['id']}]"
    except (ValueError, KeyError, TypeError):
        return ""
