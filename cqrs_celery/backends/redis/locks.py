"""Keep locks of aggregates in Redis, by python-redis-lock, for all processes on all hosts.

    <prefix>cq:lock:<stream>         STRING  its holder; expires
    <prefix>cq:lock-signal:<stream>  LIST    wakes one waiter; expires

A lock costs three round trips. It expires after `EXPIRE_S`, even while a handler runs, and has no
fencing token. So it saves work, but guarantees nothing.
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

#: Seconds after which the lock of a dead or slow holder is free again. A whole number, since the
#: library cuts off fractions.
EXPIRE_S = 10

#: Seconds for which a waiter blocks before it checks again; an expiring lock wakes no waiter.
LOOK_S = 1.0

# The library logs each acquisition at INFO, and each failed attempt at WARNING; both are normal.
if redis_lock.logger_for_acquire.level == logging.NOTSET:
    redis_lock.logger_for_acquire.setLevel(logging.ERROR)


class _Lock(redis_lock.Lock):  # type: ignore[misc]
    """One use of a lock, under our key, with a wait that ends in time.

    The library's own wait starts again whenever another waiter is faster, accepts only whole
    seconds, and can't be longer than the lock's time to live.
    """

    def __init__(self, client: redis.Redis, prefix: str, name: str, *, expire_s: int) -> None:
        host = socket.gethostname().encode("ascii", "replace").decode()
        super().__init__(
            client, name, expire=expire_s, id=f"{host}, process {os.getpid()}, {uuid4().hex[:12]}"
        )
        self._name = f"{prefix}cq:lock:{name}"
        self._signal = f"{prefix}cq:lock-signal:{name}"

    def wait(self, seconds: float) -> bool:
        """Acquire the lock within a number of seconds; return whether it was acquired."""
        deadline = time.monotonic() + seconds
        while not self._is_acquired():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            # A timeout of 0 would block forever.
            self._client.blpop([self._signal], timeout=max(min(left_s, LOOK_S), 0.01))
        return True

    def _is_acquired(self) -> bool:
        try:
            return bool(self.acquire(blocking=False))
        except redis_lock.AlreadyAcquired:
            # The reply to an earlier attempt was lost.
            return True


class RedisLocks:
    """Locks that exclude all users of the same Redis database and prefix from each other.

    Args:
        client: returns a redis client that returns bytes, with a socket timeout longer than
            `LOOK_S`; called once per lock, so that each process may have its own.
        prefix: the prefix of every key; on Redis Cluster it contains the hash tag.
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

        Args:
            stream: the aggregate's stream.
            wait_s: the most seconds to wait for the lock.

        Raises:
            LockTimeout: somebody else held the lock all that time.
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
        """Release a lock. If that fails, it is logged: the work done under the lock stands."""
        try:
            lock.release()
        except redis_lock.NotAcquired:
            logger.warning(
                "lock of %s expired after %s s, before it was released",
                stream,
                self._expire_s,
                extra={"stream": str(stream), "expire_s": self._expire_s},
            )
        except redis.RedisError as error:
            logger.warning(
                "lock of %s was not released, and expires within %s s: %s",
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
