"""Log that messages wait while their event store does not answer: a few lines, with a count.

Each message is tried again every second, and there may be thousands.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from ..errors import StoreUnavailable
from ..transport.faults import Faults

logger = logging.getLogger(__name__)

#: The step's name in the log of its failures: "could not …".
STEP: Final = "handle a message"

#: Seconds without a failure after which the next handled message logs that the store is back.
QUIET_S: Final = 5.0


class WaitingMessages:
    """The messages of this process that were put back because their store did not answer.

    Safe for threads. No method raises an error.

    Args:
        clock: returns seconds that never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._faults = Faults(logger, of="the worker", away=StoreUnavailable)
        self._lock = threading.Lock()
        self._clock = clock
        self._failed_at = 0.0

    @property
    def are_there(self) -> bool:
        """Whether a message was put back and the store's return has not been logged yet."""
        return self._faults.are_there

    def note(self, why: str) -> None:
        """Log that a message was put back: the first, second, fourth, … time, with the count.

        Args:
            why: the text of the store's error.
        """
        with self._lock:
            self._failed_at = self._clock()
            self._faults.note(STEP, StoreUnavailable(why))

    def note_handled(self) -> None:
        """Log that the store is back, if it has not failed for `QUIET_S`."""
        with self._lock:
            if self._clock() - self._failed_at > QUIET_S:
                self._faults.clear(STEP)


#: The waiting messages of this process.
waiting_messages: Final = WaitingMessages()
