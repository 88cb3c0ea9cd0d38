"""Log what messages wait for while their event store is away: a line now and then, with a count.

Each of them is tried again every second, and there may be thousands.
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

#: What could not be done, as it is logged.
STEP: Final = "handle a message"

#: Seconds without a failure after which a message that was handled says that the store is back.
QUIET_S: Final = 5.0


class WaitingMessages:
    """The messages of this process that were put back since their store did not answer.

    Safe for threads. No method raises.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._faults = Faults(logger, of="the worker", away=StoreUnavailable)
        self._lock = threading.Lock()
        self._clock = clock
        self._failed_at = 0.0

    @property
    def are_there(self) -> bool:
        """Whether one was put back, and it was not logged yet that the store is back."""
        return self._faults.are_there

    def note(self, why: str) -> None:
        """Log that a message was put back; the second, fourth, eighth, … time with the count.

        Args:
            why: what the store's error said.
        """
        with self._lock:
            self._failed_at = self._clock()
            self._faults.note(STEP, StoreUnavailable(why))

    def note_handled(self) -> None:
        """Log that the store is back, once it has not failed for a while."""
        with self._lock:
            if self._clock() - self._failed_at > QUIET_S:
                self._faults.clear(STEP)


#: Those of this process.
waiting_messages: Final = WaitingMessages()
