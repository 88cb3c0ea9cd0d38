"""Declare, purge and delete queues: the part of a channel that Kombu's entities use."""

from __future__ import annotations

from typing import Any

from ..transport import envelope
from .consumer.batch_sizes import BatchSizes
from .publishing import PublishingChannel


class DeclaringChannel(PublishingChannel):
    """A channel that administers queues: their data is in `queue`, bindings are Kombu's."""

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        #: how many messages a task takes at once, from the queues' declarations
        self.batches = BatchSizes()
        super().__init__(connection, *args, **kwargs)

    def _new_queue(self, queue: str, auto_delete: bool = False, **kwargs: Any) -> None:
        super()._new_queue(queue, auto_delete, **kwargs)
        arguments = kwargs.get("arguments") or {}
        self.batches.declare(queue, int(arguments.get(envelope.BATCH_ARGUMENT) or 1))
        # A sender declares its queue without knowing what others have declared for it.
        ttl = arguments.get("x-message-ttl")
        self.queue.declare(
            queue,
            expires_ms=self._expires.get(queue, 0),
            ttl_ms=None if ttl is None else int(ttl),
        )

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)
        if queue in self._fanout_queues:
            # Its messages come by pub/sub: it is not one of the queues that hold messages.
            self.queue.forget(queue)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return self.queue.exists(queue)

    def _purge(self, queue: str) -> int:
        return self.queue.purge(queue)

    def _delete(
        self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any
    ) -> None:
        # Not stock Kombu's: that drops the list of ids, and the messages would stay forever.
        self.auto_delete_queues.discard(queue)
        member = self.sep.join([routing_key or "", pattern or "", queue])
        with self.conn_or_acquire(client=kwargs.get("client")) as client:
            client.srem(self.keyprefix_queue % (exchange,), member)
            client.srem(self.keyprefix_binding_permanent % (exchange,), member)
        self.queue.delete(queue)
