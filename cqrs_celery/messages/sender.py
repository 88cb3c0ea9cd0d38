"""The port behind `.delay()`: what a message needs of whoever can send it.

The application puts itself here when it is made; a message class knows nothing of Celery.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import NotConfigured


class Sender(Protocol):
    """Send commands to whoever handles them."""

    def send_command(self, command: Any, **options: Any) -> Any:
        """Send a command to its queue.

        Args:
            command: the message.
            options: Celery's own, as `countdown`, `priority`, `task_id`.

        Returns:
            A Celery AsyncResult.
        """


_current: Sender | None = None


def use_sender(sender: Sender | None) -> None:
    """Make a sender the one that `.delay()` uses in this process; None for nobody."""
    global _current
    _current = sender


def current_sender(what: str) -> Sender:
    """Return the process's sender.

    Raises:
        NotConfigured: there is none.
    """
    if _current is None:
        raise NotConfigured(
            f"{what} was sent, but no CQRS app exists in this process: make one with CQRS(app),"
            " or import the module that does"
        )
    return _current
