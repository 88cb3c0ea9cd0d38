"""Find the server through Sentinel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
from kombu.transport import redis as stock
from redis.backoff import NoBackoff
from redis.retry import Retry

from .channel import Channel
from .connecting import CONNECT_S, shorter


class SentinelChannel(Channel, stock.SentinelChannel):
    """Be a channel on the reliable queue of whichever server Sentinel calls the master."""

    from_transport_options = (
        *Channel.from_transport_options,
        *stock.SentinelChannel.from_transport_options,
    )

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        client = self.connection.client
        alternates = client.alt
        # Kombu picks the sentinels among the alternates by its own scheme.
        client.alt = [url.removeprefix("reliable-") for url in alternates]
        try:
            pool = super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = alternates
        _bound(pool.sentinel_manager, getattr(self, "sentinel_kwargs", None) or {})
        return pool


def _bound(manager: Any, options: Mapping[str, Any]) -> None:
    """Make a Sentinel that says nothing be given up, as a server is that can't be connected to.

    redis-py would ask it ten times, ever longer apart; whoever connects asks again, or another one.

    Args:
        manager: of redis-py.
        options: `sentinel_kwargs`; what is set there is kept.
    """
    for sentinel in manager.sentinels:
        kwargs = sentinel.connection_pool.connection_kwargs
        for name in ("socket_timeout", "socket_connect_timeout"):
            if name not in options:
                kwargs[name] = shorter(kwargs.get(name), CONNECT_S)
        if not options.keys() & {"retry", "retry_on_timeout", "retry_on_error"}:
            # At once where a connection was closed that it had left idle.
            sentinel.set_retry(Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)))
