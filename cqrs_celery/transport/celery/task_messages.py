"""Keep a worker alive whatever its messages contain: a malformed message becomes a dead letter.

Celery assumes the types of a message's parts. A part of another type ends the worker, and every
worker that gets the message after that; or the message is acknowledged and lost. Here, each message
is checked before Celery sees it. A message that makes Celery fail all the same is set aside with
the reason. Errors that are not the message's fault, of a connection or of memory, are not changed.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import redis
from celery import current_app
from celery.exceptions import InvalidTaskError, TaskRevokedError
from kombu.exceptions import OperationalError

from ..qos import REASON
from .ours import MARK, is_ours
from .task_checks import JSON, check_task

logger = logging.getLogger(__name__)

#: The characters of an error's text that a dead letter keeps: it may quote the whole message.
ERROR_CHARACTERS = 2000

#: The pools that run tasks in this process, next to its event loop, and ask before a task begins.
ASKING_POOLS = tuple(f"celery.concurrency.{name}" for name in ("thread", "gevent", "eventlet"))

#: Arguments of Celery's tracer: task, id, request, body, content type, content encoding.
_TRACED = 6


def set_aside(message: Any, reason: str, error: BaseException, errors: tuple[Any, ...]) -> None:
    """Make a delivered message a dead letter, and log the reason.

    Args:
        message: Kombu's message, not settled yet.
        reason: the reason in words; a reason that the message has already takes precedence.
        error: the error that happened.
        errors: the connection's errors; they are only logged, since the message is redelivered.
    """
    why = getattr(message, REASON, None) or {"reason": reason}
    text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
    setattr(message, REASON, {**why, "error": text})
    # The reliable queue stores it as a dead letter, and logs that; other transports may not.
    if not is_ours(message.channel):
        logger.error(
            "message rejected: %s, task %s of queue %s: %s",
            why["reason"],
            _task_of(message),
            ascii(message.delivery_info.get("queue") or message.delivery_info.get("routing_key")),
            ascii(text)[:500],
            extra={"reason": why["reason"], "error": text},
        )
    message.reject_log_error(logger, errors)


def _task_of(message: Any) -> str:
    name, task_id = (
        ascii((message.headers or {}).get(name))[:100].strip("'") for name in ("task", "id")
    )
    return f"{name}[{task_id}]"


def is_elsewhere(error: BaseException, errors: tuple[Any, ...]) -> bool:
    """Return whether an error was caused by a connection, by memory or by a signal.

    Such an error is not the message's fault.

    Args:
        error: the error that was raised while a message was delivered.
        errors: the errors of the worker's connection.
    """
    kinds = (*errors, redis.RedisError, OperationalError, MemoryError)
    return isinstance(error, kinds) or _is_of_signal(error)


def _is_of_signal(error: BaseException) -> bool:
    """Return whether a signal handler raised an error, which then came out of the running code.

    Celery's handler of a cold shutdown raises one in the pools that can't end a task.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def keeping_alive(original: Any) -> Any:
    """Wrap `Consumer.create_task_handler`, so that no message ends the worker.

    Args:
        original: the method.
    """

    def create_task_handler(consumer: Any, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        on_task_received = original(consumer, *args, **kwargs)
        on_invalid_task = consumer.on_invalid_task

        def on_message(message: Any) -> Any:
            if not hasattr(message.channel, MARK):
                return on_task_received(message)
            try:
                try:
                    check_task(message)
                except InvalidTaskError as error:
                    return on_invalid_task(None, message, error)
                return on_task_received(message)
            except Exception as error:
                if is_elsewhere(error, consumer.connection_errors):
                    raise
                if message.acknowledged:
                    logger.exception(
                        "the message of task %s was settled, and then its worker failed",
                        _task_of(message),
                    )
                else:
                    set_aside(message, "malformed task message", error, consumer.connection_errors)

        return on_message

    return create_task_handler


def with_reason(reason: str) -> Callable[[Any], Any]:
    """Return a wrapper for a `Consumer.on_…_task`, so that its dead letter has a reason.

    Args:
        reason: the reason in words.
    """

    def wrap(original: Any) -> Any:
        def on_rejected(consumer: Any, body: Any, message: Any, *errors: Any) -> Any:
            if getattr(message, REASON, None) is None:
                texts = [f"{type(one).__name__}: {one}"[:ERROR_CHARACTERS] for one in errors]
                found = {"task": message.headers.get("task"), "error": "".join(texts)}
                setattr(message, REASON, {"reason": reason, **found})
            return original(consumer, body, message, *errors)

        return on_rejected

    return wrap


def keeping_undecodable(original: Any) -> Any:
    """Wrap `Consumer.on_decode_error`, which acknowledges, so that it makes a dead letter instead.

    Args:
        original: the method.
    """

    def on_decode_error(consumer: Any, message: Any, exc: Any) -> Any:
        if not is_ours(message.channel):
            return original(consumer, message, exc)
        return set_aside(message, "undecodable body", exc, consumer.connection_errors)

    return on_decode_error


def handing_over(original: Any) -> Any:
    """Wrap `BasePool.apply_async`, so that a body is decoded once and no error around it is lost.

    Celery's worker has decoded the body when it passes a task to its pool, and the task's request
    holds the result. The tracer would decode the bytes again.

    The tracer does not catch an error that happens before the task's function runs. In a child
    process, the pool catches it. In this process, it would end the worker, or the message would
    never be settled. Here it counts as the task's failure.

    Args:
        original: the method.
    """

    def apply_async(pool: Any, target: Any, args: Any = None, *more: Any, **options: Any) -> Any:
        request = getattr(options.get("accept_callback"), "__self__", None)
        message = getattr(request, "message", None)
        if hasattr(message, "channel"):
            _check_in_hand(pool, request, message)
            args = _as_read(args, message)
            if type(pool).__module__ != "celery.concurrency.prefork":
                target = _failing_softly(target)
        return original(pool, target, args, *more, **options)

    return apply_async


def _check_in_hand(pool: Any, request: Any, message: Any) -> None:
    """Check that a task's message has not gone back while it waited in the worker.

    Raises:
        TaskRevokedError: it has gone back; Celery's worker then passes nothing to the pool.
    """
    if not hasattr(message.channel, "may_hand_over"):
        return
    asks = type(pool).__module__ in ASKING_POOLS
    if not message.channel.may_hand_over(message.delivery_tag, is_begun=not asks):
        forget_request(request)
        raise TaskRevokedError(request.id)


def forget_request(request: Any) -> None:
    """Make Celery's worker forget a request that is not begun, since its message went back."""
    logger.info("task %s not begun: its message went back", request, extra={"task": str(request)})
    state = sys.modules.get("celery.worker.state")
    if state is not None:
        state.task_ready(request)


def _as_read(args: Any, message: Any) -> Any:
    """Return a tracer's arguments with the decoded body in place of the bytes, if they hold it."""
    if type(args) is tuple and len(args) == _TRACED and args[3] is message.body:
        name, task_id, request, _, content_type, _ = args
        if content_type == JSON:
            return name, task_id, request, message.payload, None, None
    return args


def log_lost_result(name: str, task_id: str, error: Exception) -> None:
    """Log that a task has run, but the result backend did not accept its result.

    Args:
        name: the task's name.
        task_id: its id.
        error: the result backend's error.
    """
    logger.error(
        "the result of %s[%s] is lost: the result backend did not take it (%s). What the task has"
        " committed stands, and its message is settled; whoever waits in get() waits until a"
        " timeout",
        name,
        task_id,
        " ".join(str(error).split()),
        extra={"task": name, "task_id": task_id, "why": str(error)},
    )


@lru_cache(maxsize=16)
def _failing_softly(target: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except MemoryError:
            raise
        except Exception as error:
            from billiard.einfo import ExceptionInfo

            if isinstance(error, getattr(current_app.backend, "connection_errors", ())):
                log_lost_result(args[0], args[1], error)
            else:
                logger.exception("task %s[%s] failed outside of its function", *args[:2])
            return 1, ExceptionInfo(), 0.0

    return run
