"""Settle deliveries: the part of a channel that acknowledges, rejects and requeues messages."""

from __future__ import annotations

import redis

from .consuming import ConsumingChannel


class SettlingChannel(ConsumingChannel):
    """A channel that settles its deliveries, even after it was closed, while their tasks run."""

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Settle a message as done; this also works after the channel was closed."""
        super().basic_ack(delivery_tag, multiple)
        self._flush_without_loop()

    def ack_unsure(self, delivery_tag: str) -> None:
        """Settle a message as done that may have been settled elsewhere.

        This is the case if its task ended with a retry, which may have taken its place, or if the
        lease was lost. The next message of its sequence waits for the queue's answer.

        Args:
            delivery_tag: the delivery's.
        """
        if self.qos.let_go(delivery_tag):
            self.consumer.deliveries.ack(delivery_tag, is_sure=False)
            self._flush_without_loop()

    def basic_later(self, delivery_tag: str, delay_s: float) -> None:
        """Deliver a message again after a delay; the delivery is not counted.

        Args:
            delivery_tag: the delivery's.
            delay_s: seconds from now.
        """
        if self.qos.let_go(delivery_tag):
            self.consumer.deliveries.later(delivery_tag, delay_s)
        self._flush_without_loop()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Put a message back in its place, or make it a dead letter.

        Args:
            delivery_tag: the delivery's.
            requeue: True to put the message back.
        """
        super().basic_reject(delivery_tag, requeue)
        self._flush_without_loop()

    def begin(self, delivery_tag: str) -> bool:
        """Return whether a delivery may begin; False if its message went back meanwhile."""
        return self.consumer.deliveries.begin(delivery_tag)

    def may_hand_over(self, delivery_tag: str, *, is_begun: bool) -> bool:
        """Return whether a delivery may go to a pool; False if its message went back meanwhile.

        Args:
            delivery_tag: the delivery's.
            is_begun: True if the pool does not call `begin`, so that the delivery begins now.
        """
        return self.consumer.deliveries.hand_over(delivery_tag, is_begun=is_begun)

    def is_held(self, consumer: str, message_id: int, fence: int) -> bool:
        """Return whether a consumer still holds a delivery; True if the server does not answer.

        Args:
            consumer: the consumer's name.
            message_id: the message's id.
            fence: the number of the delivery.
        """
        try:
            return self.queue.fence_of(consumer, message_id) == fence
        except redis.RedisError:
            return True

    def _flush_without_loop(self) -> None:
        # Without consumers, no later turn would send the settlement.
        if not self.closed and not self.active_queues:
            self.consumer.flush()
