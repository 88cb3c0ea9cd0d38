"""A pipe that wakes an event loop from any thread, and may be closed meanwhile."""

from __future__ import annotations

import contextlib
import os
import threading


class Waker:
    """A pipe whose reading end becomes readable when somebody rings.

    Any thread may ring, at any time, also from a signal handler or a finalizer: no method waits for
    another. Once `close` was called nothing is written, so that a file which gets the same number
    afterwards stays as it is.
    """

    __slots__ = ("_ends", "_is_closed", "_lock", "has_rung")

    def __init__(self) -> None:
        #: True from a ring until the next `hear`; one more byte would say nothing
        self.has_rung = False
        self._is_closed = False
        self._lock = threading.Lock()
        self._ends = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)

    @property
    def reading_end(self) -> int:
        """The descriptor to poll; whoever polls it forgets it before `close`."""
        return self._ends[0]

    def ring(self) -> None:
        """Make the reading end readable."""
        # Where the lock is taken, another thread is ringing, or hearing, and a turn follows that;
        # or closing.
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
        """Empty the pipe. The caller's turn must follow: what rings from now on rings again."""
        if not self._lock.acquire(blocking=False):
            # A ring is under way: the pipe stays readable, and is heard once more.
            return
        try:
            if not self._is_closed:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._ends[0], 4096)
                # Last: whoever found it set and did not write has the turn that follows.
                self.has_rung = False
        finally:
            self._release()

    def close(self) -> None:
        """Close the pipe, at the end of a ring that is under way."""
        self._is_closed = True
        self._close_if_free()

    def _release(self) -> None:
        self._lock.release()
        if self._is_closed:
            self._close_if_free()

    def _close_if_free(self) -> None:
        # Never released: the ends are closed once.
        if self._lock.acquire(blocking=False):
            for end in self._ends:
                os.close(end)
