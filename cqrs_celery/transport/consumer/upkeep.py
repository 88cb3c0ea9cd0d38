"""Do the upkeep of the queues, by one consumer at a time: recount the messages in sequences.

Processes of an older release, which may run at the same time during a deployment, keep no counts:
see `_counts.lua` for the consequences. Each step is short, since it runs in the thread that
recovers the messages of dead consumers.
"""

from __future__ import annotations

import contextlib
import logging
import time

import redis

from ...queue.reliable_queue import ReliableQueue
from ...queue.upkeep import FORMAT
from ..formats import unsupported

logger = logging.getLogger(__name__)

#: Seconds for which one consumer does the upkeep, before the next may ask for it.
ROUND_S = 60.0

#: Seconds for which a count stays valid: for as long, the counts may lack messages that senders of
#: an older release have put behind others.
FRESH_S = 600.0

#: Seconds that one step may take.
STEP_S = 0.2


class QueueUpkeep:
    """One consumer's part in the upkeep.

    Args:
        queue: on a client that the caller's thread may use.
    """

    def __init__(self, queue: ReliableQueue) -> None:
        self._queue = queue
        self._asks_at = 0.0
        #: the queues that are still to be checked in this round
        self._left: list[str] = []
        self._old_consumers = 0

    def step(self, consumer: str) -> None:
        """Do one step, unless the server is full: upkeep frees no memory, and can wait.

        Args:
            consumer: the name of the consumer that does it.

        Raises:
            redis.RedisError: as the driver raised it; the next step goes on from there.
        """
        with contextlib.suppress(redis.OutOfMemoryError):
            self._step(consumer)

    def _step(self, consumer: str) -> None:
        """Continue a round, or ask to begin one if it is time."""
        now = time.monotonic()
        if now >= self._asks_at:
            self._asks_at = now + ROUND_S
            self._begin(consumer)
        while self._left and time.monotonic() - now < STEP_S:
            off = self._queue.upkeep.recount(self._left[-1], fresh_ms=int(FRESH_S * 1000))
            if off is None:
                continue
            name = self._left.pop()
            if off:
                logger.warning(
                    "counts of queue %s were off by %d and are right again: a process of an older"
                    " release has used it",
                    name,
                    off,
                    extra={"queue": name, "off": off},
                )

    def _begin(self, consumer: str) -> None:
        turn = self._queue.upkeep.take(consumer, int(ROUND_S * 1000))
        if not turn.is_ours:
            # The consumer that does the upkeep continues the recount under way.
            self._left = []
            return
        found = self._queue.upkeep.raise_format()
        if found > FORMAT:
            logger.critical("%s", unsupported(found), extra={"found": found, "known": FORMAT})
            self._left = []
            return
        self._note_old(turn.old_consumers)
        if turn.old_consumers:
            # The older consumers would make a count wrong at once.
            self._left = []
        elif not self._left:
            self._left = self._queue.queues()[::-1]

    def _note_old(self, count: int) -> None:
        if count and not self._old_consumers:
            logger.info(
                "%d consumers of an older release are there; until they have gone, a count goes"
                " through all sequences",
                count,
                extra={"old_consumers": count},
            )
        self._old_consumers = count
