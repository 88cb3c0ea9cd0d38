"""Count a channel's deliveries, and turn acknowledgements into settlements."""

from __future__ import annotations

from typing import Any, Protocol

from kombu.transport import virtual

from .consumer.lease import LeasedConsumer

#: Messages taken at a time if the consumer sets no limit and an event loop delivers them.
UNLIMITED = 100

#: The attribute of a message that says why it will be rejected, for its dead letter.
REASON = "dead_letter_reason"


class Settles(Protocol):
    """The part of a channel that its QoS uses."""

    @property
    def consumer(self) -> LeasedConsumer:
        """The consumer that holds the channel's messages."""

    def release(self) -> None:
        """Give back what is not running."""


class QoS(virtual.QoS):
    """A channel's prefetch count; settlements go to the deliveries of the channel's consumer.

    If the queue refuses a settlement because the lease was lost, the credit is still returned.
    """

    channel: Settles

    def credit(self, *, is_loop: bool) -> int:
        """Return how many messages may be taken now.

        Args:
            is_loop: True if an event loop delivers; without one, messages are delivered one at a
                time.
        """
        if not self.can_consume():
            return 0
        if "can_consume" in vars(self):
            # Celery's --disable-prefetch: only Celery knows whether a second message may follow.
            return 1
        if self.prefetch_count:
            return int(self.prefetch_count) - len(self._delivered)
        return UNLIMITED if is_loop else 1

    @property
    def is_half_full(self) -> bool:
        """Whether over half of the prefetch count is used, so that a worker has enough to do."""
        return bool(self.prefetch_count) and len(self._delivered) * 2 > self.prefetch_count

    def can_consume(self) -> bool:
        """Return whether another message may be delivered; Celery may replace this method."""
        return not self.prefetch_count or len(self._delivered) < self.prefetch_count

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message as delivered."""
        self._delivered[delivery_tag] = message

    def ack(self, delivery_tag: str) -> None:
        """Settle a message as done."""
        if self.let_go(delivery_tag):
            self.channel.consumer.deliveries.ack(delivery_tag)

    def let_go(self, delivery_tag: str) -> bool:
        """Return a message's credit without settling it; False if it was returned before."""
        return self._delivered.pop(delivery_tag, None) is not None

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back in its place, or make it a dead letter.

        Args:
            delivery_tag: the delivery's.
            requeue: True to put the message back.
        """
        message = self._delivered.pop(delivery_tag, None)
        if message is None:
            return
        reason = getattr(message, REASON, None)
        if requeue:
            self.channel.consumer.deliveries.requeue(delivery_tag, reason=reason)
        else:
            self.channel.consumer.deliveries.bury(
                delivery_tag, reason=reason or {"reason": "rejected by its consumer"}
            )

    def restore_unacked(self) -> list[Any]:
        """Give back every message that is not settled (AMQP's recover)."""
        delivered = list(self._delivered)
        self._delivered.clear()
        for tag in delivered:
            self.channel.consumer.deliveries.give_back(tag)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what is not running, when the channel closes or the process exits."""
        self._on_collect.cancel()
        self.channel.release()
