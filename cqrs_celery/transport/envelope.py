"""How a Kombu message lies in the queue: its head as one line of JSON, then the body as it is.

The body is neither escaped nor base64-encoded, so it costs its own size, and the event store can
put a head in front of a body that several queues share. A whole stock message, as other producers
push it, is read too.
"""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

import msgspec
from kombu.utils.json import JSONEncoder, loads

from ..nesting import READ_LEVELS, is_too_deep
from ..queue.values import Taken

#: The header that names what a message must stay in order with; see DESIGN's "sequence".
SEQUENCE_HEADER = "cqrs_sequence"

#: The delivery info that says who holds a message: consumer, message id, fence.
LEASE = "cqrs_lease"

#: The delivery info that says until when, by `elapsed_s` of this machine, nobody else can have the
#: message; later, Redis must be asked.
HELD_UNTIL = "cqrs_held_until"

#: The delivery info that says from which queue a message came.
QUEUE = "queue"

#: Where a message's due time is kept once the queue has waited for it.
WAITED_HEADER = "cqrs_eta"

#: The argument of a queue's declaration that says how many messages a task of it takes at most.
BATCH_ARGUMENT = "x-cqrs-batch"

#: What goes before and after a recorded event to make the body of a Celery task.
BODY = ("[[", '],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]')

#: A head's parts, in the order in which they are written.
_HEAD = ("content-encoding", "content-type", "properties", "headers")


#: Kombu's encoder, made once and without spaces.
_encode = JSONEncoder(separators=(",", ":")).encode

#: In JSON that has a value of a type that JSON does not know, as Kombu writes it.
_TYPED = b"__type__"


#: Bytes that a head may have, which Celery writes in some hundreds; a stock message's own holds its
#: body, so it may have any number.
_HEAD_BYTES = 1 << 20

#: Of an error's text, how much is kept: it may quote the head.
_ERROR_CHARACTERS = 1000

#: Headers and properties that hold a task's id.
_IDS = frozenset({"id", "root_id", "parent_id", "group", "correlation_id"})

#: How a body may be encoded in the queue, by Kombu's names; `None` is as it is.
_BODY_ENCODINGS = (None, "base64")


class _Properties(msgspec.Struct):
    """What Kombu and Celery use of a message's properties, and of which types."""

    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    body_encoding: str | None = None


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
        ValueError: it is no JSON, is nested too deep, or holds a value that its type can't be made
            of.
    """
    if _TYPED not in text:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            # Stricter than Kombu: NaN, for one, is no JSON.
            pass
    try:
        return loads(text)
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        # Of a decoder of one of the types that Kombu knows, or that somebody has registered.
        raise ValueError(f"{type(error).__name__}: {error}") from error


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
        held_until: time of `elapsed_s` until which it surely does.

    Raises:
        UnreadableEnvelope: its head is not a message's head, or its body is not encoded as it
            says; the text says what is wrong.
    """
    head, body = split(taken.payload, taken.body)
    try:
        message = _read_head(head)
        # A stock message has its body inside; then nothing follows the head, and nothing waited.
        is_stock = "body" in message
        message.setdefault("body", body)
        if message["properties"].get("body_encoding"):
            # Kombu would stumble over it while it makes the message, where nobody expects that.
            base64.b64decode(message["body"])
    except ValueError as error:
        raise UnreadableEnvelope(
            f"message {taken.id} of queue {taken.queue} has no readable head:"
            f" {ascii(str(error))[1:-1][:_ERROR_CHARACTERS]}"
        ) from error
    headers, properties = message["headers"] or {}, message["properties"]
    info = properties["delivery_info"]
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
    return message


def _read_head(head: bytes) -> dict[str, Any]:
    """Return a head's parts, each of the type that Kombu takes for granted.

    Raises:
        ValueError: it is no JSON, or a part has another type.
    """
    if is_too_deep(head):
        raise ValueError(f"it is nested deeper than {READ_LEVELS} levels")
    message = read_json(head)
    if type(message) is not dict:
        raise ValueError(f"an object was expected, not {type(message).__name__}")
    if _TYPED in head:
        _write_out_ids(message)
    _check_parts(message)
    if "body" in message:
        body = message["body"]
        if type(body) is not str:
            raise ValueError(f"its body is no text, but {type(body).__name__}")
    elif len(head) > _HEAD_BYTES:
        raise ValueError(f"it has {len(head)} bytes; accepted: {_HEAD_BYTES}")
    return message


def _write_out_ids(message: dict[str, Any]) -> None:
    """Make texts of the ids that a sender gave as UUIDs, which Kombu's JSON keeps as such."""
    for part in (message.get("headers"), message.get("properties")):
        if type(part) is dict:
            for name in _IDS & part.keys():
                if isinstance(part[name], UUID):
                    part[name] = str(part[name])


def _check_parts(message: dict[str, Any]) -> None:
    for name in ("headers", "properties"):
        if name not in message:
            raise ValueError(f"it has no {name}")
    headers, properties = message["headers"], message["properties"]
    if headers is not None and type(headers) is not dict:
        raise ValueError(f"its headers are no object, but {type(headers).__name__}")
    if type(properties) is not dict:
        raise ValueError(f"its properties are no object, but {type(properties).__name__}")
    if type(properties.get("correlation_id")) is int:
        # As Celery sends it of a task whose id is a number.
        properties["correlation_id"] = str(properties["correlation_id"])
    # Validated beside, not decoded into: what else there is belongs to others, and is kept.
    if msgspec.convert(properties, _Properties).body_encoding not in _BODY_ENCODINGS:
        found = properties["body_encoding"]
        raise ValueError(f"its body_encoding is {found!r}; accepted: none, or 'base64'")
    info = properties.get("delivery_info")
    if info is None:
        properties["delivery_info"] = {}
    elif type(info) is not dict:
        raise ValueError(f"its delivery_info is no object, but {type(info).__name__}")
    for name in ("content-type", "content-encoding"):
        if not isinstance(message.get(name), str | None):
            raise ValueError(f"its {name} is no text, but {type(message[name]).__name__}")


def check_broadcast(message: Any) -> None:
    """Check what came by pub/sub, where nothing is kept: for remote control, for events.

    Raises:
        ValueError: Kombu could make no message of it.
    """
    if type(message) is not dict:
        raise ValueError(f"an object was expected, not {type(message).__name__}")
    _check_parts(message)
    properties = message["properties"]
    if "delivery_tag" not in properties:
        raise ValueError("it has no delivery_tag")
    if properties.get("body_encoding"):
        base64.b64decode(message.get("body") or b"")


def task_of(taken: Taken) -> str:
    """Return "name[id]" of a delivery's task, for a log; "" if it is none or can't be read."""
    try:
        headers = read_json(split(taken.payload, taken.body)[0])["headers"]
        return f"{headers['task']}[{headers['id']}]"
    except (ValueError, KeyError, TypeError):
        return ""
