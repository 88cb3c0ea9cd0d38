"""Keep locks of aggregates in this process, for its threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ...store.refusals import lock_timeout
from ...store.stream import StreamName


class _Lock:
    """The lock of one aggregate; it exists while a thread holds it or waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.holder = ""


class MemoryLocks:
    """Locks that exclude the threads of this process from each other. They do not expire."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[StreamName, _Lock] = {}

    @contextmanager
    def hold(self, stream: StreamName, *, wait_s: float) -> Iterator[None]:
        """Hold an aggregate's lock while the block runs.

        Args:
            stream: the aggregate's stream.
            wait_s: the most seconds to wait for the lock.

        Raises:
            LockTimeout: another thread held the lock all that time.
        """
        with self._guard:
            entry = self._locks.setdefault(stream, _Lock())
            entry.users += 1
        try:
            if not entry.lock.acquire(timeout=wait_s):
                raise lock_timeout(stream, holder=entry.holder, waited_s=wait_s)
            entry.holder = threading.current_thread().name
            try:
                yield
            finally:
                entry.lock.release()
        finally:
            with self._guard:
                entry.users -= 1
                if not entry.users:
                    del self._locks[stream]
