"""A message on its way out: encoded when it is published, routed when it is sent.

Outside of a batch both happen at once. In a batch the bindings are read once for all its messages,
when it is sent, instead of once a message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..queue.values import Destination, Publish
from ..transport import envelope


class Outgoing(NamedTuple):
    """One encoded message."""

    exchange: str
    routing_key: str
    headers: dict[str, Any]
    head: str
    body: bytes
    publish_id: str
    priority: int
    delay_ms: int
    #: milliseconds that the message itself allows; 0 for any time
    expiration_ms: int

    @property
    def payload(self) -> bytes:
        """The whole message as the queue keeps it."""
        return envelope.joined(self.head, self.body)

    def to(self, queues: Iterable[str]) -> Publish:
        """Return the publish that puts it on these queues.

        Args:
            queues: their names; with several of them the message is kept once.
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
