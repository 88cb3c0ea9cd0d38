"""The port behind `.delay()`: the sender of this process's commands.

The application registers itself here when it is created. Message classes do not depend on Celery.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import NotConfigured


class Sender(Protocol):
    """A sender of commands to their handlers."""

    def send_command(self, command: Any, **options: Any) -> Any:
        """Send a command to its queue.

        Args:
            command: the command.
            options: Celery's own options, such as `countdown`, `priority`, `task_id`.

        Returns:
            A Celery AsyncResult.
        """


_current: Sender | None = None


def use_sender(sender: Sender | None) -> None:
    """Set the sender that `.delay()` uses in this process; None for no sender."""
    global _current
    _current = sender


def current_sender(what: str) -> Sender:
    """Return the process's sender.

    Args:
        what: names the message in the error.

    Raises:
        NotConfigured: there is no sender.
    """
    if _current is None:
        raise NotConfigured(
            f"{what} was sent, but no CQRS app exists in this process: create one with CQRS(app),"
            " or import the module that does"
        )
    return _current
