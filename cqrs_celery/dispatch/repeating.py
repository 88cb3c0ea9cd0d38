"""Decide whether a handler that has failed is run again at once, with fresh state.

Two failures are not the handler's own: another writer committed first, or a replica lagged. In both
cases nothing was committed, and the handler is repeated with reads of the primary. If a handler has
read from the primary only, its exception is the outcome. An exception of the commit is the outcome
too, except for a conflict: the server's answer may have been lost after the commit.
"""

from __future__ import annotations

import logging
from enum import Enum, auto
from typing import cast

from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate

from ..errors import (
    AggregateExists,
    ConcurrencyError,
    DuplicateInstance,
    HandlerCancelled,
    InsideEventLoop,
    LeaseLost,
    LockTimeout,
    NestedExecution,
    PublishFailed,
    StaleVersion,
    SubscriptionFailed,
)
from ..store.reading import Reads
from .definitions import Definition

logger = logging.getLogger(__name__)

#: Failures that do not depend on the state that was read: Celery's own ways to end a task, failures
#: of the queue or a lock, mistakes in the program, and failures after the commit.
_OF_NO_STATE = (
    AggregateExists,
    TaskPredicate,
    SoftTimeLimitExceeded,
    LeaseLost,
    LockTimeout,
    PublishFailed,
    DuplicateInstance,
    HandlerCancelled,
    InsideEventLoop,
    NestedExecution,
    SubscriptionFailed,
)


class Next(Enum):
    """The step after a handler's failure."""

    #: The error is the outcome.
    FAIL = auto()
    #: Another writer committed first: run it again after a moment, under the aggregate's lock.
    CONFLICT = auto()
    #: The handler had read from a replica: run it again with reads of the primary.
    REREAD = auto()


class Tries:
    """The tries of one run of a handler.

    Args:
        definition: the handler's definition, which says how often to repeat it after conflicts.

    Attributes:
        conflicts: the number of conflicts so far.
        is_committing: whether the handler has returned in the present try.
    """

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._reads = Reads()
        self.conflicts = 0
        self.is_committing = False

    @property
    def reads(self) -> Reads:
        """The reads of the present try, which must run in their block."""
        return self._reads

    def after(self, error: Exception) -> Next:
        """Return the step after a failure of the present try, and prepare the next try.

        Args:
            error: the exception that the handler or its commit has raised.
        """
        is_race = isinstance(error, ConcurrencyError)
        was_stale = self._reads.used_replica and (is_race or not self.is_committing)
        self._reads = Reads(from_primary=True)
        self.is_committing = False
        if isinstance(error, _OF_NO_STATE):
            return Next.FAIL
        # A repetition does not help if the caller chose the expected version.
        may_be_won = self.conflicts < self._definition.on_conflict.retries
        if is_race and may_be_won and not isinstance(error, StaleVersion):
            self.conflicts += 1
            self._tell_of_conflict(cast(ConcurrencyError, error))
            return Next.CONFLICT
        if not was_stale:
            return Next.FAIL
        self._tell_of_replica(error)
        return Next.REREAD

    def _tell_of_conflict(self, error: ConcurrencyError) -> None:
        handler = self._definition.function.__qualname__
        logger.warning(
            "conflict on %s (expected version %s, found %s), handler %s is repeated",
            error.stream,
            error.expected,
            error.found,
            handler,
            extra={"handler": handler, "stream": error.stream},
        )

    def _tell_of_replica(self, error: Exception) -> None:
        handler = self._definition.function.__qualname__
        logger.info(
            "%s raised %s after it had read from the replica, repeated with reads of the primary",
            handler,
            type(error).__name__,
            extra={"handler": handler, "why": str(error)},
        )
