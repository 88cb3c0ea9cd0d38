"""Collect the publishes inside Kombu's `Producer.batch`, and send them in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.exceptions import BatchPublishError

from ..queue.reliable_queue import ReliableQueue
from ..queue.values import Publish

if TYPE_CHECKING:
    from .channel import Channel


class PublishBatch:
    """Be one batch of a producer.

    Args:
        channel: routes its messages.
        queue: gets them.
        max_size: messages after which they are sent without waiting for the end.
    """

    def __init__(self, channel: Channel, queue: ReliableQueue, max_size: int) -> None:
        self.channel = channel
        self._queue = queue
        self._max_size = max_size
        self._collected: list[Publish] = []
        self._is_over = False

    def publish(self, message: dict[str, Any], **kwargs: Any) -> Any:
        """Route a message, and keep it until the batch is sent."""
        self._check_open()
        return self.channel.basic_publish(message, _publish_batch=self, **kwargs)

    def add(self, publish: Publish) -> None:
        """Keep a routed message; sends all when there are enough."""
        self._collected.append(publish)
        if len(self._collected) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Send what was collected.

        Raises:
            BatchPublishError: the broker did not answer; some of it may have arrived.
        """
        self._check_open()
        collected, self._collected = self._collected, []
        if not collected:
            return
        try:
            self._queue.publish_many(collected)
        except Exception as error:
            self._is_over = True
            raise BatchPublishError(
                f"a batch of {len(collected)} messages was not confirmed; some may have arrived"
            ) from error

    def discard(self) -> None:
        """Forget what was collected and not sent."""
        self._collected.clear()
        self._is_over = True

    def close(self) -> None:
        """End the batch."""
        self._is_over = True

    def _check_open(self) -> None:
        if self._is_over:
            raise RuntimeError("the publish batch has ended")
