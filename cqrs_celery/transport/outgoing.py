"""An outgoing message: it is encoded when it is published, and routed when it is sent.

Outside of a batch, both happen at once. For a batch, the bindings are read once, when it is sent,
instead of once per message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..queue.values import Destination, Publish
from ..transport import envelope


class Outgoing(NamedTuple):
    """One encoded message.

    Attributes:
        exchange: the exchange's name; "" for the default one.
        routing_key: the routing key.
        headers: the message's headers.
        head: its head, as one line of JSON.
        body: its body.
        publish_id: the same for every repetition of this publish.
        priority: its priority step.
        delay_ms: milliseconds before it may be taken.
        expiration_ms: milliseconds for which it may wait, by its own limit; 0 for no limit.
    """

    exchange: str
    routing_key: str
    headers: dict[str, Any]
    head: str
    body: bytes
    publish_id: str
    priority: int
    delay_ms: int
    #: milliseconds for which the message may wait, by its own limit; 0 for no limit
    expiration_ms: int

    @property
    def payload(self) -> bytes:
        """The whole message as the queue stores it."""
        return envelope.joined(self.head, self.body)

    def to(self, queues: Iterable[str]) -> Publish:
        """Return the publish that stores the message on these queues.

        Args:
            queues: their names; if there are several, the message is stored once.
        """
        names = list(queues)
        is_shared = len(names) > 1
        payload = b"" if is_shared else self.payload
        sequence = self.headers.get(envelope.SEQUENCE_HEADER, "")
        return Publish(
            [Destination(name, payload, sequence, self.priority) for name in names],
            self.publish_id,
            self.delay_ms,
            max(0, self.expiration_ms),
            self.payload if is_shared else b"",
        )
