"""Check each queue once when commands are sent to it, and warn if something is wrong there.

It warns if no live worker consumes the queue, or if the queue's workers use the reliable queue and
this process does not.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import celery

from ..queue.inspection import QueueInspector
from ..queue.reliable_queue import ReliableQueue
from ..transport import TRANSPORT
from ..transport.clients import BrokerClient
from .broker import has_reliable_queue, transport_of

logger = logging.getLogger(__name__)

#: Seconds to wait for the broker's answer. Only a process that is ending waits for it.
ANSWER_S: Final = 1.0


class FirstSends(ABC):
    """The queues that this process has sent commands to.

    Each queue is checked once, after the first command, in a thread of its own. A sender waits for
    nothing, and later commands cost one lookup in a set.

    Args:
        is_consumed: asks the broker whether a live worker with the reliable queue consumes a queue.
    """

    def __init__(self, is_consumed: Callable[[str], bool]) -> None:
        self._is_consumed = is_consumed
        self._seen: set[str] = set()

    def note_sent(self, queue: str, name: str) -> None:
        """Note that a command was sent; after a queue's first one, check the queue.

        Args:
            queue: the queue's name.
            name: the command's name.
        """
        if queue not in self._seen:
            self._seen.add(queue)
            # Not a daemon thread: a script that sends and then ends gets the warning, too.
            look = threading.Thread(target=self.look, args=(queue, name), name="cqrs-first-send")
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                look.start()

    def look(self, queue: str, name: str) -> None:
        """Warn if something is wrong with a queue, without raising an error."""
        try:
            is_consumed = self._is_consumed(queue)
        except Exception as error:  # noqa: BLE001  the command has been sent
            logger.debug("consumers of queue %s not looked up: %s", queue, error)
            return
        self._warn(queue, name, is_consumed=is_consumed)

    @abstractmethod
    def _warn(self, queue: str, name: str, *, is_consumed: bool) -> None:
        """Warn if something is amiss with a queue that a worker consumes, or that none does."""


class UnconsumedQueues(FirstSends):
    """The warning that no live worker consumes a queue, for senders with the reliable queue."""

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
    """The warning that workers use the reliable queue, for senders with Kombu's Redis transport.

    A command sent like this reaches its worker, but belongs to no sequence: it may overtake another
    command to its aggregate, or run at the same time.
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
    """Return the check of sent commands' queues, or None if the broker does not know consumers.

    Args:
        app: the Celery application, which has the broker.
        is_reliable: whether the broker is the reliable queue.
    """
    if not is_reliable and not _is_stock_redis(app):
        return None
    options = app.conf.broker_transport_options or {}
    prefix = str(options.get("global_keyprefix", ""))
    client = BrokerClient(app.connection_for_write, socket_timeout_s=ANSWER_S, retries=0)

    def is_consumed(queue: str) -> bool:
        if app.conf.task_always_eager:
            return is_reliable  # no warning: nothing was sent
        return QueueInspector(ReliableQueue(client(), prefix=prefix)).is_consumed(queue)

    return UnconsumedQueues(is_consumed) if is_reliable else UnorderedSends(is_consumed)


def _is_stock_redis(app: celery.Celery) -> bool:
    transport = transport_of(app)
    is_redis = transport is not None and transport.driver_type == "redis"
    return is_redis and not has_reliable_queue(app)
