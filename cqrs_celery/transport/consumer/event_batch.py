"""Merge several events into one message, for a task that takes many at once.

The heads of the task's messages say so. Only new events are merged: an event that was delivered
before is handled alone, so that the one that can't be handled is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...queue.values import Taken
from ..envelope import BODY

#: The header of a message that may be merged with others; its value is the most messages.
BATCH_HEADER = "cqrs_batch"

_OPENING, _CLOSING = (part.encode() for part in BODY)
_MARK = f'"{BATCH_HEADER}":'.encode()


def task_of(taken: Taken) -> bytes:
    """Return the task for which a message may be merged with others; empty if it may not."""
    if taken.tries or taken.has_letter or not taken.body or _MARK not in taken.payload:
        return b""
    if not (taken.body.startswith(_OPENING) and taken.body.endswith(_CLOSING)):
        return b""
    _, _, rest = taken.payload.partition(b'"task":"')
    return rest.partition(b'"')[0]


def most_of(taken: Taken) -> int:
    """Return how many messages its task takes at once."""
    digits = taken.payload.partition(_MARK)[2].partition(b",")[0].rstrip(b"} ")
    return int(digits) if digits.isdigit() and len(digits) < 10 else 1


def merge(first: dict[str, Any], taken: Sequence[Taken]) -> dict[str, Any]:
    """Return the Kombu message of several events: the first one's, with all events as argument.

    Args:
        first: the first event's message; it is changed.
        taken: the deliveries of all events, in their order.
    """
    events = b",".join([one.body[len(_OPENING) : -len(_CLOSING)] for one in taken])
    first["body"] = b"".join((_OPENING, b"[", events, b"]", _CLOSING))
    first["headers"]["argsrepr"] = f"(<{len(taken)} recorded events>,)"
    return first
