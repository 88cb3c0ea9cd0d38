"""Keep the format of the keys, and the counts of the messages in sequences, correct.

During a deployment, releases that write different formats run at the same time. `_counts.lua` says
what the counts are, and when nobody relies on them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from .scripts import load

#: The format of the keys that this release writes, as stored in `cq:format`; see upgrade.lua.
FORMAT = 2

#: About how many sequences one script recounts, so that the server is never blocked for long.
RECOUNT_BATCH = 500

_recount = load("recount")
_upkeep = load("upkeep")
_upgrade = load("upgrade")


class UpkeepTurn(NamedTuple):
    """The answer to a consumer that asks to do the queues' upkeep.

    Attributes:
        is_ours: whether this consumer does the upkeep now.
        old_consumers: how many consumers run a release that keeps no counts; 0 if another consumer
            does the upkeep.
    """

    is_ours: bool
    old_consumers: int


class Upkeep:
    """The upkeep of one virtual host's queues.

    Args:
        client: a redis client that returns bytes.
        prefix: the prefix of every key.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = "") -> None:
        # The driver's types fit no reply exactly.
        self._redis: Any = client
        self._prefix = prefix
        self._keys = [f"{prefix}cq:id"]

    def take(self, consumer: str, for_ms: int) -> UpkeepTurn:
        """Ask to do the upkeep, and look for consumers of an older release.

        Args:
            consumer: the name of the consumer that asks.
            for_ms: milliseconds for which no other consumer does the upkeep. A consumer of an older
                release that is seen now is assumed to be there for twice as long.

        Returns:
            Whether this consumer does the upkeep, and how many consumers of older releases there
            are.
        """
        args = [self._prefix, consumer, for_ms, 2 * for_ms]
        is_ours, old = _upkeep(self._redis, self._keys, args)
        return UpkeepTurn(bool(is_ours), int(old))

    def recount(self, queue: str, *, most: int = RECOUNT_BATCH, fresh_ms: int = 0) -> int | None:
        """Recount a queue's sequences, a slice of them per call.

        Args:
            queue: its name.
            most: about how many sequences to examine in this call.
            fresh_ms: milliseconds for which a count stays valid; if there is a valid one, nothing
                is done. 0 to count in any case.

        Returns:
            By how much the counts were off, in messages and sequences. None while the recount is
            not finished: call again, in any process.
        """
        args = [self._prefix, queue, most, fresh_ms]
        is_done, off = _recount(self._redis, self._keys, args)
        return int(off) if is_done else None

    def forget(self, queue: str) -> None:
        """Delete the counts of a queue; its sequences are counted again when that is needed."""
        names = ("counts", "recount", "recounted")
        self._redis.delete(*(f"{self._prefix}cq:{name}:{queue}" for name in names))

    def raise_format(self) -> int:
        """Raise the keys' format number to that of this release.

        Returns:
            The format number from now on. If it is higher than `FORMAT`, a later release has set
            it: it is left as it is, and the caller must not use the queues.
        """
        return int(_upgrade(self._redis, self._keys, [self._prefix, FORMAT]))
