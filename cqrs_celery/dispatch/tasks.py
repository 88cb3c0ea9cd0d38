"""The Celery tasks of handlers and subscriptions.

They use JSON and late acknowledgement, and do not acknowledge a message whose worker process was
lost. Their request class runs in the worker's main process, and turns each outcome into one
settlement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import celery
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from ..clock import elapsed_s
from ..errors import LeaseLost, MalformedMessage, StoreUnavailable
from ..store.events import Lease
from .definitions import Definition
from .in_process import SentResult, later, put_off, sending_later
from .results import CommandResult
from .runtime import Runtime, runtime_of

logger = logging.getLogger(__name__)

#: The header of a retried message with the time of its first failure, in seconds of the epoch.
FIRST_FAILED_AT = "cqrs_first_failed_at"

#: The delivery info in which the worker's main process passes on its lease on the message.
LEASE = "cqrs_lease"

#: The delivery info with the time, by `elapsed_s`, until which no other consumer can have the
#: message.
HELD_UNTIL = "cqrs_held_until"


class NoLongerHeld(Ignore):
    """The worker lost its lease: another one may have taken this message and those after it."""


class StoreAway(Ignore):
    """The event store did not answer; the message goes back, and is tried again later.

    Celery's Reject is not used, since Celery logs each one with its traceback.
    """


class HandlerTask(celery.Task):
    """A task that runs a declared handler."""

    abstract = True
    Request = "cqrs_celery.workers.request:Request"

    serializer = "json"
    acks_late = True
    reject_on_worker_lost = True
    acks_on_timeout = False

    definition: Definition
    #: The queue of its messages, unless an option or `task_routes` names another. Workers consume
    #: it.
    home_queue: str

    @property
    def runtime(self) -> Runtime:
        """The runtime of the CQRS application that it belongs to."""
        return runtime_of(self.app, self.name)

    def settled(self, work: Callable[[], CommandResult]) -> CommandResult:
        """Do a worker's work; a failure that is not its outcome returns the message to the queue.

        If the worker was frozen until its lease ended, others may have handled the message. So work
        without a valid lease is not started.

        A worker's work runs in a context of its own. If a soft time limit prevents a reset of that
        context, the process's next task is not affected.
        """
        is_worker = not (self.request.called_directly or self.request.is_eager)
        if is_worker and not self._is_held:
            logger.error(
                "lease lost, not started: task %s[%s]",
                self.name,
                self.request.id,
                extra={"task": self.name, "task_id": self.request.id},
            )
            raise NoLongerHeld("its lease was lost before it was started")
        try:
            return copy_context().run(work) if is_worker else work()
        except LeaseLost as error:
            if not is_worker:
                raise
            logger.error(
                "lease lost, commit refused: task %s[%s]: %s",
                self.name,
                self.request.id,
                error,
                extra={
                    "task": self.name,
                    "task_id": self.request.id,
                    "message_id": error.message_id,
                    "why": str(error),
                },
            )
            raise NoLongerHeld(str(error)) from error
        except StoreUnavailable as error:
            if not is_worker:
                raise
            logger.debug(
                "the store is away, the message of %s [%s] waits",
                self.name,
                self.request.id,
                exc_info=True,
                extra={"task": self.name, "task_id": self.request.id},
            )
            raise StoreAway(str(error)) from None

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the task's message; in eager mode inside a handler, run it when the handler ends."""
        sent = later()
        if sent is None or not self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, **options)
        options["task_id"] = options.get("task_id") or uuid()
        result = SentResult(options["task_id"], self.name)
        put_off.send(sender=self, task_id=result.id, args=args)
        send = super().apply_async
        sent.add(lambda: result.settle(send(args, kwargs, **options)))
        return result

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the task in this process."""
        with sending_later():
            return super().apply(args, kwargs, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry as Celery does; a header keeps the time of the first failure."""
        headers = {**self.retry_headers, **(self.request.headers or {})}
        return super().retry(*args, **{**options, "headers": headers})

    @property
    def retry_headers(self) -> dict[str, Any]:
        """The headers of a retry's message, in addition to those of the failed message."""
        return {FIRST_FAILED_AT: time.time()}

    @property
    def _delivery_info(self) -> dict[str, Any]:
        return (self.request.properties or {}).get("delivery_info") or {}

    @property
    def lease(self) -> Lease | None:
        """The worker's lease on the message; None if the queue has no leases."""
        held = self._delivery_info.get(LEASE)
        return Lease(*held) if held else None

    @property
    def _is_held(self) -> bool:
        """Whether the worker's lease is valid; it is looked up only after its time is over."""
        lease = self.lease
        if lease is None or elapsed_s() <= self._delivery_info.get(HELD_UNTIL, 0):
            return True
        try:
            with self.app.producer_or_acquire() as producer:
                is_held = getattr(producer.channel, "is_held", None)
                return is_held is None or bool(is_held(*lease))
        except (OperationalError, OSError):
            return True


def only_argument(task: celery.Task, args: Any, kwargs: Any) -> Any:
    """Return the single argument of a task's message.

    Raises:
        MalformedMessage: there is not exactly one argument.
    """
    given = [*(args or ()), *(kwargs or {}).values()]
    if len(given) != 1:
        raise MalformedMessage(
            f"{task.name} takes its message alone; found {len(given)} arguments", name="", version=0
        )
    return given[0]
