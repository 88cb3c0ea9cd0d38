"""Consume from queues: the part of a channel that owns a consumer of the reliable queue."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any

from kombu.transport import redis as stock

from . import eviction
from . import qos as _qos
from .consumer import process_locks
from .consumer.lease import LeasedConsumer
from .consumer.polling import PollSchedule
from .consumer.upkeep import QueueUpkeep
from .consumer.worker_facts import facts, is_worker
from .declaring import DeclaringChannel
from .options import OPTIONS, TEXT_OPTIONS


class ConsumingChannel(DeclaringChannel):
    """A channel that consumes from queues by one leased consumer.

    Transport options, in addition to those of Kombu's Redis transport that concern connections:
        lease_s: seconds after which a dead worker's messages come back (30).
        max_deliveries: a message that came back unfinished this often becomes a dead letter (10).
        max_run: the most messages of one sequence that a consumer holds, the first included (20).
        dedup_ttl_s: seconds for which the id of a publish is remembered (120).
        lock_folder: the folder where processes of this host find each other's locks (see
            `process_locks`).
        max_expanded_bytes: bytes up to which a body that Celery compressed is expanded (64 MiB).
    """

    QoS = _qos.QoS
    qos: _qos.QoS
    #: the pub/sub connection while it is subscribed
    _in_listen: Any

    lease_s = 30.0
    max_deliveries = 10
    max_run = 20
    lock_folder: str | None = None
    max_expanded_bytes = 64 * 2**20

    from_transport_options = (
        # The queue itself handles acknowledgements: there is nothing to emulate.
        *(name for name in stock.Channel.from_transport_options if name != "ack_emulation"),
        *OPTIONS,
        *TEXT_OPTIONS,
    )

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        self._no_ack_queues: set[str] = set()
        #: True while the server has not been told which queues are consumed now
        self._must_tell = False
        self.polling = PollSchedule()
        #: `active_queues`, kept until a consumer is added or cancelled
        self._known_queues: list[str] | None = None
        super().__init__(connection, *args, **kwargs)

    @cached_property
    def consumer(self) -> LeasedConsumer:
        """The consumer that holds this channel's messages."""
        queue = self._new_queue_client()
        return LeasedConsumer(
            queue,
            lease_s=float(self.lease_s),
            max_deliveries=int(self.max_deliveries),
            on_settled=self._on_settled,
            about=lambda: {**facts(), "batches": dict(self.batches.declared), "pauses": True},
            beats=self._new_queue_client(most_wait_s=float(self.lease_s) / 6),
            lock=process_locks.hold(self.lock_folder),
            upkeep=QueueUpkeep(queue).step,
        )

    @property
    def _has_consumer(self) -> bool:
        return "consumer" in self.__dict__

    @property
    def is_listening(self) -> bool:
        """Whether the channel needs its pub/sub connection."""
        return bool(self.active_fanout_queues or self.active_queues)

    @property
    def active_queues(self) -> list[str]:
        """The queues that it takes from, each once, in the order in which it began to."""
        # Each turn asks more than once, and Kombu iterates over all of them each time.
        if self._known_queues is None:
            self._known_queues = super().active_queues
        return self._known_queues

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; its messages are taken at the next turns of the loop.

        Args:
            queue: the queue's name.
            no_ack: True to settle each message when it is delivered.
            args: the other arguments of Kombu's method.
            kwargs: its other keyword arguments; without `nowait`, the server is told at once.
        """
        self._known_queues = None
        result = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._known_queues = None
        if no_ack:
            self._no_ack_queues.add(queue)
        self.polling.should_take = True
        if queue not in self.active_fanout_queues:
            self._must_tell = True
        # Kombu calls this for each queue, and waits for an answer only at the last one.
        if not kwargs.get("nowait"):
            self._tell_queue()
        self._in_listen = None
        return result

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        self._known_queues = None
        result = super()._basic_cancel(consumer_tag)
        self._known_queues = None
        self._no_ack_queues.discard(queue or "")
        if self._has_consumer and not self._closing:
            self.consumer.deliveries.return_others(self._active_queues)
            self._must_tell = True
            if not self._active_queues:
                # No turn may follow.
                self._tell_queue()
        return result

    def _tell_queue(self) -> None:
        if self._must_tell:
            if not self._has_consumer and is_worker():
                eviction.check_worker(self.queue.client, self.connection.client.as_uri())
            self.consumer.consume(self.active_queues)
            self._must_tell = False

    def _on_settled(self) -> None:
        # Called from any thread, while another one may close the channel.
        connection = self.connection
        if connection is not None:
            connection.cycle.turn_soon()

    def release(self) -> None:
        """Give back what is not running; the consumer stays until all running tasks are done."""
        if self._has_consumer:
            self.consumer.close(running=_running_tags())

    def close(self) -> None:
        """Close the channel; tasks that still run are settled through the consumer."""
        super().close()
        # Kombu calls `release` itself only for a channel that has delivered something.
        self.release()
        if "queue" in self.__dict__:
            self.queue.client.close()


def _running_tags() -> set[str]:
    """Return the tags of the deliveries that a Celery worker in this process is running."""
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return set()
    return {
        request.message.delivery_tag for request in tuple(state.active_requests) if request.message
    }
