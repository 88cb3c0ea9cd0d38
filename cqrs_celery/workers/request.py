"""The request of a handler's task, in the worker's main process: every outcome is one settlement.

- success, and a command's exception, that of an event that can't be written too: done
- a subscription's exception, what can't be read, a hard time limit: a dead letter with its reason
- a lost child: back to its place, and a dead letter when that has happened too often
- the store away: once more, later
- the lease lost: done, as far as it is still to be settled here. What is held behind it in its
  sequence waits until the queue has said whether it is held
"""

from __future__ import annotations

import time
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, InvalidTaskError, Reject, Retry
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready

from ..dispatch.runtime import runtime_of
from ..dispatch.tasks import FIRST_FAILED_AT, NoLongerHeld, StoreAway
from ..errors import MessageError, UnwritableMessage
from ..transport.celery.task_messages import log_lost_result
from ..transport.consumer.event_batch import BATCH_HEADER
from ..transport.qos import REASON
from .waiting import waiting_messages

#: How many times larger a body may be than the message in it: Kombu escapes what is not ASCII.
BODY_TO_MESSAGE = 4

#: Seconds to wait before a message is tried again whose store did not answer; none is counted.
STORE_AWAY_DELAY_S = 1.0


class Request(CeleryRequest):
    """A request that loses nothing."""

    acknowledged: bool
    #: Whether putting the message back could not help.
    _must_bury = False
    #: Seconds after which to try again, where the fault is not the message's; 0 for none.
    _again_in_s = 0.0

    def __init__(self, message: Any, **options: Any) -> None:
        """Take a message whose body is arguments, keyword arguments and the rest.

        Raises:
            InvalidTaskError: it is something else; in the child it would pass for the task's error.
        """
        super().__init__(message, **options)
        self._check_size(message)
        args, kwargs, embed = options["body"] if options.get("decoded") else message.payload
        if not (
            isinstance(args, (list, tuple))
            and isinstance(kwargs, dict)
            and isinstance(embed, dict | None)
        ):
            raise InvalidTaskError("a body was expected as [arguments, keyword arguments, options]")

    def _check_size(self, message: Any) -> None:
        # Several events in one message are each of them small enough, and were checked when made.
        if BATCH_HEADER in self._request_dict or not message.body:
            return
        most = BODY_TO_MESSAGE * runtime_of(self._app).serializer.max_bytes
        if len(message.body) > most:
            raise InvalidTaskError(
                f"its body has {len(message.body):,} bytes; accepted: up to {most:,}, which is"
                f" {BODY_TO_MESSAGE} times cqrs_max_message_bytes. If it is to be handled, raise"
                " that setting, then redrive this letter"
            )

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Note why the message will be a dead letter, if it will, and settle as Celery would."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, TimeLimitExceeded):
            self._say("hard time limit", error, exc_info, must_bury=True)
        elif isinstance(error, (WorkerLostError, SystemExit, KeyboardInterrupt)):
            self._say("its child process was lost", error, exc_info)
        elif isinstance(error, MessageError) and not isinstance(error, UnwritableMessage):
            self._say("unreadable message", error, exc_info, must_bury=True)
            self.reject(requeue=False)
        elif isinstance(error, StoreAway):
            return self._put_off(error)
        elif isinstance(error, NoLongerHeld):
            self._ack_unsurely()
        elif not isinstance(error, (Ignore, Reject, Retry)):
            self._say("its function failed", error, exc_info)
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        except Exception as lost:
            # Celery settles the message, then writes the result.
            if not self.acknowledged:
                raise
            log_lost_result(self.name, self.id, lost)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a dead letter of a message that hit its hard time limit."""
        if not soft:
            self._say("hard time limit", TimeLimitExceeded(timeout), None, must_bury=True)
        super().on_timeout(soft, timeout)

    def reject(self, requeue: bool = False) -> None:
        """Put the message back, or set it aside for good where putting it back can't help."""
        later = getattr(self._message.channel, "basic_later", None)
        if self._again_in_s and later is not None and not self.acknowledged:
            later(self._message.delivery_tag, self._again_in_s)
            self.acknowledged = True
            self.send_event("task-rejected", requeue=True)
            return
        super().reject(requeue=requeue and not self._must_bury)

    def acknowledge(self) -> None:
        """Settle the message as done."""
        super().acknowledge()
        if waiting_messages.are_there:
            waiting_messages.note_handled()

    def _put_off(self, error: StoreAway) -> None:
        waiting_messages.note(str(error))
        self._again_in_s = STORE_AWAY_DELAY_S
        task_ready(self)
        self.reject(requeue=True)

    def _ack_unsurely(self) -> None:
        ack = getattr(self._message.channel, "ack_unsure", None)
        if ack is not None and not self.acknowledged:
            ack(self._message.delivery_tag)
            self.acknowledged = True

    def _say(
        self, reason: str, error: BaseException, exc_info: Any, *, must_bury: bool = False
    ) -> None:
        self._must_bury = must_bury
        now = time.time()
        setattr(
            self._message,
            REASON,
            {
                "reason": reason,
                "exception": f"{type(error).__module__}.{type(error).__qualname__}",
                "error": str(error),
                "traceback": getattr(exc_info, "traceback", None),
                "task": self.name,
                "task_id": self.id,
                "worker": self.hostname,
                "attempts": int(self._request_dict.get("retries") or 0) + 1,
                "first_failed_at": self._request_dict.get(FIRST_FAILED_AT) or now,
                "failed_at": now,
            },
        )
