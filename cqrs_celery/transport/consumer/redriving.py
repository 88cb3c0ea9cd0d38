"""Redrive, archive or delete the dead letters that are due, and log what was done."""

from __future__ import annotations

import logging

from ...queue.dead_letters import BATCH, DeadLetters, LookedAfter

logger = logging.getLogger(__name__)

_LEVELS = {
    "redriven": logging.INFO,
    "discarded": logging.ERROR,
    "archived": logging.CRITICAL,
    "closed": logging.CRITICAL,
}
_TEXTS = {
    "redriven": "dead letter %d of queue %s is tried again, %d wait behind it",
    "discarded": "dead letter %d of queue %s deleted, its time is over; %d waited behind it",
    "archived": "dead letter %d of queue %s archived, its time is over, and %d wait behind it; its"
    " sequence stays closed until `celery -A <app> cqrs dead-letters retry --archived` or"
    " `discard`",
    "closed": "archived dead letter %d of queue %s keeps its sequence closed, %d wait behind it:"
    " `celery -A <app> cqrs dead-letters retry --archived` or `discard`",
}


def look_after(letters: DeadLetters) -> bool:
    """Redrive, archive or delete letters that are due, at most `BATCH` of them.

    Args:
        letters: the dead letters of a virtual host.

    Returns:
        Whether more may be due. The caller does its other work first, and calls again.

    Raises:
        redis.RedisError: as the driver raised it; the letters stay due.
    """
    done = letters.redrive_due()
    for one in done:
        _tell(one)
    return len(done) == BATCH


def _tell(one: LookedAfter) -> None:
    facts = {"queue": one.queue, "message_id": one.id, "waiting": one.waiting}
    logger.log(_LEVELS[one.deed], _TEXTS[one.deed], one.id, one.queue, one.waiting, extra=facts)
    if one.is_crowded:
        logger.critical(
            "too many messages (%d) wait behind dead letter %d of queue %s",
            one.waiting,
            one.id,
            one.queue,
            extra=facts,
        )
