"""The format of a Kombu message in the queue: its head as one line of JSON, then the plain body.

The body is neither escaped nor base64-encoded. So it takes no more space than its own size, and the
event store can put a head in front of a body that several queues share. A complete stock message,
as other producers push it, can be read too.
"""

from __future__ import annotations

import base64
from typing import Any
from uuid import UUID

import msgspec
from kombu.utils.json import JSONEncoder, loads

from ..nesting import READ_LEVELS, is_too_deep
from ..queue.values import Taken

#: The header that names the sequence whose order a message keeps.
SEQUENCE_HEADER = "cqrs_sequence"

#: The key in the delivery info for who holds a message: consumer, message id, fence.
LEASE = "cqrs_lease"

#: The key in the delivery info for the time, by this machine's `elapsed_s`, until which no other
#: consumer can have the message. After it, Redis must be asked.
HELD_UNTIL = "cqrs_held_until"

#: The key in the delivery info for the queue that a message came from.
QUEUE = "queue"

#: The header that keeps a message's due time once the queue has waited for it.
WAITED_HEADER = "cqrs_eta"

#: The argument of a queue's declaration for the most messages that one of its tasks takes.
BATCH_ARGUMENT = "x-cqrs-batch"

#: The text before and after a recorded event in the body of a Celery task.
BODY = ("[[", '],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]')

#: A head's parts, in the order in which they are written.
_HEAD = ("content-encoding", "content-type", "properties", "headers")


#: Kombu's encoder, made once and without spaces.
_encode = JSONEncoder(separators=(",", ":")).encode

#: A mark in JSON that contains a value of a type that JSON does not know, as Kombu writes it.
_TYPED = b"__type__"


#: The most bytes that a head may have; Celery's heads have a few hundred. A stock message's head
#: contains its body, so it has no limit.
_HEAD_BYTES = 1 << 20

#: The characters of an error's text that are kept: it may quote the head.
_ERROR_CHARACTERS = 1000

#: Headers and properties that hold a task's id.
_IDS = frozenset({"id", "root_id", "parent_id", "group", "correlation_id"})

#: The encodings that a body may have in the queue, by Kombu's names; `None` is the plain body.
_BODY_ENCODINGS = (None, "base64")


class _Properties(msgspec.Struct):
    """The properties of a message that Kombu and Celery use, and their types."""

    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    body_encoding: str | None = None


class UnreadableEnvelope(ValueError):
    """An entry of the queue is not a readable message."""


def head_of(message: dict[str, Any]) -> str:
    """Return a message's head as one line of JSON.

    Args:
        message: the message, as Kombu makes it.
    """
    return str(_encode({name: message.get(name) for name in _HEAD}))


def body_of(message: dict[str, Any]) -> bytes:
    """Return a message's body as bytes.

    Args:
        message: the message, as Kombu makes it.
    """
    body = message["body"]
    return body.encode() if isinstance(body, str) else body or b""


def read_json(text: bytes) -> Any:
    """Decode JSON with Kombu's result, in a quarter of Kombu's time.

    Args:
        text: the JSON.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or contains a value that can't be
            converted to the type it names.
    """
    if _TYPED not in text:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            # msgspec is stricter than Kombu: it rejects NaN, for example.
            pass
    try:
        return loads(text)
    except (ValueError, MemoryError):
        raise
    except Exception as error:
        # From the decoder of a type that Kombu knows, or that an application has registered.
        raise ValueError(f"{type(error).__name__}: {error}") from error


def joined(head: str, body: bytes) -> bytes:
    """Return a message as the queue stores it: head, newline, body."""
    return head.encode() + b"\n" + body


def split(payload: bytes, shared: bytes) -> tuple[bytes, bytes]:
    """Return a stored message's head and body.

    Args:
        payload: the message's own part: all of it, its head, or nothing.
        shared: the part that it shares with the same message in other queues: nothing, its body,
            or all of it.
    """
    head, _, body = (payload or shared).partition(b"\n")
    return head, (shared or body) if payload else body


def decode(taken: Taken, tag: str, consumer: str, *, held_until: float = 0.0) -> dict[str, Any]:
    """Return the Kombu message of a delivery.

    Args:
        taken: the delivery.
        tag: the message's delivery tag.
        consumer: the name of the consumer that holds it.
        held_until: the time of `elapsed_s` until which the consumer is certain to hold it.

    Raises:
        UnreadableEnvelope: the head is not a message's head, or the body is not encoded as the head
            says; the text says what is wrong.
    """
    head, body = split(taken.payload, taken.body)
    try:
        message = _read_head(head)
        # A stock message contains its body: nothing follows the head, and the queue did not wait.
        is_stock = "body" in message
        message.setdefault("body", body)
        if message["properties"].get("body_encoding"):
            # Otherwise Kombu would fail while it makes the message, where nothing handles that.
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
        # Kombu's Redis transport sets this header too.
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
    """Return a head's parts, each of the type that Kombu expects.

    Raises:
        ValueError: the head is not JSON, or a part has another type.
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
    """Convert ids that a sender gave as UUIDs, which Kombu's JSON keeps as such, to text."""
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
        # Celery sends a number if the task's id is one.
        properties["correlation_id"] = str(properties["correlation_id"])
    # Only validated: the other properties belong to others, and are kept.
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
    """Check a message that came by pub/sub, for remote control or events; none of these is stored.

    Args:
        message: the decoded JSON.

    Raises:
        ValueError: Kombu could not make a message of it.
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
    """Return "name[id]" of a delivery's task for the log; "" if it is no task or unreadable."""
    try:
        headers = read_json(split(taken.payload, taken.body)[0])["headers"]
        return f"{headers['task']}[{headers['id']}]"
    except (ValueError, KeyError, TypeError):
        return ""
