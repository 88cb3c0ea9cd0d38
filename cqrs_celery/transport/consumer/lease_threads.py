"""The threads of one consumer: the first renews its lease, the second sends settlements.

The first does nothing else, so that no other work delays a beat. No error ends the threads: it is
logged, and the next beat comes when it is due.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

logger = logging.getLogger(__name__)

#: Seconds after which the second thread sends a settlement that the loop has not sent.
FLUSH_AFTER_S = 0.05

#: Seconds after which it checks again if there was nothing to send.
REST_S = 0.5


class Attempt(Protocol):
    """A function that does a step, logs its error, and returns whether the step succeeded."""

    def __call__(self, step: str, function: Callable[..., object], /, *args: Any) -> bool:
        """Do the step.

        Args:
            step: what is tried, for the log, worded to follow "could not".
            function: the function that does it.
            args: the function's arguments.
        """


class LeaseThreads:
    """The two threads of one consumer, started and ended together.

    Args:
        consumer: the consumer's name.
        lease_s: seconds that a lease lasts; it is renewed three times in that time.
        beat: renews the lease; called with the monotonic time, and with an event that is set when
            the answer is no longer needed.
        send: sends settlements that have waited; called with the monotonic time.
        is_busy: returns whether there is, or may soon be, something to send.
        attempt: does a step of a thread.

    Attributes:
        stop: set when the threads must end; each start has a new event.
        renewing: the thread that renews the lease; None if it was not started.
    """

    def __init__(
        self,
        consumer: str,
        *,
        lease_s: float,
        beat: Callable[[float, threading.Event], None],
        send: Callable[[float], None],
        is_busy: Callable[[], bool],
        attempt: Attempt,
    ) -> None:
        self.stop = threading.Event()
        self.renewing: threading.Thread | None = None
        self._sending: threading.Thread | None = None
        self._consumer = consumer
        self._lease_s = lease_s
        self._beat = beat
        self._send = send
        self._is_busy = is_busy
        self._attempt = attempt
        self._pid = os.getpid()

    def start(self, *, beats_at: float = 0.0) -> None:
        """Start both threads, in place of those that were started before.

        Args:
            beats_at: monotonic time of the first beat; 0 for now.

        Raises:
            OSError: no thread could be started; nothing has changed.
        """
        before = self.stop, self.renewing, self._sending
        self.stop.set()
        self.stop = stop = threading.Event()
        self.renewing = threading.Thread(
            target=self._keep_renewing,
            args=(stop, beats_at),
            name=f"cqrs-lease-{self._consumer}",
            daemon=True,
        )
        self._sending = threading.Thread(
            target=self._keep_sending,
            args=(stop,),
            name=f"cqrs-sender-{self._consumer}",
            daemon=True,
        )
        try:
            self.renewing.start()
            self._sending.start()
        except RuntimeError as error:
            stop.set()
            self.stop, self.renewing, self._sending = before
            # Kombu treats an OSError as an error of the connection: the worker tries again.
            raise OSError(
                errno.EAGAIN,
                f"no thread could be started to renew the lease of consumer {self._consumer}"
                f" ({error}). Nothing is taken without one. Raise the limit on this user's or"
                " container's threads, or run fewer",
            ) from error

    def revive(self) -> None:
        """Start the threads again if one of them has ended, but not in a forked process.

        The consumer is not registered again: if the lease has ended, the first beat will show it.
        """
        threads = self.renewing, self._sending
        if os.getpid() == self._pid and any(one and not one.is_alive() for one in threads):
            self.start()

    def forget(self) -> None:
        """Mark the threads as not started; `stop` must be set before."""
        self.renewing = self._sending = None

    def is_current(self) -> bool:
        """Return whether the caller is one of the threads."""
        return threading.current_thread() in (self.renewing, self._sending)

    def _keep_renewing(self, stop: threading.Event, beats_at: float) -> None:
        """Beat three times per lease; after a failed beat, try again soon."""
        interval = self._lease_s / 3
        try:
            while not stop.wait(max(0.0, beats_at - time.monotonic())):
                beats_at = time.monotonic() + interval
                if not self._attempt("renew its lease", self._beat, time.monotonic(), stop):
                    beats_at = time.monotonic() + min(1.0, interval / 4)
        except BaseException:
            self._log_end("renews the lease")
            raise

    def _keep_sending(self, stop: threading.Event) -> None:
        """Send the settlements that the event loop has not sent."""
        try:
            while not stop.is_set():
                if stop.wait(FLUSH_AFTER_S if self._is_busy() else REST_S):
                    return
                if not self._attempt("send what was settled", self._send, time.monotonic()):
                    stop.wait(min(1.0, self._lease_s / 3))
        except BaseException:
            self._log_end("sends settlements")
            raise

    def _log_end(self, duty: str) -> None:
        logger.critical(
            "the thread that %s of consumer %s was ended; the next exchange with the queue starts"
            " another",
            duty,
            self._consumer,
        )
