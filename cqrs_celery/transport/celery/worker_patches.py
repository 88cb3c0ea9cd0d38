"""Patch Celery's worker, if one runs in this process, with what the transport needs.

When a connection is lost, messages whose tasks have not started go back to the queue, and running
tasks go on. So the worker must distinguish them, and forget those that have not started:

- A pool of threads forgets what waits in its executor's queue. Celery calls the pool's `flush` for
  this; the prefork pool implements it, but the pool of threads does nothing.
- A prefork pool, before it forgets, reads which of its children have begun.
- A thread or a greenlet asks before it begins a task: if the message went back meanwhile, the task
  is not begun.
- The pools forget before the connection is closed, which gives back all that has not begun. Celery
  tells them only afterwards, and a task begun in between would run twice.
- Celery waits ever longer between two attempts to connect, up to 30 seconds. Meanwhile further
  attempts are made without logging: a server that is back is found within a second or two.
- A heartbeat that can't be sent is dropped. Celery would try again forever, and its event loop
  would be blocked for as long as the server is away.
- A task that has ended is settled at once, not at the loop's next turn, which may never come.
- A task that ended with a retry is settled as unsure: the retry may have taken its message's place,
  and then the messages behind it in its sequence no longer belong to this worker.
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

#: The most seconds to wait for a child process to report that it has begun.
CHILD_BEGINS_S = 0.5

#: Seconds between two attempts to connect while Celery waits. Less than the second after which
#: Celery's wait calls again.
ATTEMPT_EVERY_S = 0.9

#: Milliseconds between two checks for children that have not reported.
_LOOK_MS = 50

_REQUEST = "celery.worker.request"
_CONSUMER = "celery.worker.consumer.consumer"
_CHILDREN = "celery.concurrency.asynpool"
_HEART = "celery.worker.heartbeat"

#: All names in Celery that are changed here, that the changes use, or that give a task's coroutines
#: their request.
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
    """Patch the modules that are imported; without a worker, and the second time, do nothing.

    Raises:
        UnsupportedCelery: a name that would be changed does not exist. A worker ends with this
            error when it connects to its broker.
    """
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        # A worker loads its transport before it imports its pool: patch again after that.
        signals.celeryd_after_setup.connect(teach_celery)
    patching.check(NEEDED)
    threads = sys.modules.get("celery.concurrency.thread")
    # A version of Celery that implements `flush` keeps its own.
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
    """Make sure that a message leads to a task's run or a dead letter, never to a worker's end."""
    patching.wrap(consumer, "create_task_handler", task_messages.keeping_alive)
    patching.wrap(consumer, "on_decode_error", task_messages.keeping_undecodable)
    patching.wrap(consumer, "on_unknown_message", task_messages.with_reason("no task message"))
    patching.wrap(consumer, "on_unknown_task", task_messages.with_reason("unknown task"))
    patching.wrap(consumer, "on_invalid_task", task_messages.with_reason("invalid task message"))
    base = sys.modules.get("celery.concurrency.base")
    if base is not None:
        patching.wrap(base.BasePool, "apply_async", task_messages.handing_over)


def _forget_unstarted(pool: Any) -> None:
    # Like `ThreadPoolExecutor.shutdown(cancel_futures=True)`, without the shutdown.
    line = pool.executor._work_queue
    while True:
        try:
            item = line.get_nowait()
        except queue.Empty:
            return
        if item is not None:
            item.future.cancel()


def _ending_at_once(original: Any) -> Any:
    """Wrap `Consumer.cancel_active_requests`, so that a cold shutdown ends the worker at once.

    This applies if tasks run in the worker's own process. Celery cancels them in a signal handler.
    Pools that can't end a task raise an error there, which comes out of the main thread's code: in
    a solo worker, that is the task. The gevent pool ends the task as failed. In both cases the
    message would count as done.
    """

    def cancel_active_requests(consumer: Any) -> Any:
        # Without a connection nothing is settled, whatever the broker is.
        uses_ours = consumer.connection is None or is_connected_to_ours(consumer)
        if not uses_ours or type(consumer.pool).__module__ == "celery.concurrency.prefork":
            return original(consumer)
        from celery.exceptions import WorkerTerminate
        from celery.platforms import EX_FAILURE

        raise WorkerTerminate(EX_FAILURE)

    return cancel_active_requests


class NotBegun(Exception):
    """A task must not begin: its message went back to the queue. Raised to its pool."""


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
                # A greenlet ends silently with GreenletExit; a thread's future keeps any error.
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
    """Wait until each child process that was sent a task has reported that it has begun.

    The wait ends after `CHILD_BEGINS_S` seconds in any case.

    Args:
        pool: a prefork pool that belongs to an event loop, which does not turn meanwhile.
    """
    deadline = time.monotonic() + CHILD_BEGINS_S
    # Not select(): it accepts no descriptor above 1,023.
    poll = select.poll()
    for fileno in tuple(pool._fileno_to_outq):
        poll.register(fileno, select.POLLIN)
    while time.monotonic() < deadline and any(
        job._write_to is not None and not job._accepted for job in tuple(pool._cache.values())
    ):
        for fileno, event in poll.poll(_LOOK_MS):
            if event & select.POLLIN:
                # A child's report is read as the event loop reads it.
                pool.handle_result_event(fileno)
            else:
                # The child has ended, and reports nothing more.
                poll.unregister(fileno)


def _forgetting(original: Any) -> Any:
    def on_connection_error_after_connected(consumer: Any, exc: Any) -> Any:
        uses_ours = is_connected_to_ours(consumer)
        if uses_ours and consumer.pool and consumer.pool.flush:
            consumer.pool.flush()
        if uses_ours:
            # Kombu's commands and the event dispatcher have connections of their own.
            drop_idle()
        return original(consumer, exc)

    return on_connection_error_after_connected


class Connected(Exception):
    """An additional attempt has connected: the wait is over."""


class _Attempts:
    """Additional attempts to connect, while Celery waits for its next one.

    Args:
        attempt: connects, or raises Kombu's `OperationalError`.
        failed: called after an attempt that failed.
        callback: Celery's own callback, called every second while it waits.
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
        """Make an attempt if one is due.

        Raises:
            Connected: the attempt succeeded.
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
        # The first call comes right after one of Celery's own attempts.
        self._next_at = time.monotonic() + ATTEMPT_EVERY_S


def _trying_often(original: Any) -> Any:
    def ensure_connected(consumer: Any, connection: Any) -> Any:
        if not _leads_to_ours(connection):
            return original(consumer, connection)
        ensure = connection.ensure_connection

        def attempt() -> None:
            ensure(max_retries=0)

        def ensure_connection(*args: Any, **options: Any) -> Any:
            # In a failover list, each failed attempt switches to the next server.
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
            # Celery's own method postpones it to the event loop's next turn.
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
