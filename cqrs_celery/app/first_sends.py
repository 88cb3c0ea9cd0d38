"""Look once at each queue that commands are sent to, and warn if something is amiss there.

No live worker consumes it, or its workers have the reliable queue and this process has not.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Final

import celery

from ..queue.inspection import QueueInspector
from ..queue.reliable_queue import ReliableQueue
from ..transport import TRANSPORT, Transport
from ..transport.clients import BrokerClient

logger = logging.getLogger(__name__)

#: Seconds to wait for the broker's answer; only a process that ends waits for it.
ANSWER_S: Final = 1.0


class FirstSends:
    """The queues that this process has sent commands to.

    Each is looked at once, in a thread of its own, after the first command: a sender waits for
    nothing, and later commands cost a look into a set.

    Args:
        is_consumed: asks the broker whether a live worker with the reliable queue consumes a queue.
    """

    def __init__(self, is_consumed: Callable[[str], bool]) -> None:
        self._is_consumed = is_consumed
        self._seen: set[str] = set()

    def note_sent(self, queue: str, name: str) -> None:
        """Note that a command was sent; look whether anybody takes it, if it is the queue's first.

        Args:
            queue: the queue's name.
            name: the command's.
        """
        if queue not in self._seen:
            self._seen.add(queue)
            # No daemon: a script that sends and ends is told, too.
            look = threading.Thread(target=self.look, args=(queue, name), name="cqrs-first-send")
            with contextlib.suppress(RuntimeError):  # the interpreter ends: no thread can begin
                look.start()

    def look(self, queue: str, name: str) -> None:
        """Warn if something is amiss with a queue; raises nothing."""
        try:
            is_consumed = self._is_consumed(queue)
        except Exception as error:  # noqa: BLE001  it has been sent, and that alone counts
            logger.debug("consumers of queue %s not looked up: %s", queue, error)
            return
        self._warn(queue, name, is_consumed=is_consumed)

    def _warn(self, queue: str, name: str, *, is_consumed: bool) -> None:
        raise NotImplementedError


class UnconsumedQueues(FirstSends):
    """Warns that no live worker consumes a queue; for senders with the reliable queue."""

    def _warn(self, queue: str, name: str, *, is_consumed: bool) -> None:
        if not is_consumed:
            logger.warning(
                "%s was sent to the queue %s, which no live worker consumes: it waits there. Start"
                " a worker that imports its handler, without -Q or with -Q %s;"
                " `celery -A <app> cqrs queues` shows who consumes what",
                name,
                queue,
                queue,
                extra={"queue": queue, "command": name},
            )


class UnorderedSends(FirstSends):
    """Warns that the workers have the reliable queue; for senders with Kombu's own on Redis.

    Such a message reaches its worker, but belongs to no sequence: it may overtake another command
    to its aggregate, or run at the same time.
    """

    def _warn(self, queue: str, name: str, *, is_consumed: bool) -> None:
        if is_consumed:
            logger.warning(
                "%s was sent over Kombu's transport 'redis' to the queue %s, which a worker with"
                " the reliable queue consumes: commands that are sent like this are in no order."
                " Set broker_transport = %r in this process too",
                name,
                queue,
                TRANSPORT,
                extra={"queue": queue, "command": name},
            )


def open_first_sends(app: celery.Celery, *, is_reliable: bool) -> FirstSends | None:
    """Return what warns; None where the broker does not know who consumes.

    Args:
        app: whose broker it is.
        is_reliable: whether that is the reliable queue.
    """
    if not is_reliable and not _is_stock_redis(app):
        return None
    options = app.conf.broker_transport_options or {}
    prefix = str(options.get("global_keyprefix", ""))
    client = BrokerClient(app.connection_for_write, socket_timeout_s=ANSWER_S, retries=0)

    def is_consumed(queue: str) -> bool:
        if app.conf.task_always_eager:
            return is_reliable  # nothing is amiss: nothing was sent
        return QueueInspector(ReliableQueue(client(), prefix=prefix)).is_consumed(queue)

    return UnconsumedQueues(is_consumed) if is_reliable else UnorderedSends(is_consumed)


def _is_stock_redis(app: celery.Celery) -> bool:
    try:
        transport = app.connection_for_write().get_transport_cls()
    except (AttributeError, ImportError, KeyError):
        return False  # told by whoever connects
    return transport.driver_type == "redis" and not issubclass(transport, Transport)
