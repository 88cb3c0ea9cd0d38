"""Teach Celery's worker, where one runs in this process, what the transport needs it to do.

When a connection is lost, what was not started goes back to the queue, and what runs, runs on. So
the worker must know which is which, and forget the former:

- A pool of threads forgets what waits in its executor's line. Celery tells its pool to (`flush`),
  and its prefork pool does, but its pool of threads does nothing.
- A prefork pool, before it forgets, hears which of its children have begun with what they got.
- A thread or a greenlet asks before it begins: what went back while it was on its way is not begun.
- They forget before the connection is closed, and with it all given back that has not begun; Celery
  tells them afterwards, and what they begin in between would run twice.
- While it waits between two attempts to connect, which Celery makes ever rarer, up to 30 seconds
  apart, others are made in silence: a server that is back is found within a second or two.
- A heartbeat that can't be sent is not sent: Celery would try again, for ever, and its event loop
  would stand still for as long as the server is away.
- A task that has ended is settled at once, not at the loop's next turn, which may never come.
- A task that ended with a retry is settled with doubt: its retry may have taken its message's
  place, and then what stands behind it in its sequence is no longer this worker's.
"""

from __future__ import annotations

import logging
import queue
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from kombu.exceptions import OperationalError

from ..celery import patching, task_messages
from ..connecting import drop_idle
from .ours import is_connected_to_ours, is_ours
from .patching import attributes, methods

logger = logging.getLogger(__name__)

#: Seconds at most that a child process may take to say that it has begun.
CHILD_BEGINS_S = 0.5

#: Seconds between an attempt to connect and the next one that is made while Celery waits. Less than
#: the second after which Celery's wait asks again.
ATTEMPT_EVERY_S = 0.9

#: Milliseconds after which it is looked at anew which children have not said so.
_LOOK_MS = 50

_REQUEST = "celery.worker.request"
_CONSUMER = "celery.worker.consumer.consumer"
_CHILDREN = "celery.concurrency.asynpool"
_HEART = "celery.worker.heartbeat"

#: All that is changed here, and what the changes use; and what the coroutines of a task are given.
NEEDED = (
    *attributes("celery._state", "_task_stack", "push", "pop", "top"),
    *attributes("celery._state", "_tls", "current_app"),
    *attributes("celery.app.task", "Task", "request_stack"),
    *(
        one
        for name in task_messages.ASKING_POOLS
        for one in methods(
            name,
            "TaskPool",
            on_apply=("target", "args", "kwargs", "callback", "accept_callback"),
        )
    ),
    *attributes("celery.concurrency.thread", "TaskPool", "executor"),
    *attributes("concurrent.futures.thread", "ThreadPoolExecutor", "_work_queue"),
    *attributes("concurrent.futures.thread", "_WorkItem", "future"),
    *methods(_CHILDREN, "AsynPool", flush=()),
    *attributes(_CHILDREN, "AsynPool", "_cache", "_fileno_to_outq", "handle_result_event"),
    *attributes("billiard.pool", "ApplyResult", "_write_to", "_accepted"),
    *methods(
        _CONSUMER,
        "Consumer",
        on_connection_error_after_connected=("exc",),
        cancel_active_requests=(),
        ensure_connected=("conn",),
        create_task_handler=("promise",),
        on_decode_error=("message", "exc"),
        on_unknown_message=("body", "message"),
        on_unknown_task=("body", "message", "exc"),
        on_invalid_task=("body", "message", "exc"),
    ),
    *methods("celery.concurrency.base", "BasePool", apply_async=("target", "args")),
    *attributes("celery.worker.worker", "WorkController", "_process_task"),
    *methods(_HEART, "Heart", _send=("event", "retry")),
    *attributes(_HEART, "Heart", "eventer"),
    *attributes(_CONSUMER, "Consumer", "connection", "pool"),
    *methods(_REQUEST, "Request", acknowledge=(), reject=("requeue",), on_retry=("exc_info",)),
    *attributes(
        _REQUEST,
        "Request",
        *(
            "message",
            "task",
            "acknowledged",
            "on_accepted",
            "request_dict",
            "_on_ack",
            "_on_reject",
        ),
    ),
    *attributes("kombu.message", "Message", "ack_log_error", "reject_log_error"),
)


