"""Call a function in the background, without whoever asks for it waiting for anything.

A commit wakes the relay this way. No set of socket timeouts would bound the wake-up itself: a name
is resolved without any, each step of a handshake has its own, and Sentinel may have to be asked
first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

#: Seconds after a failure in which requests are dropped.
REST_S: Final = 5.0

#: Seconds without a request after which the thread ends; the next request starts another.
IDLE_S: Final = 10.0


class BackgroundCall:
    """A function that a thread of its own calls soon after each request.

    One call answers all requests that were made before it began. Usable from several threads, and
    from processes forked from this one.

    Args:
        function: is called; what it raises is logged at level debug.
        name: the thread's.
        rest_s: seconds after a failure in which requests are dropped.
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
        """Ask for a call. It returns at once and raises nothing."""
        caller = self._caller
        if caller is None or caller.pid != os.getpid():
            # Another process's lock may have been held by one of its threads at the fork.
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
        #: True from a request until the call begins that answers it
        self._is_asked = False
        self._is_running = False
        self._rests_until = 0.0

    def request(self) -> None:
        # Read without the lock: the flag falls before the call begins that answers it.
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
                # No more threads, or the interpreter ends.
                self._is_asked = False
                self._fail(error)
            else:
                self._is_running = True

    def _run(self) -> None:
        while self._wait():
            try:
                self._function()
            except Exception as error:  # noqa: BLE001  whoever asked has gone on
                self._fail(error)

    def _wait(self) -> bool:
        """Wait for a request; returns False if none came, and the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_asked, self._idle_s)
            self._is_running = self._is_asked
            self._is_asked = False
            return self._is_running

    def _fail(self, error: Exception) -> None:
        self._rests_until = time.monotonic() + self._rest_s
        logger.debug("%s failed, not tried again for %g s: %s", self._name, self._rest_s, error)
