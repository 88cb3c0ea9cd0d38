"""Log lost leases, hung event loops, and messages that could not be given back."""

from __future__ import annotations

import logging
from typing import NamedTuple

from ...queue.values import Settlement, Taken
from ...transport import envelope

logger = logging.getLogger(__name__)

#: The most tasks that a line of the log names.
TASKS_LOGGED = 10


class Lost(NamedTuple):
    """The cost of a lost lease: the messages held, and the settlements that came too late."""

    held: list[Taken]
    settled: list[Settlement]


def log_lost(consumer: str, lost: Lost) -> None:
    """Log a lost lease with its tasks and their ids; an error if anything was held or settled.

    The log names the messages that ran or waited, each with its task and the task's id. It also
    names the messages that were done, but not settled in the queue. Settlements that an unanswered
    exchange carried may have counted.

    Args:
        consumer: the name of the consumer that has lost its lease.
        lost: what it has lost.
    """
    tasks = [envelope.task_of(taken) for taken in lost.held]
    facts = {
        "consumer": consumer,
        "messages": [taken.id for taken in lost.held],
        "tasks": tasks,
        "settled_too_late": [settlement.id for settlement in lost.settled],
    }
    if not lost.held and not lost.settled:
        # It was idle; or two threads have learnt of one loss before a new lease was taken.
        logger.info("lease lost: consumer %s held nothing", consumer, extra=facts)
        return
    logger.error(
        "lease lost: its messages were given to others; consumer %s held %d (%s), and %d were"
        " settled too late",
        consumer,
        len(lost.held),
        ", ".join(tasks[:TASKS_LOGGED]) + ("…" if len(tasks) > TASKS_LOGGED else "") or "none",
        len(lost.settled),
        extra=facts,
    )


def log_hung(consumer: str, held: int) -> None:
    """Log that a consumer's event loop has stopped turning, so that its lease will end.

    Args:
        consumer: its name.
        held: how many messages it holds.
    """
    logger.error(
        "event loop of consumer %s hangs, its lease is not renewed (%d messages held)",
        consumer,
        held,
        extra={"consumer": consumer, "held": held},
    )


def log_unfinished(consumer: str) -> None:
    """Log that a consumer could not give back its messages at its end.

    Args:
        consumer: its name.
    """
    logger.warning(
        "messages of consumer %s not given back yet: tries again, or its lease ends",
        consumer,
        extra={"consumer": consumer},
    )
