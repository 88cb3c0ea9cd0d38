"""Read messages as they are stored: a payload, and a body that queues may share.

If a message shares its body, its payload begins with `@`, the body's id and a newline.
"""

from __future__ import annotations

from typing import Any

from .names import key_of

#: Bytes of messages that are read in one step, unless a single message is larger. A take has the
#: same limit.
MOST_BYTES = 16 * 2**20

#: How many messages are read in the first step, before their size is known, and how many at most.
FIRST_READ, MOST_READ = 16, 200


def next_read(count: int, size: int) -> int:
    """Return how many messages to read in the next step.

    Args:
        count: how many were read in the last step.
        size: how many bytes these had together.
    """
    return max(1, min(MOST_READ, MOST_BYTES * count // max(1, size)))


def stored(client: Any, prefix: str, message_id: int) -> tuple[bytes, bytes]:
    """Return a stored message's payload and shared body; each is empty if there is none.

    Args:
        client: a redis client that returns bytes.
        prefix: the prefix of every key.
        message_id: the message's id.
    """
    return with_body(client, prefix, client.hget(key_of(prefix, "msg"), str(message_id)) or b"")


def with_body(client: Any, prefix: str, payload: bytes) -> tuple[bytes, bytes]:
    """Return a payload without its mark, and the body that it shares; empty if it shares none.

    Args:
        client: a redis client that returns bytes.
        prefix: the prefix of every key.
        payload: the payload as it is stored.
    """
    if not payload.startswith(b"@"):
        return payload, b""
    mark, _, rest = payload.partition(b"\n")
    return rest, client.hget(key_of(prefix, "body"), mark[1:]) or b""
