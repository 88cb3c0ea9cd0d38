"""Log each dead letter where it is made: which message, why, and what to do about it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from ...queue.values import Taken
from ...transport import envelope

logger = logging.getLogger(__name__)

#: The most characters of a name or an id, and of an error, in a line of the log.
NAME_CHARACTERS: Final = 200
ERROR_CHARACTERS: Final = 500


def log_letter(taken: Taken, reason: Mapping[str, Any]) -> None:
    """Log that a delivery becomes a dead letter.

    Args:
        taken: the delivery.
        reason: the reason, as in its letter.
    """
    error = ": ".join(str(reason[name]) for name in ("exception", "error") if reason.get(name))
    task = envelope.task_of(taken)
    logger.error(
        "message %d of queue %s became a dead letter%s: %s%s%s.%s Look at it with"
        " `celery -A <app> cqrs dead-letters show %d`, then retry or discard it.",
        taken.id,
        printable(taken.queue, NAME_CHARACTERS),
        " again" if taken.has_letter else "",
        printable(str(reason.get("reason", "")), NAME_CHARACTERS),
        f" ({printable(error, ERROR_CHARACTERS)})" if error else "",
        f", task {printable(task, NAME_CHARACTERS)}" if task else "",
        f" Later commands of its sequence {printable(taken.sequence, NAME_CHARACTERS)} go on"
        " without it; a subscription's later events wait for it, unless on_dead_letter is"
        " 'continue'."
        if taken.sequence
        else "",
        taken.id,
        extra={
            "message_id": taken.id,
            "queue": taken.queue,
            "sequence": taken.sequence,
            "reason": reason.get("reason"),
            "task": task,
        },
    )


def printable(text: str, most: int) -> str:
    """Return the beginning of an untrusted text, with its control characters escaped.

    Args:
        text: the text.
        most: the most characters of the text to keep.
    """
    shown = text if len(text) <= most else f"{text[:most]}…"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)
