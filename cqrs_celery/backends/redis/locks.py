"""Keep locks of aggregates in Redis, by python-redis-lock: among all processes on all hosts.

    <prefix>cq:lock:<stream>         STRING  its holder; expires
    <prefix>cq:lock-signal:<stream>  LIST    wakes one that waits; expires

A lock costs three round trips. It expires after `EXPIRE_S`, also in the middle of a handler; there
is no fencing token. So it spares work, and promises nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import redis
import redis_lock

from ...errors import StoreUnavailable
from ...store.refusals import lock_timeout
from ...store.stream import StreamName

logger = logging.getLogger(__name__)

#: Seconds after which a dead holder's lock is free again, and a slow one's too. Whole ones: the
#: library cuts off the rest.
EXPIRE_S = 10

#: Seconds for which a waiter blocks before it looks again: a lock that expires wakes nobody.
LOOK_S = 1.0

# It tells of each acquisition at INFO, and of each attempt in vain at WARNING: here, everyday life.
if redis_lock.logger_for_acquire.level == logging.NOTSET:
    redis_lock.logger_for_acquire.setLevel(logging.ERROR)


class _Lock(redis_lock.Lock):  # type: ignore[misc]
    """One use of a lock, under a key of ours, with a wait that ends when it should.

    The library's own wait begins anew whenever another waiter was quicker, takes whole seconds
    only, and none that is longer than the lock lives.
    """

    def __init__(self, client: redis.Redis, prefix: str, name: str, *, expire_s: int) -> None:
        host = socket.gethostname().encode("ascii", "replace").decode()
        super().__init__(
            client, name, expire=expire_s, id=f"{host}, process {os.getpid()}, {uuid4().hex[:12]}"
        )
        self._name = f"{prefix}cq:lock:{name}"
        self._signal = f"{prefix}cq:lock-signal:{name}"

    def wait(self, seconds: float) -> bool:
        """Acquire the lock within so many seconds; says whether it was."""
        deadline = time.monotonic() + seconds
        while not self._is_acquired():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            # 0 would block for ever.
            self._client.blpop([self._signal], timeout=max(min(left_s, LOOK_S), 0.01))
        return True

    def _is_acquired(self) -> bool:
        try:
            return bool(self.acquire(blocking=False))
        except redis_lock.AlreadyAcquired:
            # The reply to an earlier attempt was lost.
            return True


class RedisLocks:
    """Give locks that exclude whoever uses the same Redis database and prefix.

    Args:
        client: returns a redis client that gives bytes, with a socket timeout that is longer than
            `LOOK_S`; asked once per lock, so that it may differ from process to process.
        prefix: in front of every key; on Redis Cluster it holds the hash tag.
        where: names the server in errors, without credentials.
        expire_s: seconds after which a lock is free again; a whole number from 1.
    """

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        *,
        prefix: str = "",
        where: str = "Redis",
        expire_s: int = EXPIRE_S,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._where = where
        self._expire_s = expire_s

    @contextmanager
    def hold(self, stream: StreamName, *, wait_s: float) -> Iterator[None]:
        """Hold an aggregate's lock while the block runs, or until it expires.

        Raises:
            LockTimeout: somebody else held it all the time.
            StoreUnavailable: the server does not answer.
        """
        lock, holder = None, None
        with self._reach(stream):
            lock = _Lock(self._client(), self._prefix, stream.key, expire_s=self._expire_s)
            is_held = lock.wait(wait_s)
            if not is_held:
                holder = lock.get_owner_id()
        if not is_held:
            raise lock_timeout(stream, holder=holder or "somebody just now", waited_s=wait_s)
        try:
            yield
        finally:
            self._release(lock, stream)

    def _release(self, lock: _Lock, stream: StreamName) -> None:
        """Give a lock back. What was done under it stands, whatever comes of that."""
        try:
            lock.release()
        except redis_lock.NotAcquired:
            logger.warning(
                "lock of %s expired before its end, after %s s",
                stream,
                self._expire_s,
                extra={"stream": str(stream), "expire_s": self._expire_s},
            )
        except redis.RedisError as error:
            logger.warning(
                "lock of %s not released, it will expire within %s s: %s",
                stream,
                self._expire_s,
                error,
                extra={"stream": str(stream), "expire_s": self._expire_s, "why": str(error)},
            )

    @contextmanager
    def _reach(self, stream: StreamName) -> Iterator[None]:
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError, redis.OutOfMemoryError) as error:
            raise StoreUnavailable(
                f"could not lock {stream}: {self._where} does not answer, or has no memory left"
                f" ({error}). Start it, or correct its URL."
            ) from error
