"""Translate Kombu's channel into operations of the reliable queue.

Taken from Kombu by inheritance: connection parameters, exchanges and bindings, fanout by pub/sub.
Everything that has to do with queues goes to `queue`, by one script each.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from functools import cached_property
from queue import Empty
from typing import Any

import redis
from kombu.transport import redis as stock

from ..queue.polling import IdlePoll
from ..queue.reliable_queue import is_queue_name, is_writable
from ..queue.values import Taken
from ..transport import envelope, eviction
from ..transport import qos as _qos
from .consumer import event_batch, process_locks
from .consumer.batch_sizes import BatchSizes
from .consumer.deliveries import tag_of
from .consumer.lease import LeasedConsumer
from .consumer.letter_log import NAME_CHARACTERS, log_letter, printable
from .consumer.polling import PollSchedule
from .consumer.upkeep import QueueUpkeep
from .consumer.worker_facts import facts, is_worker
from .message import Message
from .options import OPTIONS, TEXT_OPTIONS
from .publishing import PublishingChannel

logger = logging.getLogger(__name__)

#: Seconds without a word by pub/sub after which the server is asked for one.
QUIET_S = 10.0

#: Seconds in which it must come.
PONG_S = 3.0

#: What comes in place of a queue's name by the channel of wake-ups when queues were paused.
PAUSED = b"\x1fpaused"


class Channel(PublishingChannel):
    """Be a channel on the reliable queue.

    Transport options, beside those of Kombu's Redis transport that concern connections:
        lease_s: seconds after which a dead worker's messages come back (30).
        max_deliveries: a message that came back unfinished that often becomes a dead letter (10).
        max_run: messages of one sequence that a consumer holds ready behind the first (20).
        dedup_ttl_s: seconds for which the id of a publish is remembered (120).
        lock_folder: where processes of this host find each other's locks (see `process_locks`).
        max_expanded_bytes: bytes up to which a body that Celery compressed is expanded (64 MiB).
    """

    QoS = _qos.QoS
    Message = Message
    qos: _qos.QoS
    #: the pub/sub connection while it is subscribed
    _in_listen: Any

    lease_s = 30.0
    max_deliveries = 10
    max_run = 20
    lock_folder: str | None = None
    max_expanded_bytes = 64 * 2**20

    from_transport_options = (
        # Acknowledgements are the queue's business: there is nothing to emulate.
        *(name for name in stock.Channel.from_transport_options if name != "ack_emulation"),
        *OPTIONS,
        *TEXT_OPTIONS,
    )

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        self._no_ack_queues: set[str] = set()
        self.batches = BatchSizes()
        self._turns = 0
        self._is_loop = False
        #: True while the queue has to be told which queues are consumed now
        self._must_tell = False
        self.polling = PollSchedule()
        #: `active_queues`, until a consumer comes or goes
        self._known_queues: list[str] | None = None
        #: monotonic time at which anything came by pub/sub, or was first to come
        self._heard_at = 0.0
        #: monotonic time of the ping on the pub/sub connection that is not answered
        self._pinged_at: float | None = None
        super().__init__(connection, *args, **kwargs)

    # ------------------------------------------------------------ taking

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

    @cached_property
    def _idle_poll(self) -> IdlePoll:
        return IdlePoll(self.consumer.queue, self.consumer.name)

    @property
    def _has_consumer(self) -> bool:
        return "consumer" in self.__dict__

    @property
    def is_listening(self) -> bool:
        """Whether the channel needs its pub/sub connection."""
        return bool(self.active_fanout_queues or self.active_queues)

    @property
    def active_queues(self) -> list[str]:
        """The queues that it takes from, each once, in the order in which that began."""
        # Each turn asks more than once, and Kombu goes through all of them each time.
        if self._known_queues is None:
            self._known_queues = super().active_queues
        return self._known_queues

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Consume from a queue; its messages are taken at the next turns of the loop."""
        self._known_queues = None
        result = super().basic_consume(queue, no_ack, *args, **kwargs)
        self._known_queues = None
        if no_ack:
            self._no_ack_queues.add(queue)
        self.polling.should_take = True
        if queue not in self.active_fanout_queues:
            self._must_tell = True
        # Kombu comes here for each queue, and waits for an answer only at the last one.
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

    def _update_queue_cycle(self) -> None:
        """Do nothing: `_turn_of_queues` has the order, and Kombu's own copies it for each queue."""

    def due_at(self) -> float:
        """Return the monotonic time at which the channel's next turn is due."""
        if self.closed or not (self._has_consumer or self.active_queues):
            return math.inf
        if self.consumer.deliveries.ready:
            return 0.0
        return self.polling.due_at(
            credit=self._credit,
            settled_at=self.consumer.deliveries.settled_at,
            is_busy=self._is_busy,
        )

    @property
    def is_woken(self) -> bool:
        """Whether it has waited for a wake-up, and one came."""
        return self.polling.is_idle and self.polling.should_take

    @property
    def _credit(self) -> int:
        if not self.active_queues:
            return 0
        return max(0, self.qos.credit(is_loop=self._is_loop) - self.consumer.deliveries.ready)

    @property
    def _is_busy(self) -> bool:
        return self._is_loop and self.qos.is_half_full

    def turn(self, *, is_loop: bool) -> int:
        """Settle and take if it is time, deliver what is ready.

        Args:
            is_loop: True if an event loop turns; without one, one message is delivered at a time.

        Returns:
            The number of messages delivered.
        """
        if self.closed or not (self._has_consumer or self.active_queues):
            return 0
        self._is_loop = is_loop
        consumer, now = self.consumer, time.monotonic()
        if is_loop:
            consumer.last_turn = now
        self._tell_queue()
        if is_loop or not consumer.deliveries.ready:
            credit = self._credit
            due_at = self.polling.due_at(
                credit=credit, settled_at=consumer.deliveries.settled_at, is_busy=self._is_busy
            )
            if due_at <= now and not self._peek(now):
                self._exchange(credit, now)
        if consumer.paused:
            for tag in consumer.deliveries.returned_unbegun():
                self.qos.let_go(tag)
        return self._deliver_ready(sys.maxsize if is_loop else 1)

    def _peek(self, now: float) -> bool:
        """Look, where that is enough, whether anything is ready; True if nothing is."""
        if not self.polling.is_peek_enough(settled_at=self.consumer.deliveries.settled_at, now=now):
            return False
        has_seen = self._idle_poll.may_take(self.active_queues)
        self.polling.note_peek(has_seen=has_seen, now=now)
        return not has_seen

    def _turn_of_queues(self) -> list[str]:
        queues: list[str] = self.active_queues
        if self.queue_order_strategy == "sorted":
            return sorted(queues)
        if self.queue_order_strategy != "priority" and queues:
            self._turns = (self._turns + 1) % len(queues)
            return queues[self._turns :] + queues[: self._turns]
        return queues

    def _exchange(self, credit: int, now: float) -> None:
        answer = self.consumer.exchange(
            self._turn_of_queues(),
            count=credit,
            run=self.max_run,
            batches=self.batches.present,
            was_idle=self.polling.is_idle,
        )
        self.polling.note(answer, credit=credit, now=now)

    def _deliver_ready(self, most: int) -> int:
        consumer, delivered = self.consumer, 0
        while delivered < most and consumer.deliveries.ready:
            if not self.qos.can_consume():
                self.batches.note_returned(consumer.deliveries.return_ready())
                break
            taken = consumer.deliveries.next_ready()
            if taken is None:
                break
            consumer.is_delivering = True
            try:
                delivered += self._deliver(taken)
            finally:
                consumer.is_delivering = False
            if taken.tries and consumer.deliveries.settled_at is not None:
                # One of those that came back may kill the worker. What is done is told of first, or
                # it would be charged in place of that one.
                consumer.flush()
        return delivered

    def _deliver(self, taken: Taken) -> bool:
        tag = tag_of(taken)
        if taken.queue not in self.connection._callbacks:
            self.consumer.deliveries.give_back(tag)
            return False
        message = self._read(taken, tag)
        if message is None or self._is_of_another_queue(message, taken, tag):
            return False
        if task := event_batch.task_of(taken):
            tag = self._merge(message, taken, tag, task)
        if taken.queue in self._no_ack_queues:
            self.consumer.deliveries.ack(tag)
        self.connection._deliver(message, taken.queue)
        return True

    def _is_of_another_queue(self, message: dict[str, Any], taken: Taken, tag: str) -> bool:
        """Return whether a delivery is a number that lay in a list, and a message's elsewhere."""
        info = message["properties"]["delivery_info"]
        origin = info.get("routing_key")
        # By the default exchange, it is the queue's name.
        if origin == taken.queue or info.get("exchange") or taken.sequence:
            return False
        # Anybody may have written it: what can name no queue is nowhere else.
        if not is_queue_name(origin):
            return False
        error = f"it is the id of a message of the queue {printable(origin, NAME_CHARACTERS)}"
        reason = {"reason": "a bare number", "error": error}
        sequence = str(message["headers"].get(envelope.SEQUENCE_HEADER) or "")
        is_number = self.consumer.queue.disown(
            self.consumer.name,
            taken,
            origin=origin,
            sequence=sequence if is_writable(sequence) else "",
            why=json.dumps(reason),
        )
        if is_number:
            self.consumer.deliveries.drop(tag)
            log_letter(taken._replace(payload=b"", body=b""), reason)
        return is_number

    def _merge(self, message: dict[str, Any], taken: Taken, tag: str, task: bytes) -> str:
        """Put others that its task takes at once into a message; returns its delivery tag."""
        batch = f"batch-{tag}"
        others = self.consumer.deliveries.collect_batch(
            taken,
            lambda one: event_batch.task_of(one) == task,
            event_batch.most_of(taken) - 1,
            batch=batch,
        )
        self.batches.note_delivered(taken.queue, 1 + len(others))
        if not others:
            return tag
        event_batch.merge(message, [taken, *others])
        message["properties"]["delivery_tag"] = batch
        return batch

    def _read(self, taken: Taken, tag: str) -> dict[str, Any] | None:
        try:
            consumer = self.consumer
            return envelope.decode(taken, tag, consumer.name, held_until=consumer.held_until(tag))
        except envelope.UnreadableEnvelope as error:
            self.consumer.deliveries.bury(
                tag, reason={"reason": "unreadable envelope", "error": str(error)}
            )
            return None

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        # What is ready of other queues is their consumers'.
        while True:
            taken = self.consumer.deliveries.next_ready(queue)
            if taken is None:
                answer = self.consumer.exchange([queue], count=1, run=1, was_idle=False)
                taken = self.consumer.deliveries.next_ready(queue)
                if taken is None and answer.is_known:
                    raise Empty
            message = None if taken is None else self._read(taken, tag_of(taken))
            if message is not None:
                return message

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Take one message by hand; None if there is none."""
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.consumer.deliveries.ack(message.delivery_tag)
            self.consumer.flush()
        return message

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Settle a message as done; also after the channel was closed, while its task ran."""
        super().basic_ack(delivery_tag, multiple)
        self._flush_without_loop()

    def ack_unsure(self, delivery_tag: str) -> None:
        """Settle a message as done that may have been settled elsewhere.

        So it is with one whose task ended with a retry, which may have taken its place, or whose
        lease was lost. The next of its sequence waits for the queue's answer.
        """
        if self.qos.let_go(delivery_tag):
            self.consumer.deliveries.ack(delivery_tag, is_sure=False)
            self._flush_without_loop()

    def basic_later(self, delivery_tag: str, delay_s: float) -> None:
        """Deliver a message again after a delay; that is no fault of its, and counts none."""
        if self.qos.let_go(delivery_tag):
            self.consumer.deliveries.later(delivery_tag, delay_s)
        self._flush_without_loop()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back, or make it a dead letter."""
        super().basic_reject(delivery_tag, requeue)
        self._flush_without_loop()

    def begin(self, delivery_tag: str) -> bool:
        """Say whether a delivery may be begun with: not if its message went back meanwhile."""
        return self.consumer.deliveries.begin(delivery_tag)

    def may_hand_over(self, delivery_tag: str, *, is_begun: bool) -> bool:
        """Say whether a pool may be given a delivery: not if its message went back meanwhile.

        Args:
            delivery_tag: the delivery's.
            is_begun: whether the pool will not ask `begin`.
        """
        return self.consumer.deliveries.hand_over(delivery_tag, is_begun=is_begun)

    def is_held(self, consumer: str, message_id: int, fence: int) -> bool:
        """Say whether a consumer holds a delivery still; True too if the server does not answer."""
        try:
            return self.queue.fence_of(consumer, message_id) == fence
        except redis.RedisError:
            return True

    def _flush_without_loop(self) -> None:
        # Without consumers no turn follows that would send the settlement.
        if not self.closed and not self.active_queues:
            self.consumer.flush()

    def _on_settled(self) -> None:
        # Called from any thread, while another one may close the channel.
        connection = self.connection
        if connection is not None:
            connection.cycle.turn_soon()

    # ------------------------------------------------------------ wake-ups

    def check_subscription(self) -> None:
        """Ask for a sign of life where pub/sub has long been silent, and connect anew without one.

        A connection that has died without a word looks like one on which nothing happens.
        """
        now = time.monotonic()
        interval_s = self.health_check_interval
        if not interval_s or not self._in_listen or now - self._heard_at < min(QUIET_S, interval_s):
            return
        client = self.subclient
        connection = client.connection
        if self._pinged_at is None:
            self._pinged_at = now
            client.health_check_response_counter += 1
            connection.send_command("PING", client.HEALTH_CHECK_MESSAGE, check_health=False)
        elif now - self._pinged_at >= PONG_S and not connection.can_read(timeout=0):
            self._give_up_subscription("a ping")

    def check_pongs(self) -> None:
        """Connect anew where redis-py has missed the answers to as many pings as Kombu allows."""
        client = self.__dict__.get("subclient")
        if client is None:
            return
        missed = client.health_check_response_counter
        if missed >= stock.SUBCLIENT_MAX_MISSED_HEALTH_CHECKS:
            self._give_up_subscription(f"{missed} pings")

    def _give_up_subscription(self, unanswered: str) -> None:
        logger.warning(
            "pub/sub connection without an answer to %s, connecting anew", unanswered,
            extra={"silent_s": round(time.monotonic() - self._heard_at, 1)},
        )  # fmt: skip
        self._in_listen = None
        client = self.subclient
        client.health_check_response_counter = 0
        if client.connection is not None:
            client.connection.disconnect()

    def _subscribe(self) -> None:
        self._heard_at, self._pinged_at = time.monotonic(), None
        if "subclient" in self.__dict__:
            self.subclient.health_check_response_counter = 0
        super()._subscribe()
        if self.active_queues:
            client = self.subclient
            if client.connection._sock is None:
                client.connection.connect()
            self._in_listen = client.connection
            client.subscribe(self._wake_channel)

    @property
    def _wake_channel(self) -> str:
        # A client with a key prefix puts it in front by itself.
        return f"cq:wake:{self.consumer.name}"

    def _receive_one(self, client: Any) -> Any:
        try:
            response = client.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        self._heard_at, self._pinged_at = time.monotonic(), None
        if not isinstance(response, (list, tuple)):
            return None
        kind, name = stock.bytes_to_str(response[0]), stock.bytes_to_str(response[1])
        if kind in ("subscribe", "message") and "cq:wake:" in str(name):
            # At the confirmation too: what was published before it has woken nobody.
            self.polling.should_take = True
            if response[2] == PAUSED or (kind == "subscribe" and self.consumer.deliveries):
                self.consumer.ask_paused()
            return None
        return self._receive_fanout(client, response)

    def _receive_fanout(self, client: Any, response: Any) -> Any:
        payload = self._handle_message(client, response)
        kind = stock.bytes_to_str(payload["type"])
        if not kind.endswith("message") or not payload["data"]:
            # Kombu's own returns from `drain_events` when a subscription is confirmed, too.
            return kind.endswith("subscribe")
        name = stock.bytes_to_str(payload["channel"])
        if name[0] == "/":
            _, _, name = name.partition(".")
        try:
            message = stock.loads(stock.bytes_to_str(payload["data"]))
            envelope.check_broadcast(message)
        except (TypeError, ValueError, RecursionError):
            logger.warning(
                "unreadable fanout message of channel %s dropped", name, extra={"channel": name}
            )
            return None
        return self._deliver_fanout_message(message, name.split("/", 1)[0])

    def _poll_error(self, type: str, **options: Any) -> Any:
        return self.subclient.parse_response()

    # ------------------------------------------------------------ queues

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        super()._new_queue(queue, auto_delete, **kwargs)
        arguments = kwargs.get("arguments") or {}
        self.batches.declare(queue, int(arguments.get(envelope.BATCH_ARGUMENT) or 1))
        # A sender declares its queue without knowing what others have declared of it.
        ttl = arguments.get("x-message-ttl")
        self.queue.declare(
            queue,
            expires_ms=self._expires.get(queue, 0),
            ttl_ms=None if ttl is None else int(ttl),
        )

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)
        if queue in self._fanout_queues:
            # What it gets comes by pub/sub: it is none of the queues that hold messages.
            self.queue.forget(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.queue.exists(queue)

    def _purge(self, queue: str) -> int:
        return self.queue.purge(queue)

    def _delete(
        self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any
    ) -> None:
        # Not stock's: it drops the list of ids, and what they name would stay for ever.
        self.auto_delete_queues.discard(queue)
        member = self.sep.join([routing_key or "", pattern or "", queue])
        with self.conn_or_acquire(client=kwargs.get("client")) as client:
            client.srem(self.keyprefix_queue % (exchange,), member)
            client.srem(self.keyprefix_binding_permanent % (exchange,), member)
        self.queue.delete(queue)

    # ------------------------------------------------------------ the end

    def release(self) -> None:
        """Give back what is not running; the consumer stays until the rest is done."""
        if self._has_consumer:
            self.consumer.close(running=_running_tags())

    def close(self) -> None:
        """Close the channel; tasks that run on are settled through the consumer."""
        super().close()
        # Kombu does so itself only for a channel that has delivered something.
        self.release()
        if "queue" in self.__dict__:
            self.queue.client.close()


def _running_tags() -> set[str]:
    """Return the tags of deliveries that a Celery worker in this process is running."""
    state = sys.modules.get("celery.worker.state")
    if state is None:
        return set()
    return {
        request.message.delivery_tag for request in tuple(state.active_requests) if request.message
    }
