"""Look after the dead letters whose time has come, and say what was done."""

from __future__ import annotations

import logging

from ..queue.dead_letters import BATCH, DeadLetters, LookedAfter

logger = logging.getLogger(__name__)

_LEVELS = {
    "redriven": logging.INFO,
    "discarded": logging.ERROR,
    "archived": logging.CRITICAL,
    "closed": logging.CRITICAL,
}
_TEXTS = {
    "redriven": "dead letter tried again",
    "discarded": "dead letter deleted, its time is over",
    "archived": "dead letter archived, its time is over; its sequence stays closed until"
    " `cqrs dead-letters retry --archived` or `discard`",
    "closed": "an archived dead letter keeps its sequence closed",
}


def look_after(letters: DeadLetters) -> None:
    """Try again, archive or delete every letter that is due.

    Raises:
        redis.RedisError: as the driver raised it; the rest stays due.
    """
    while True:
        done = letters.redrive_due()
        for one in done:
            _tell(one)
        if len(done) < BATCH:
            return


def _tell(one: LookedAfter) -> None:
    facts = {"queue": one.queue, "message_id": one.id, "waiting": one.waiting}
    logger.log(_LEVELS[one.deed], _TEXTS[one.deed], extra=facts)
    if one.is_crowded:
        logger.critical("too many messages wait behind a dead letter", extra=facts)
