"""A pipe that wakes an event loop from any thread, and may be closed at any time."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """A pipe whose reading end becomes readable when `ring` is called.

    Any thread may ring at any time, even in a signal handler or a finalizer: no method waits for
    another. Once `close` was called, nothing is written: the descriptor's number may belong to
    another file by then.
    """

    __slots__ = ("_ends", "_is_closed", "_lock", "has_rung")

    def __init__(self) -> None:
        #: True from a ring until the next `hear`; a second byte is not needed
        self.has_rung = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)

    @property
    def reading_end(self) -> int:
        """The descriptor to poll; stop polling it before `close`."""
        return self._ends[0]

    def ring(self) -> None:
        """Make the reading end readable."""
        # If the lock is taken, another thread is closing, or it is ringing or hearing, and a turn
        # follows that.
        if self.has_rung or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._is_closed:
                self.has_rung = True
                with contextlib.suppress(BlockingIOError):
                    os.write(self._ends[1], b".")
        finally:
            self._release()

    def hear(self) -> None:
        """Empty the pipe; the caller must turn after it, since a later ring writes again."""
        if not self._lock.acquire(blocking=False):
            # A ring is under way: the pipe stays readable, and `hear` is called again.
            return
        try:
            if not self._is_closed:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._ends[0], 4096)
                # Last: a ring that found it set, and did not write, is covered by the next turn.
                self.has_rung = False
        finally:
            self._release()

    def close(self) -> None:
        """Close the pipe; if a ring is under way, the pipe is closed when the ring ends."""
        self._is_closed = True
        self._close_if_free()

    def _release(self) -> None:
        self._lock.release()
        if self._is_closed:
            self._close_if_free()

    def _close_if_free(self) -> None:
        # The lock is never released, so that the ends are closed once.
        if self._lock.acquire(blocking=False):
            for end in self._ends:
                os.close(end)
