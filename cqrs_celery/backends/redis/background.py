"""Call a function in the background; the caller that requests it never waits.

A commit wakes the relay this way. Socket timeouts would not bound the wake-up: resolving a name has
none, each step of a handshake has its own, and Sentinel may have to be asked first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Seconds after a failure during which requests are dropped.
REST_S: Final = 5.0

#: Seconds without a request after which the thread ends; the next request starts another.
IDLE_S: Final = 10.0


class BackgroundCall:
    """A function that a separate thread calls soon after each request.

    One call answers all requests that were made before it began. Several threads, and processes
    forked from this one, may use it.

    Args:
        function: the function to call; its errors are logged at level debug.
        name: the thread's name.
        rest_s: seconds after a failure during which requests are dropped.
        idle_s: seconds without a request after which the thread ends.
    """

    def __init__(
        self,
        function: Callable[[], object],
        *,
        name: str,
        rest_s: float = REST_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self._function = function
        self._name = name
        self._rest_s = rest_s
        self._idle_s = idle_s
        self._caller: _Caller | None = None

    def request(self) -> None:
        """Request a call. This method returns at once and raises no error."""
        caller = self._caller
        if caller is None or caller.pid != os.getpid():
            # At the fork, a thread of the parent process may have held the old caller's lock.
            caller = self._caller = _Caller(self._function, self._name, self._rest_s, self._idle_s)
        caller.request()


class _Caller:
    """The thread of one process, and the requests to it."""

    def __init__(
        self, function: Callable[[], object], name: str, rest_s: float, idle_s: float
    ) -> None:
        self.pid = os.getpid()
        self._function = function
        self._name = name
        self._rest_s = rest_s
        self._idle_s = idle_s
        self._changed = threading.Condition()
        #: True from a request until the call that answers it begins
        self._is_asked = False
        self._is_running = False
        self._rests_until = 0.0

    def request(self) -> None:
        # Read without the lock: the flag is cleared before the call that answers it begins.
        if self._is_asked or time.monotonic() < self._rests_until:
            return
        with self._changed:
            self._is_asked = True
            if self._is_running:
                self._changed.notify()
                return
            try:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            except RuntimeError as error:
                # There can be no more threads, or the interpreter is ending.
                self._is_asked = False
                self._fail(error)
            else:
                self._is_running = True

    def _run(self) -> None:
        while self._wait():
            try:
                self._function()
            except Exception as error:  # noqa: BLE001  the caller does not wait for it
                self._fail(error)

    def _wait(self) -> bool:
        """Wait for a request; return False if none came and the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_asked, self._idle_s)
            self._is_running = self._is_asked
            self._is_asked = False
            return self._is_running

    def _fail(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + self._rest_s
        logger.debug("%s failed, no new attempt for %g s: %s", self._name, self._rest_s, error)