def teach_celery(**_: Any) -> None:
    """Teach what is imported; nothing happens where no worker runs, and the second time.

    Raises:
        UnsupportedCelery: what would be changed is not there. A worker ends with it, as it connects
            to its broker.
    """
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        # A worker asks its transport what it can do before it imports its pool: once more, then.
        signals.celeryd_after_setup.connect(teach_celery)
    patching.check(NEEDED)
    threads = sys.modules.get("celery.concurrency.thread")
    # A version of Celery that has learned it keeps its own.
    if threads is not None and "flush" not in vars(threads.TaskPool):
        threads.TaskPool.flush = _forget_unstarted
    for name in task_messages.ASKING_POOLS:
        if name in sys.modules:
            patching.wrap(sys.modules[name].TaskPool, "on_apply", _asking)
    children = sys.modules.get(_CHILDREN)
    if children is not None:
        patching.wrap(children.AsynPool, "flush", _hearing)
    consumers = sys.modules.get(_CONSUMER)
    if consumers is not None:
        patching.wrap(consumers.Consumer, "on_connection_error_after_connected", _forgetting)
        patching.wrap(consumers.Consumer, "cancel_active_requests", _ending_at_once)
        patching.wrap(consumers.Consumer, "ensure_connected", _trying_often)
        _guard_messages(consumers.Consumer)
    hearts = sys.modules.get(_HEART)
    if hearts is not None:
        patching.wrap(hearts.Heart, "_send", _once)
    requests = sys.modules.get(_REQUEST)
    if requests is not None:
        patching.wrap(requests.Request, "acknowledge", _acknowledging)
        patching.wrap(requests.Request, "reject", _rejecting)
        patching.wrap(requests.Request, "on_retry", _doubting)


def _guard_messages(consumer: Any) -> None:
    """Make whatever comes in a message a task's run, or a dead letter: never a worker's end."""
    patching.wrap(consumer, "create_task_handler", task_messages.keeping_alive)
    patching.wrap(consumer, "on_decode_error", task_messages.keeping_undecodable)
    patching.wrap(consumer, "on_unknown_message", task_messages.with_reason("no task message"))
    patching.wrap(consumer, "on_unknown_task", task_messages.with_reason("unknown task"))
    patching.wrap(consumer, "on_invalid_task", task_messages.with_reason("invalid task message"))
    base = sys.modules.get("celery.concurrency.base")
    if base is not None:
        patching.wrap(base.BasePool, "apply_async", task_messages.handing_over)


def _forget_unstarted(pool: Any) -> None:
    # As `ThreadPoolExecutor.shutdown(cancel_futures=True)` does it, without the end.
    line = pool.executor._work_queue
    while True:
        try:
            item = line.get_nowait()
        except queue.Empty:
            return
        if item is not None:
            item.future.cancel()


def _ending_at_once(original: Any) -> Any:
    """Wrap what a cold shutdown does to running tasks: where they run in the worker, that ends.

    Celery does it in a signal's handler. Pools that can't end a task raise an error there, which
    comes out of whatever the main thread is doing: in a solo worker that is the task. And gevent's
    ends it as failed. Either way its message would count as done.
    """

    def cancel_active_requests(consumer: Any) -> Any:
        # Without a connection nothing is settled anyway, whoever's broker it is.
        uses_ours = consumer.connection is None or is_connected_to_ours(consumer)
        if not uses_ours or type(consumer.pool).__module__ == "celery.concurrency.prefork":
            return original(consumer)
        from celery.exceptions import WorkerTerminate
        from celery.platforms import EX_FAILURE

        raise WorkerTerminate(EX_FAILURE)

    return cancel_active_requests


class NotBegun(Exception):
    """Report to a pool that a task is not to be begun with: its message went back to the queue."""


def _asking(original: Any) -> Any:
    def on_apply(
        pool: Any,
        target: Any,
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **options: Any,
    ) -> Any:
        request: Any = getattr(accept_callback, "__self__", None)

        def accept(*facts: Any) -> Any:
            if not request.message.channel.begin(request.message.delivery_tag):
                task_messages.forget_request(request)
                # A greenlet ends in silence with this one; a thread's future keeps any.
                raise getattr(sys.modules.get("greenlet"), "GreenletExit", NotBegun)
            return accept_callback(*facts)

        uses_ours = hasattr(request, "message") and is_ours(request.message.channel)
        accepting = accept if uses_ours else accept_callback
        return original(pool, target, args, kwargs, callback, accepting, **options)

    return on_apply


def _hearing(original: Any) -> Any:
    def flush(pool: Any) -> None:
        hear_children(pool)
        original(pool)

    return flush


