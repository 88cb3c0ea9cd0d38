"""Publish to the reliable queue, one script per message: the part of a channel that senders use."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

from kombu.transport import redis as stock
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..queue.reliable_queue import ReliableQueue
from ..queue.values import Publish, later
from ..queue.virtual_host import DEDUP_TTL_MS
from ..transport import envelope, eviction
from .celery.retry_in_place import Delivery, retried_delivery
from .clients import client_on
from .connecting import bounded, shorter, watch
from .outgoing import Outgoing
from .publish_batch import PublishBatch
from .redis_errors import PrefixingClient, Translating

logger = logging.getLogger(__name__)

_PUBLISH_ID = "publish_id"


class PublishingChannel(stock.Channel):
    """A channel that publishes to all queues of an exchange and routing key, or to none."""

    dedup_ttl_s = DEDUP_TTL_MS / 1000
    #: Bodies are stored without encoding.
    body_encoding = None
    supports_batch_publish = True

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        self._kept_client: Any = None
        super().__init__(connection, *args, **kwargs)

    @cached_property
    def queue(self) -> ReliableQueue:
        """The queues of this virtual host, for publishing and inspection."""
        queue = self._new_queue_client()
        eviction.warn_sender(queue.client, self.connection.client.as_uri())
        return queue

    def _new_queue_client(self, *, most_wait_s: float | None = None) -> ReliableQueue:
        pool = self._get_pool()
        for name in ("socket_timeout", "socket_connect_timeout"):
            # A socket file has no connect timeout.
            if name in pool.connection_kwargs and most_wait_s is not None:
                wait_s = pool.connection_kwargs[name]
                pool.connection_kwargs[name] = shorter(wait_s, most_wait_s)
        # If redis-py repeated a take, the first one would hold messages that nobody knows of.
        pool.connection_kwargs["retry"] = Retry(NoBackoff(), 0)
        return ReliableQueue(
            client_on(pool),
            prefix=self.global_keyprefix,
            dedup_ttl_ms=int(self.dedup_ttl_s * 1000),
        )

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        # Kombu's own commands, and its pub/sub connection, would wait without a limit.
        return bounded(super()._connparams(asynchronous))

    def _get_pool(self, asynchronous: bool = False) -> Any:
        pool = super()._get_pool(asynchronous)
        watch(pool)
        return pool

    def _get_client(self) -> Any:
        """Return the factory of clients for Kombu's own commands, such as those for bindings."""
        super()._get_client()
        if self.global_keyprefix:
            return partial(PrefixingClient, global_keyprefix=self.global_keyprefix)
        return Translating

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client for one operation.

        One client is kept; Kombu's own method makes a new one each time, which costs more.

        Args:
            client: the client to yield; None for the kept one.
        """
        if client is None:
            if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
                self._kept_client = self._create_client()
            client = self._kept_client
        yield client

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make a message with a publish id, which stays the same when Kombu repeats the publish."""
        if properties is not None:
            properties.setdefault(_PUBLISH_ID, uuid4().hex)
        return super().prepare_message(  # type: ignore[no-any-return]
            body, priority, content_type, content_encoding, headers, properties
        )

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> Any:
        """Publish a message to every queue of an exchange and routing key, or to none.

        Args:
            message: the message, as `prepare_message` made it.
            exchange: the exchange's name; "" for the default one.
            routing_key: the routing key.
            kwargs: the other arguments of Kombu's method.

        Raises:
            ValueError: a queue's name would collide with the queue's own keys.
            redis.RedisError: as the driver raised it; a repetition is stored only once.
        """
        batch: PublishBatch | None = kwargs.pop("_publish_batch", None)
        if exchange and self.typeof(exchange).type == "fanout":
            return super().basic_publish(
                message, exchange, routing_key, _publish_batch=batch, **kwargs
            )
        message["properties"]["delivery_info"].update(exchange=exchange, routing_key=routing_key)
        outgoing = self._encoded(message, exchange, routing_key)
        if batch is not None:
            batch.add(outgoing)
        else:
            self._send(outgoing, self.queues_of(exchange, routing_key))

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return the batch that collects the publishes inside `Producer.batch`.

        Args:
            max_size: the number of messages at which the batch is sent.
        """
        return PublishBatch(self, self.queue, max_size)

    def queues_of(self, exchange: str, routing_key: str) -> list[str]:
        """Return the names of the queues that an exchange and routing key lead to, each once."""
        return [name for name in dict.fromkeys(self._lookup(exchange, routing_key)) if name]

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._send(self._encoded(message, "", queue), [queue])

    def _encoded(self, message: dict[str, Any], exchange: str, routing_key: str) -> Outgoing:
        properties = dict(message["properties"])
        publish_id = properties.pop(_PUBLISH_ID, "")
        # AMQP's property, by the sender's clock, for those who inspect the queue.
        properties.setdefault("timestamp", int(time.time()))
        headers = message.get("headers") or {}
        return Outgoing(
            exchange,
            routing_key,
            headers,
            envelope.head_of({**message, "properties": properties}),
            envelope.body_of(message),
            publish_id,
            self.priority(self._get_message_priority(message, reverse=False)),
            delay_ms(headers.get("eta")),
            int(properties.get("expiration") or 0),
        )

    def _send(self, outgoing: Outgoing, queues: list[str]) -> None:
        publish = self.routed(outgoing, queues)
        if publish is not None:
            self.queue.publish(**publish._asdict())

    def routed(self, outgoing: Outgoing, queues: list[str]) -> Publish | None:
        """Return the publish of a message.

        A retry is put in the place of the message that it retries at once.

        Args:
            outgoing: the message.
            queues: the queues that it goes to.

        Returns:
            The publish; None if the message was a retry, which is stored already.
        """
        retried = retried_delivery(outgoing.headers, queues)
        if retried is not None:
            self._hand_over(retried, outgoing)
            return None
        return outgoing.to(queues)

    def _hand_over(self, delivery: Delivery, outgoing: Outgoing) -> None:
        """Put a task's retry in the place of the message that the task runs for."""
        settlement = later(
            delivery.message_id, delivery.fence, outgoing.delay_ms, payload=outgoing.payload
        )
        answer = self.queue.settle_and_take(delivery.consumer, [settlement])
        if answer.refused:
            logger.warning(
                "retry dropped: the lease was lost, another worker has message %d",
                delivery.message_id,
                extra={"consumer": delivery.consumer, "message_id": delivery.message_id},
            )


def delay_ms(eta: Any) -> int:
    """Return how many milliseconds a message must wait, by its sender's clock; 0 for none.

    Args:
        eta: the time in ISO 8601, UTC if it names no zone. Anything else means no wait.
    """
    if not isinstance(eta, str):
        return 0
    try:
        due = datetime.fromisoformat(eta)
    except ValueError:
        return 0
    if due.tzinfo is None:
        due = due.replace(tzinfo=UTC)
    return max(0, int((due - datetime.now(UTC)).total_seconds() * 1000))
