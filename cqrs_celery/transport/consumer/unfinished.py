"""The consumers of this process whose channel was closed while the server was away."""

from __future__ import annotations

from typing import Protocol

import redis


class Flushes(Protocol):
    """A consumer that can send its settlements."""

    def flush(self) -> None:
        """Send the settlements, without taking anything."""


#: The consumers that still have something to send.
unfinished: set[Flushes] = set()


def flush_unfinished() -> None:
    """Send what closed channels give back, before another channel takes what is behind it."""
    for consumer in list(unfinished):
        try:
            consumer.flush()
        except redis.RedisError:
            continue
        unfinished.discard(consumer)
