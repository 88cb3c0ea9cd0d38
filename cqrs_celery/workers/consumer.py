"""The worker's consumer: a message that can't become a task becomes a dead letter.

Celery acknowledges, and so deletes, a message whose body it can't decode; a body of an unexpected
shape ends its worker. This consumer sets each such message aside, complete and with the reason.
Celery also logs the body and all headers, including a command's contents. This consumer logs only
the message's name; the contents stay in the dead letter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import NotRegistered
from celery.utils.objects import Bunch
from celery.worker.consumer import Consumer as CeleryConsumer
from kombu.message import Message

from ..transport.celery.task_messages import is_elsewhere, set_aside
from ..transport.consumer.letter_log import NAME_CHARACTERS, printable
from ..transport.qos import REASON

logger = logging.getLogger(__name__)


class Consumer(CeleryConsumer):
    """Celery's consumer, except that it loses no message."""

    def on_decode_error(self, message: Message, exc: BaseException) -> None:
        """Set aside a message whose body can't be decoded."""
        self._set_aside(message, "undecodable body", exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Set aside a message that is not a task message."""
        setattr(message, REASON, {"reason": "no task message"})
        logger.warning("%s is not a task message, and was rejected", _named(message))
        self._reject(message, None)

    def on_unknown_task(self, body: Any, message: Message, exc: BaseException) -> None:
        """Set aside a message whose task is not registered in this worker."""
        headers = message.headers or {}
        # Celery's first protocol has the task's name and id in the body.
        facts = headers if "task" in headers else message.payload
        name, task_id = facts["task"], facts["id"]
        setattr(message, REASON, {"reason": "unknown task", "task": name})
        logger.error(
            "%s was rejected: no task %s is registered in this worker. Import the module that"
            " defines it, or let another worker that has it consume the queue",
            _named(message),
            printable(str(name), NAME_CHARACTERS),
        )
        message.reject_log_error(logger, self.connection_errors)
        properties = message.properties or {}
        request = Bunch(
            name=name,
            chord=None,
            root_id=headers.get("root_id"),
            correlation_id=properties.get("correlation_id"),
            reply_to=properties.get("reply_to"),
            errbacks=None,
        )
        self.app.backend.mark_as_failure(task_id, NotRegistered(name), request=request)
        if self.event_dispatcher:
            told = f"NotRegistered({name!r})"
            self.event_dispatcher.send("task-failed", uuid=task_id, exception=told)
        signals.task_unknown.send(sender=self, message=message, exc=exc, name=name, id=task_id)

    def on_invalid_task(self, body: Any, message: Message, exc: BaseException) -> None:
        """Set aside a message that its task can't accept."""
        setattr(message, REASON, {"reason": "invalid task message", "error": str(exc)})
        logger.error(
            "%s was rejected: its task can't accept it (%s)",
            _named(message),
            type(exc).__name__,
            extra={"error": type(exc).__name__},
        )
        self._reject(message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """Return the handler of messages; it sets aside those that Celery's handler fails on."""
        on_task_received = super().create_task_handler(*args, **kwargs)

        def on_message(message: Message) -> Any:
            try:
                return on_task_received(message)
            except Exception as error:
                if message.acknowledged or is_elsewhere(error, self.connection_errors):
                    raise
                self._set_aside(message, "malformed task message", error)

        return on_message

    def _reject(self, message: Message, exc: BaseException | None) -> None:
        message.reject_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)

    def _set_aside(self, message: Message, reason: str, error: BaseException) -> None:
        set_aside(message, reason, error, self.connection_errors)


def _named(message: Message) -> str:
    """Return a message's name for a log: its task, and the queue that it came from."""
    headers, info = message.headers or {}, message.delivery_info or {}
    task = f"{headers.get('task')}[{headers.get('id')}]"
    queue = str(info.get("queue") or info.get("routing_key"))
    return (
        f"message {printable(task, NAME_CHARACTERS)} of queue {printable(queue, NAME_CHARACTERS)}"
    )
