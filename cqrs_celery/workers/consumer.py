"""The worker's consumer: what can't become a task becomes a dead letter, not an acknowledgement.

Celery acknowledges, and so deletes, a message whose body it can't decode, and ends the worker on a
body of another shape. Here each is set aside, whole, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.message import Message

from ..transport.qos import REASON
from ..transport.task_messages import is_elsewhere, set_aside


class Consumer(CeleryConsumer):
    """Consume as Celery does, and lose nothing."""

    def on_decode_error(self, message: Message, exc: BaseException) -> None:
        """Set aside a message whose body can't be decoded."""
        self._set_aside(message, "undecodable body", exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Set aside a message that is no task message."""
        setattr(message, REASON, {"reason": "no task message"})
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Message, exc: BaseException) -> None:
        """Set aside a message whose task nobody registered here."""
        name = (message.headers or {}).get("task")
        setattr(message, REASON, {"reason": "unknown task", "task": name})
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Message, exc: BaseException) -> None:
        """Set aside a message that its task can't take."""
        setattr(message, REASON, {"reason": "invalid task message", "error": str(exc)})
        super().on_invalid_task(body, message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """Return what handles a message, and sets aside what Celery itself would stumble over."""
        on_task_received = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> Any:
            try:
                return on_task_received(message)
            except Exception as error:
                if message.acknowledged or is_elsewhere(error, self.connection_errors):
                    raise
                self._set_aside(message, "malformed task message", error)

        return on_message

    def _set_aside(self, message: Message, reason: str, error: BaseException) -> None:
        set_aside(message, reason, error, self.connection_errors)
