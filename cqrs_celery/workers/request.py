"""The request of a handler's task, in the worker's main process: every outcome is one settlement.

- Success, and an exception of a command, also of one whose event can't be written: done.
- An exception of a subscription, an unreadable message, a hard time limit: a dead letter with its
  reason.
- A lost child process: the message goes back to its place, and becomes a dead letter if that has
  happened too often.
- The store does not answer: the message is tried again later.
- The lease is lost: done, if it is still to be settled here. Held messages after it in its sequence
  wait until the queue has answered whether it is still held.
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

#: How many times larger a body may be than the message in it; Kombu escapes non-ASCII characters.
BODY_TO_MESSAGE = 4

#: Seconds until a message is tried again if its store did not answer; it does not count as a retry.
STORE_AWAY_DELAY_S = 1.0


class Request(CeleryRequest):
    """Celery's request, except that it loses no message."""

    acknowledged: bool
    #: Whether the message must become a dead letter, since putting it back could not help.
    _must_bury = False
    #: Seconds after which to try again if the fault is not the message's; 0 for no such retry.
    _again_in_s = 0.0

    def __init__(self, message: Any, **options: Any) -> None:
        """Accept a message whose body is arguments, keyword arguments and options.

        Raises:
            InvalidTaskError: the body has another form, or is too large. In the child process, this
                would be taken for an error of the task.
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
        # A batch may be larger: each of its events was checked when it was written.
        if BATCH_HEADER in self._request_dict or not message.body:
            return
        most = BODY_TO_MESSAGE * runtime_of(self._app).serializer.max_bytes
        if len(message.body) > most:
            raise InvalidTaskError(
                f"its body has {len(message.body):,} bytes; accepted: up to {most:,}, which is"
                f" {BODY_TO_MESSAGE} times cqrs_max_message_bytes. To have it handled, raise that"
                " setting, then redrive this letter"
            )

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """Record the reason if the message becomes a dead letter, and settle it as Celery does."""
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
            # Celery settles the message first, then writes the result.
            if not self.acknowledged:
                raise
            log_lost_result(self.name, self.id, lost)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a dead letter of a message that hit its hard time limit."""
        if not soft:
            self._say("hard time limit", TimeLimitExceeded(timeout), None, must_bury=True)
        super().on_timeout(soft, timeout)

    def reject(self, requeue: bool = False) -> None:
        """Put the message back; if that can't help, make it a dead letter."""
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
