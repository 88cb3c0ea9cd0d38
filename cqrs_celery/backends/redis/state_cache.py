"""Keep states in Redis for a while, for all processes.

<prefix>cq:cache:<stream>  STRING  a state; expires
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import redis

from ...store.stream import StreamName
from .reaching import reaching


class RedisStateCache:
    """A StateCache in one Redis database, under one key prefix.

    Args:
        client: returns a redis client that returns bytes; called once per operation.
        prefix: the prefix of every key; on Redis Cluster it contains the hash tag.
        ttl_s: seconds for which a state is kept after it was last used.
        where: names the server in errors, without credentials.
    """

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        *,
        ttl_s: float,
        prefix: str = "",
        where: str = "Redis",
    ) -> None:
        self._client = client
        self._ttl_ms = int(ttl_s * 1000)
        self._prefix = prefix
        self._where = where

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state, and restart its time to live; see `StateCache.get`."""
        with reaching(self._where, f"look for {stream} in the cache"):
            return cast("bytes | None", self._client().getex(self._key(stream), px=self._ttl_ms))

    def put(self, stream: StreamName, state: bytes) -> None:
        """Keep a stream's state; see `StateCache.put`."""
        with reaching(self._where, f"put {stream} into the cache"):
            self._client().set(self._key(stream), state, px=self._ttl_ms)

    def remove(self, stream: StreamName) -> None:
        """Remove a stream's state; see `StateCache.remove`."""
        with reaching(self._where, f"remove {stream} from the cache"):
            self._client().delete(self._key(stream))

    def _key(self, stream: StreamName) -> str:
        return f"{self._prefix}cq:cache:{stream.key}"
