"""The form of a message in a stock Redis queue: JSON that contains the body, base64-encoded.

Parts that Kombu does not interpret are kept unchanged.
"""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from ..transport.envelope import SEQUENCE_HEADER, WAITED_HEADER, split
from ..transport.publishing import delay_ms
from .stored import parsed


class Wants(NamedTuple):
    """The properties of a stock message that our queue handles itself.

    Attributes:
        sequence: the message's sequence; empty without one.
        wait_ms: milliseconds until its ETA; 0 if it has none, or a past one.
    """

    sequence: str = ""
    wait_ms: int = 0


def stock_message(payload: bytes, body: bytes, *, queue: str, due_ms: int | None = None) -> bytes:
    """Return a message of ours as stock Kombu writes it.

    Args:
        payload: the message's head and body, only its head, a whole stock message, or nothing.
        body: the part that it shares with other messages: nothing, its body, or all of it.
        queue: the queue that holds it.
        due_ms: the time before which it may not run, in milliseconds of Redis's clock; it becomes
            the message's ETA.

    Raises:
        ValueError: the head can't be read.
    """
    head, body = split(payload, body)
    message = _object(parsed(head))
    properties = _object(message.setdefault("properties", {}))
    headers = message["headers"] = _object(message.get("headers") or {})
    if "body" not in message:
        message["body"] = b64encode(body).decode()
        properties["body_encoding"] = "base64"
    properties["delivery_tag"] = str(uuid4())
    place = _object(properties.setdefault("delivery_info", {}))
    place.setdefault("exchange", "")
    place.setdefault("routing_key", queue)
    if WAITED_HEADER in headers:
        del headers[WAITED_HEADER]
    if due_ms is not None:
        headers["eta"] = datetime.fromtimestamp(due_ms / 1000, UTC).isoformat()
    return json.dumps(message).encode()


def wants_of(element: bytes) -> Wants:
    """Return the sequence and ETA of a ready list's element; empty if it is not a stock message."""
    try:
        headers = parsed(element)["headers"]
        return Wants(str(headers.get(SEQUENCE_HEADER) or ""), delay_ms(headers.get("eta")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Wants()


def redelivered(message: dict[str, Any]) -> bytes:
    """Return a message that goes back to its queue, marked as stock Kombu marks it."""
    for place in (message.get("headers"), message["properties"].get("delivery_info")):
        if isinstance(place, dict):
            place["redelivered"] = True
    return json.dumps(message).encode()


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a JSON object")
    return value
