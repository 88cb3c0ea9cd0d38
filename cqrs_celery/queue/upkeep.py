"""Keep the form of the keys, and the counts of what stands in sequences, right.

Releases that write different forms run side by side while a deployment goes on. `_counts.lua` says
what the counts are, and when nobody relies on them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis

from .scripts import load

#: The form of the keys that this release writes, as `cq:format` has it; see upgrade.lua.
FORMAT = 2

#: About how many sequences are counted anew in one script, so that the server is never blocked for
#: long.
RECOUNT_BATCH = 500

_recount = load("recount")
_upkeep = load("upkeep")
_upgrade = load("upgrade")


class UpkeepTurn(NamedTuple):
    """The answer to a consumer that asks to do the queues' upkeep.

    Attributes:
        is_ours: whether it shall.
        old_consumers: how many consumers of a release that keeps no counts are there; 0 where
            another one does the upkeep.
    """

    is_ours: bool
    old_consumers: int


class Upkeep:
    """The upkeep of one virtual host's queues.

    Args:
        client: a redis client that returns bytes.
        prefix: in front of every key.
    """

    def __init__(self, client: redis.Redis, *, prefix: str = "") -> None:
        # The driver's types fit no reply exactly.
        self._redis: Any = client
        self._prefix = prefix
        self._keys = [f"{prefix}cq:id"]

    def take(self, consumer: str, for_ms: int) -> UpkeepTurn:
        """Ask to do the upkeep, and look for consumers of an older release.

        Args:
            consumer: who asks.
            for_ms: milliseconds for which nobody else does it. A consumer of an older release that
                is seen now is thought to be there for twice as long.
        """
        args = [self._prefix, consumer, for_ms, 2 * for_ms]
        is_ours, old = _upkeep(self._redis, self._keys, args)
        return UpkeepTurn(bool(is_ours), int(old))

    def recount(self, queue: str, *, most: int = RECOUNT_BATCH, fresh_ms: int = 0) -> int | None:
        """Count a queue's sequences anew, a slice of them a call.

        Args:
            queue: its name.
            most: about how many sequences to look at in this call.
            fresh_ms: milliseconds for which a count stays good; nothing is done where there is one
                that can be relied on. 0 to count in any case.

        Returns:
            By how much the counts were off, in messages and sequences; None while it isn't done:
            call again, in whatever process.
        """
        args = [self._prefix, queue, most, fresh_ms]
        is_done, off = _recount(self._redis, self._keys, args)
        return int(off) if is_done else None

    def forget(self, queue: str) -> None:
        """Delete the counts of a queue; what is in its sequences still is counted when needed."""
        names = ("counts", "recount", "recounted")
        self._redis.delete(*(f"{self._prefix}cq:{name}:{queue}" for name in names))

    def raise_format(self) -> int:
        """Raise the number of the keys' form to that of this release; returns the one now.

        One that is higher than `FORMAT` is of a later release, and stays: whoever gets it must not
        use the queues.
        """
        return int(_upgrade(self._redis, self._keys, [self._prefix, FORMAT]))
