"""Consumers of this process whose channel has closed while the server was away."""

from __future__ import annotations

from typing import Protocol

import redis


class Flushes(Protocol):
    """A consumer that can send what was settled."""

    def flush(self) -> None:
        """Send what was settled, without taking anything."""


#: Those that have something to send yet.
unfinished: set[Flushes] = set()


def flush_unfinished() -> None:
    """Send what closed channels give back, before another one takes what stands behind it."""
    for consumer in list(unfinished):
        try:
            consumer.flush()
        except redis.RedisError:
            continue
        unfinished.discard(consumer)
