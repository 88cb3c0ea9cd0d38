"""The transport that Kombu asks for: stock Redis connections, our channels and our loop."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from .channel import Channel
from .pace import POLL_S
from .poller import Poller


class Transport(stock.Transport):
    """Be a connection to the reliable queue on Redis or Valkey.

    It calls itself redis, which is what switches on fanout events, gossip and
    `worker_disable_prefetch` in Celery.
    """

    Channel = Channel

    implements = stock.Transport.implements.extend(batch_publish=False)
    supports_batch_publish = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Turn with Kombu's event loop, at least once every `POLL_S`."""
        super().register_with_event_loop(connection, loop)
        self.cycle.use_hub(loop)
        loop.call_repeatedly(POLL_S, self.cycle.turn_soon)