def hear_children(pool: Any) -> None:
    """Wait until each child process that was sent a task has said that it has begun, or for long.

    Args:
        pool: a prefork pool that belongs to an event loop, which does not turn meanwhile.
    """
    deadline = time.monotonic() + CHILD_BEGINS_S
    # Not select(): it knows no descriptor above 1,023.
    poll = select.poll()
    for fileno in tuple(pool._fileno_to_outq):
        poll.register(fileno, select.POLLIN)
    while time.monotonic() < deadline and any(
        job._write_to is not None and not job._accepted for job in tuple(pool._cache.values())
    ):
        for fileno, event in poll.poll(_LOOK_MS):
            if event & select.POLLIN:
                # What a child says is read as the event loop reads it.
                pool.handle_result_event(fileno)
            else:
                # It has ended, and says no more.
                poll.unregister(fileno)


def _forgetting(original: Any) -> Any:
    def on_connection_error_after_connected(consumer: Any, exc: Any) -> Any:
        uses_ours = is_connected_to_ours(consumer)
        if uses_ours and consumer.pool and consumer.pool.flush:
            consumer.pool.flush()
        if uses_ours:
            # Kombu's commands, and the dispatcher of events, have connections of their own.
            drop_idle()
        return original(consumer, exc)

    return on_connection_error_after_connected


class Connected(Exception):
    """An attempt in between has connected: there is nothing more to wait for."""


class _Attempts:
    """Attempts to connect that are made while Celery waits for its next one.

    Args:
        attempt: connects, or raises Kombu's `OperationalError`.
        failed: called after an attempt that failed.
        callback: what Celery wants to be called, every second that it waits.
    """

    def __init__(
        self,
        attempt: Callable[[], Any],
        failed: Callable[[], Any],
        callback: Callable[[], Any] | None,
    ) -> None:
        self._attempt = attempt
        self._failed = failed
        self._callback = callback
        self._next_at: float | None = None

    def __call__(self) -> None:
        """Make an attempt if it is time.

        Raises:
            Connected: it went well.
        """
        if self._callback is not None:
            self._callback()
        if self._next_at is not None and time.monotonic() >= self._next_at:
            try:
                self._attempt()
            except OperationalError:
                self._failed()
            else:
                raise Connected
        # The first call is made right after an attempt of Celery's.
        self._next_at = time.monotonic() + ATTEMPT_EVERY_S


def _trying_often(original: Any) -> Any:
    def ensure_connected(consumer: Any, connection: Any) -> Any:
        if not _leads_to_ours(connection):
            return original(consumer, connection)
        ensure = connection.ensure_connection

        def attempt() -> None:
            ensure(max_retries=0)

        def ensure_connection(*args: Any, **options: Any) -> Any:
            # In a failover list, each attempt that failed makes it another server's turn.
            switch, callback = connection.maybe_switch_next, options.get("callback")
            options["callback"] = _Attempts(attempt, switch, callback)
            try:
                return ensure(*args, **options)
            except Connected:
                return connection

        connection.ensure_connection = ensure_connection
        try:
            return original(consumer, connection)
        finally:
            del connection.ensure_connection

    return ensure_connected


def _once(original: Any) -> Any:
    def _send(heart: Any, event: str, retry: bool = True) -> Any:
        return original(heart, event, retry and not _leads_to_ours(heart.eventer.connection))

    return _send


def _leads_to_ours(connection: Any) -> bool:
    if connection is None:
        return False
    return is_ours(getattr(connection.get_transport_cls(), "Channel", None))


def _acknowledging(original: Any) -> Any:
    def acknowledge(request: Any) -> None:
        if not request.acknowledged and is_ours(request.message.channel):
            # Celery's own puts it off until the event loop's next turn.
            request._on_ack = request.message.ack_log_error
        original(request)

    return acknowledge


def _rejecting(original: Any) -> Any:
    def reject(request: Any, requeue: bool = False) -> None:
        if not request.acknowledged and is_ours(request.message.channel):
            request._on_reject = request.message.reject_log_error
        original(request, requeue)

    return reject


def _doubting(original: Any) -> Any:
    def on_retry(request: Any, exc_info: Any) -> Any:
        if request.task.acks_late and not request.acknowledged and is_ours(request.message.channel):
            request.message.channel.ack_unsure(request.message.delivery_tag)
            request.acknowledged = True
        return original(request, exc_info)

    return on_retry
