"""Translate Kombu's channel into operations of the reliable queue: taking and delivering.

Connection parameters, exchanges, bindings and fanout by pub/sub are inherited from Kombu. Every
operation on a queue goes to `queue`, as one script. The other parts of a channel are its base
classes: `publishing`, `declaring`, `consuming`, `settling`, `waking`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from functools import cached_property
from queue import Empty
from typing import Any

from ..queue.names import is_queue_name, is_writable
from ..queue.polling import IdlePoll
from ..queue.values import Taken
from ..transport import envelope
from .consumer import event_batch
from .consumer.deliveries import tag_of
from .consumer.letter_log import NAME_CHARACTERS, log_letter, printable
from .message import Message
from .settling import SettlingChannel
from .waking import WakingChannel


class Channel(SettlingChannel, WakingChannel):
    """A channel on the reliable queue; `ConsumingChannel` says which transport options it has."""

    Message = Message

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        self._turns = 0
        self._is_loop = False
        super().__init__(connection, *args, **kwargs)

    @cached_property
    def _idle_poll(self) -> IdlePoll:
        return IdlePoll(self.consumer.queue, self.consumer.name)

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
        """Whether it has waited for a wake-up and received one."""
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
        """Settle and take if that is due, then deliver what is ready.

        Args:
            is_loop: True if an event loop calls; without one, one message is delivered at a time.

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
        """Poll the queues in place of an exchange, if that is enough; True if all are empty."""
        if not self.polling.is_peek_enough(settled_at=self.consumer.deliveries.settled_at, now=now):
            return False
        has_seen = self._idle_poll.may_take(self.active_queues)
        self.polling.note_peek(has_seen=has_seen, now=now)
        return not has_seen

    def _update_queue_cycle(self) -> None:
        """Do nothing: `_turn_of_queues` has the order; Kombu's method copies it for each queue."""

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
                # A redelivered message may kill the worker. Finished messages are settled first, or
                # the delivery would be charged to one of them.
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
        """Return whether a delivery is a bare number from a list: another queue's message id."""
        info = message["properties"]["delivery_info"]
        origin = info.get("routing_key")
        # With the default exchange, the routing key is the queue's name.
        if origin == taken.queue or info.get("exchange") or taken.sequence:
            return False
        # The value is untrusted: a message is in no other queue if this can't name one.
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
        """Merge other messages that its task takes at once into a message; return the tag."""
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
        # Ready messages of other queues belong to the consumers of those queues.
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
        """Take one message without consuming the queue.

        Args:
            queue: the queue's name.
            no_ack: True to settle the message at once.
            kwargs: the other arguments of Kombu's method.

        Returns:
            The message; None if there is none.
        """
        message = super().basic_get(queue, no_ack=no_ack, **kwargs)
        if message is not None and no_ack:
            self.consumer.deliveries.ack(message.delivery_tag)
            self.consumer.flush()
        return message
