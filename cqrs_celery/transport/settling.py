"""Settle deliveries: the part of a channel that says what became of a message."""

from __future__ import annotations

import redis

from .consuming import ConsumingChannel


class SettlingChannel(ConsumingChannel):
    """A channel that settles its deliveries; also after it was closed, while their tasks run."""

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
        """Return whether a delivery may be begun with: not if its message went back meanwhile."""
        return self.consumer.deliveries.begin(delivery_tag)

    def may_hand_over(self, delivery_tag: str, *, is_begun: bool) -> bool:
        """Return whether a pool may be given a delivery: not if its message went back meanwhile.

        Args:
            delivery_tag: the delivery's.
            is_begun: whether the pool will not ask `begin`.
        """
        return self.consumer.deliveries.hand_over(delivery_tag, is_begun=is_begun)

    def is_held(self, consumer: str, message_id: int, fence: int) -> bool:
        """Return whether a consumer still holds a delivery; True if the server does not answer."""
        try:
            return self.queue.fence_of(consumer, message_id) == fence
        except redis.RedisError:
            return True

    def _flush_without_loop(self) -> None:
        # Without consumers no turn follows that would send the settlement.
        if not self.closed and not self.active_queues:
            self.consumer.flush()
