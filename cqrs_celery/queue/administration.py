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
    """What is done to whole queues; see `VirtualHost` for the arguments."""

    def declare(self, queue: str, *, expires_ms: int = 0, ttl_ms: int | None = None) -> None:
        """Make a queue known, so that it is listed while it is empty.

        Args:
            queue: its name.
            expires_ms: milliseconds after which it is deleted with its messages, if by then it has
                no consumer and was not declared anew; 0 for never.
            ttl_ms: milliseconds for which a message may wait in it, whoever publishes it; see
                `publish`. 0 for no limit; None for what was declared before.

        Raises:
            ValueError: its name would collide with the queue's own keys.
        """
        limit = "" if ttl_ms is None else ttl_ms
        _declare(self.client, self.routing_keys, [self.prefix, checked(queue), expires_ms, limit])
        self.without_ttl.pop(queue, None)

    def delete_expired(self) -> list[str]:
        """Delete the unused queues whose time is over, with their messages; returns their names.

        A queue is known until its last message is gone: what ends in between, another call resumes.
        """
        names = [name.decode() for name in _expired(self.client, self.routing_keys, [self.prefix])]
        gone = [name for name in names if self._purge(name, must_be_expired=True) == 0]
        for name in gone:
            self.upkeep.forget(name)
        return gone

    def _purge(self, queue: str, *, must_be_expired: bool) -> int:
        """Purge until nothing is left; returns the last answer, below 0 if it may not be."""
        while True:
            args = [self.prefix, queue, PURGE_BATCH, int(must_be_expired)]
            if (count := int(_purge(self.client, self.routing_keys, args))) <= 0:
                return count

    def pause(self, queues: Sequence[str]) -> list[str]:
        """Pause queues: from now on nobody takes anything from them; all of it is kept, in order.

        What consumers hold is theirs to finish, or to give back. A queue need not be known, and
        stays paused until it is resumed, whatever restarts meanwhile.

        Returns:
            Those that were not paused before.
        """
        return self._changed(_pause, queues)

    def resume(self, queues: Sequence[str]) -> list[str]:
        """Let paused queues go on; returns those that were paused."""
        return self._changed(_resume, queues)

    def _changed(self, script: Script, queues: Sequence[str]) -> list[str]:
        flags = script(self.client, self.routing_keys, [self.prefix, *queues]) if queues else ()
        return [queue for queue, flag in zip(queues, flags, strict=True) if flag]

    def paused(self) -> list[str]:
        """Return the queues that are paused, sorted."""
        names = cast("set[bytes]", self.client.smembers(self.key("paused")))
        return sorted(name.decode() for name in names)

    def forget(self, queue: str) -> None:
        """Make a queue unknown again; its messages stay."""
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
        """Delete a queue's messages except those in flight and dead; returns how many."""
        total = 0
        while count := int(
            _purge(self.client, self.routing_keys, [self.prefix, queue, PURGE_BATCH, 0])
        ):
            total += count
        return total

    def delete(self, queue: str) -> int:
        """Purge a queue and forget that it was declared; returns how many messages it had."""
        count = self.purge(queue)
        self.forget(queue)
        self.upkeep.forget(queue)
        self.client.hdel(self.key("ttl"), queue)
        self.client.srem(self.key("paused"), queue)
        return count

    def count(self, queue: str) -> QueueCount:
        """Count a queue's messages by what they wait for, without going through them."""
        return self.count_all(queue)[0]

    def count_all(self, queue: str) -> tuple[QueueCount, SequenceCount]:
        """Count a queue's messages and its sequences by what they wait for; one round trip."""
        numbers = [int(n) for n in _count(self.client, self.routing_keys, [self.prefix, queue])]
        return QueueCount(*numbers[:6]), SequenceCount(*numbers[6:])
