"""Keep states in this process for a while; a full cache evicts the least recently used one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

from ...store.stream import StreamName


class MemoryStateCache:
    """A StateCache of a limited number of states. Safe for threads; each process has its own.

    Args:
        size: the most states that it keeps.
        ttl_s: seconds for which a state is kept after it was last used.
        clock: returns seconds that never decrease.
    """

    def __init__(
        self, *, size: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lock = threading.Lock()
        self._states: TTLCache[StreamName, bytes] = TTLCache(size, ttl_s, timer=clock)

    def __len__(self) -> int:
        with self._lock:
            self._states.expire()
            return len(self._states)

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state, and restart its time to live; see `StateCache.get`."""
        with self._lock:
            state = self._states.get(stream)
            if state is not None:
                # TTLCache counts only from the last write.
                self._states[stream] = state
            return state

    def put(self, stream: StreamName, state: bytes) -> None:
        """Keep a stream's state; see `StateCache.put`."""
        with self._lock:
            self._states[stream] = state

    def remove(self, stream: StreamName) -> None:
        """Remove a stream's state; see `StateCache.remove`."""
        with self._lock:
            self._states.pop(stream, None)
