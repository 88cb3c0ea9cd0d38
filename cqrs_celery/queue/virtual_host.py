"""One virtual host: the queues under one key prefix of one Redis database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import redis

from .dead_letters import DeadLetters
from .names import key_of
from .stored import FIRST_READ, next_read, stored, with_body
from .upkeep import Upkeep

#: Milliseconds for which a publish id is remembered. No client repeats a publish for longer.
DEDUP_TTL_MS = 120_000


class VirtualHost:
    """The keys of the queues under one prefix, and the messages that are stored there.

    Args:
        client: a redis client that returns bytes.
        prefix: the prefix of every key; on Redis Cluster it holds the hash tag, as in `{shop}.`.
        dedup_ttl_ms: milliseconds for which a publish id is remembered.
    """

    def __init__(
        self, client: redis.Redis, *, prefix: str = "", dedup_ttl_ms: int = DEDUP_TTL_MS
    ) -> None:
        self.client = client
        self.prefix = prefix
        self.dedup_ttl_ms = dedup_ttl_ms
        #: `KEYS` of every script; they route it to the queues' slot
        self.routing_keys = [f"{prefix}cq:id"]
        #: queues without a limit on how long a message may wait, each with the monotonic time until
        #: which this is taken as known
        self.without_ttl: dict[str, float] = {}
        #: The dead letters of these queues.
        self.letters = DeadLetters(client, prefix=prefix)
        #: The format of the keys, and the counts of the messages in sequences.
        self.upkeep = Upkeep(client, prefix=prefix)

    def key(self, name: str) -> str:
        """Return the full name of one of the queue's own keys."""
        return key_of(self.prefix, name)

    def read(self, message_id: int) -> tuple[bytes, bytes]:
        """Return a stored message's payload and shared body; each is empty if there is none."""
        return stored(self.client, self.prefix, message_id)

    def read_many(self, message_ids: Sequence[int | bytes]) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield payload and shared body of each message; None for one that is not stored.

        The messages are read when they are needed, about `MOST_BYTES` in one step.

        Args:
            message_ids: the messages' ids, in the order of the result.
        """
        client: Any = self.client
        start, some = 0, FIRST_READ
        while start < len(message_ids):
            ids = message_ids[start : start + some]
            payloads = client.hmget(self.key("msg"), ids)
            size = 0
            for payload in payloads:
                found = None if payload is None else with_body(self.client, self.prefix, payload)
                size += sum(map(len, found or ()))
                yield found
            start += len(ids)
            some = next_read(len(ids), size)
