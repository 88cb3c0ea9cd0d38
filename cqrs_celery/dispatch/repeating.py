"""Decide whether a handler that has failed is run again at once, with fresh state.

Two reasons are not the handler's own: another writer committed first, and a replica that lagged.
Nothing was committed, so either is repeated; each time, what is read comes from the primary. What a
handler raises, having read from the primary alone, is the outcome.
"""

from __future__ import annotations

import logging
from enum import Enum, auto

from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate

from ..errors import ConcurrencyError, LeaseLost, LockTimeout, PublishFailed
from ..store.reading import Reads
from .definitions import Definition

logger = logging.getLogger(__name__)

#: What depends on no state that was read: Celery's own ways to end a task, the queue, a lock.
_OF_NO_STATE = (TaskPredicate, SoftTimeLimitExceeded, LeaseLost, LockTimeout, PublishFailed)


class Next(Enum):
    """What follows a handler's failure."""

    #: Its error is the outcome.
    FAIL = auto()
    #: Another writer committed first: run it again after a moment, under the aggregate's lock.
    CONFLICT = auto()
    #: A replica had a part in it: run it again with reads of the primary.
    REREAD = auto()


class Tries:
    """The tries of one run of a handler.

    Args:
        definition: says how often a conflict repeats it.

    Attributes:
        conflicts: how many there were.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._reads = Reads()
        self.conflicts = 0

    @property
    def reads(self) -> Reads:
        """The reads of the present try; it is to run in their block."""
        return self._reads

    def after(self, error: Exception) -> Next:
        """Return what follows a failure of the present try, and prepare the next one.

        Args:
            error: what the handler, or its commit, has raised.
        """
        was_stale = self._reads.used_replica
        self._reads = Reads(from_primary=True)
        if isinstance(error, ConcurrencyError):
            if self.conflicts < self._definition.on_conflict.retries:
                self.conflicts += 1
                self._tell_of_conflict(error)
                return Next.CONFLICT
        elif isinstance(error, _OF_NO_STATE):
            return Next.FAIL
        if not was_stale:
            return Next.FAIL
        self._tell_of_replica(error)
        return Next.REREAD

    def _tell_of_conflict(self, error: ConcurrencyError) -> None:
        logger.warning(
            "conflict, handler repeated",
            extra={"handler": self._definition.function.__qualname__, "stream": error.stream},
        )

    def _tell_of_replica(self, error: Exception) -> None:
        handler = self._definition.function.__qualname__
        logger.info(
            "%s raised %s after it had read from the replica, repeated with reads of the primary",
            handler,
            type(error).__name__,
            extra={"handler": handler, "why": str(error)},
        )
