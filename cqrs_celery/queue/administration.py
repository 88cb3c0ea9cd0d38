"""Administer queues: declare, list, count, pause, purge and delete them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from .names import checked
from .scripts import Script, load
from .values import QueueCount, SequenceCount
from .virtual_host import VirtualHost

#: The most messages purged in one script, so that the server is never blocked for long.
PURGE_BATCH = 1_000

_count = load("count")
_declare = load("declare")
_expired = load("expired")
_pause = load("pause")
_purge = load("purge")
_resume = load("resume")


class Administration(VirtualHost):
    """The operations on whole queues; see `VirtualHost` for the arguments."""

    def declare(self, queue: str, *, expires_ms: int = 0, ttl_ms: int | None = None) -> None:
        """Declare a queue, so that it is listed even while it is empty.

        Args:
            queue: its name.
            expires_ms: milliseconds after which the queue and its messages are deleted if it has no
                consumer and was not declared again; 0 for never.
            ttl_ms: milliseconds for which a message may wait in the queue, whoever publishes it;
                see `publish`. 0 for no limit; None to keep what was declared before.

        Raises:
            ValueError: its name would collide with the queue's own keys.
        """
        limit = "" if ttl_ms is None else ttl_ms
        _declare(self.client, self.routing_keys, [self.prefix, checked(queue), expires_ms, limit])
        self.without_ttl.pop(queue, None)

    def delete_expired(self) -> list[str]:
        """Delete the unused queues whose time is over, with their messages.

        A queue stays declared until its last message is deleted. If the call is interrupted, the
        next one continues.

        Returns:
            The names of the deleted queues.
        """
        names = [name.decode() for name in _expired(self.client, self.routing_keys, [self.prefix])]
        gone = [name for name in names if self._purge(name, must_be_expired=True) == 0]
        for name in gone:
            self.upkeep.forget(name)
        return gone

    def _purge(self, queue: str, *, must_be_expired: bool) -> int:
        """Purge until nothing is left; return the last answer, below 0 if purging is refused."""
        while True:
            args = [self.prefix, queue, PURGE_BATCH, int(must_be_expired)]
            if (count := int(_purge(self.client, self.routing_keys, args))) <= 0:
                return count

    def pause(self, queues: Sequence[str]) -> list[str]:
        """Pause queues: from now on no consumer takes a message from them.

        All their messages are kept, in order. Consumers finish what they hold, or give it back. A
        queue can be paused before it is declared. It stays paused until it is resumed, whatever is
        restarted meanwhile.

        Args:
            queues: their names.

        Returns:
            The queues that were not paused before.
        """
        return self._changed(_pause, queues)

    def resume(self, queues: Sequence[str]) -> list[str]:
        """Resume paused queues.

        Args:
            queues: their names.

        Returns:
            The queues that were paused.
        """
        return self._changed(_resume, queues)

    def _changed(self, script: Script, queues: Sequence[str]) -> list[str]:
        flags = script(self.client, self.routing_keys, [self.prefix, *queues]) if queues else ()
        return [queue for queue, flag in zip(queues, flags, strict=True) if flag]

    def paused(self) -> list[str]:
        """Return the queues that are paused, sorted."""
        names = cast("set[bytes]", self.client.smembers(self.key("paused")))
        return sorted(name.decode() for name in names)

    def forget(self, queue: str) -> None:
        """Undo the declaration of a queue; its messages stay."""
        with self.client.pipeline(transaction=True) as pipe:
            for name in ("queues", "called", "raw"):
                pipe.srem(self.key(name), queue)
            pipe.execute()

    def exists(self, queue: str) -> bool:
        """Return whether a queue was declared."""
        return bool(self.client.sismember(self.key("queues"), queue))

    def queues(self) -> list[str]:
        """Return the names of the declared queues, sorted."""
        names = cast("set[bytes]", self.client.smembers(self.key("queues")))
        return sorted(name.decode() for name in names)

    def purge(self, queue: str) -> int:
        """Delete a queue's messages, except those in flight and dead letters; return how many."""
        total = 0
        while count := int(
            _purge(self.client, self.routing_keys, [self.prefix, queue, PURGE_BATCH, 0])
        ):
            total += count
        return total

    def delete(self, queue: str) -> int:
        """Purge a queue and undo its declaration; return how many messages were deleted."""
        count = self.purge(queue)
        self.forget(queue)
        self.upkeep.forget(queue)
        self.client.hdel(self.key("ttl"), queue)
        self.client.srem(self.key("paused"), queue)
        return count

    def count(self, queue: str) -> QueueCount:
        """Count a queue's messages by what they wait for, without reading each of them."""
        return self.count_all(queue)[0]

    def count_all(self, queue: str) -> tuple[QueueCount, SequenceCount]:
        """Count a queue's messages and sequences by what they wait for, in one round trip."""
        numbers = [int(n) for n in _count(self.client, self.routing_keys, [self.prefix, queue])]
        return QueueCount(*numbers[:6]), SequenceCount(*numbers[6:])
