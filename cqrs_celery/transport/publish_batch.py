"""Collect the publishes inside Kombu's `Producer.batch`, and send them in one round trip."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from kombu.exceptions import BatchPublishError

from ..queue.reliable_queue import ReliableQueue
from ..queue.values import Publish
from .outgoing import Outgoing


class Publishes(Protocol):
    """The part of a channel that a batch uses."""

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Publish a message, or add it to the batch in the argument `_publish_batch`."""

    def queues_of(self, exchange: str, routing_key: str) -> list[str]:
        """Return the names of the queues that an exchange and routing key lead to."""

    def routed(self, outgoing: Outgoing, queues: list[str]) -> Publish | None:
        """Return the publish of a message; None if there is nothing left to publish."""

    def conn_or_acquire(self) -> AbstractContextManager[Any]:
        """Return a context manager that yields a client of the server."""


class PublishBatch:
    """One batch of a producer.

    Args:
        channel: the channel that routes its messages.
        queue: the queues that the messages are published to.
        max_size: the number of messages at which they are sent, before the end of the batch.
    """

    def __init__(self, channel: Publishes, queue: ReliableQueue, max_size: int) -> None:
        self.channel = channel
        self._queue = queue
        self._max_size = max_size
        self._collected: list[Outgoing] = []
        self._broadcasts: list[tuple[str, str]] = []
        self._is_over = False

    def publish(self, message: dict[str, Any], **kwargs: Any) -> Any:
        """Encode a message, and keep it until the batch is sent.

        Raises:
            RuntimeError: the batch has ended.
            BatchPublishError: the batch was full, and the broker did not answer.
        """
        self._check_open()
        return self.channel.basic_publish(message, _publish_batch=self, **kwargs)

    def add(self, outgoing: Outgoing | str, *broadcast: str) -> None:
        """Keep an encoded message; send all messages when the batch is full.

        Args:
            outgoing: the message. For a fanout, Kombu's own channel passes the command "publish".
            broadcast: a fanout's topic and payload.
        """
        if isinstance(outgoing, str):
            topic, payload = broadcast
            self._broadcasts.append((topic, payload))
        else:
            self._collected.append(outgoing)
        if len(self._collected) + len(self._broadcasts) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Send the collected messages.

        Raises:
            BatchPublishError: the broker did not answer; some messages may have arrived.
            RuntimeError: the batch has ended.
        """
        self._check_open()
        collected, self._collected = self._collected, []
        broadcasts, self._broadcasts = self._broadcasts, []
        count = len(collected) + len(broadcasts)
        try:
            if collected:
                self._queue.publish_many(self._routed(collected))
            if broadcasts:
                self._broadcast(broadcasts)
        except Exception as error:
            self._is_over = True
            raise BatchPublishError(
                f"a batch of {count} messages was not confirmed; some may have arrived"
            ) from error

    def _routed(self, collected: list[Outgoing]) -> list[Publish]:
        """Route the messages by the present bindings, which are read once."""
        routes: dict[tuple[str, str], list[str]] = {}
        publishes = []
        for outgoing in collected:
            place = outgoing.exchange, outgoing.routing_key
            queues = routes.get(place)
            if queues is None:
                queues = routes[place] = self.channel.queues_of(*place)
            publish = self.channel.routed(outgoing, queues)
            if publish is not None:
                publishes.append(publish)
        return publishes

    def _broadcast(self, broadcasts: list[tuple[str, str]]) -> None:
        with self.channel.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for topic, payload in broadcasts:
                pipe.publish(topic, payload)
            pipe.execute()

    def discard(self) -> None:
        """Drop the messages that were collected and not sent, and end the batch."""
        self._collected.clear()
        self._broadcasts.clear()
        self._is_over = True

    def close(self) -> None:
        """End the batch."""
        self._is_over = True

    def _check_open(self) -> None:
        if self._is_over:
            raise RuntimeError("the publish batch has ended")
