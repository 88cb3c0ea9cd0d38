"""Find the server through Sentinel."""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as stock
from redis.backoff import NoBackoff
from redis.retry import Retry

from .channel import Channel
from .connecting import CONNECT_S, shorter


class SentinelChannel(Channel, stock.SentinelChannel):
    """A channel on the reliable queue of whichever server Sentinel calls the master."""

    from_transport_options = (
        *Channel.from_transport_options,
        *stock.SentinelChannel.from_transport_options,
    )

    #: As in `transport_options`; None for the options of the server's own connections.
    sentinel_kwargs: dict[str, Any] | None = None

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        self.sentinel_kwargs = self._bounded_sentinel_kwargs(asynchronous)
        client = self.connection.client
        alternates = client.alt
        # Kombu finds the sentinels among the alternates by its own scheme.
        client.alt = [url.removeprefix("reliable-") for url in alternates]
        try:
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = alternates

    def _bounded_sentinel_kwargs(self, asynchronous: bool) -> dict[str, Any]:
        """Return options with a limit on the wait for a Sentinel that does not answer.

        redis-py would ask it ten times, at growing intervals. The caller connects again instead, or
        asks another Sentinel. Options that are set in `sentinel_kwargs` are kept.
        """
        options = dict(self.sentinel_kwargs or {})
        # If nothing is set, redis-py takes these from the server's own connections.
        of_server = {} if options else self._connparams(asynchronous)
        for name in ("socket_timeout", "socket_connect_timeout"):
            options.setdefault(name, shorter(of_server.get(name), CONNECT_S))
        for name, value in of_server.items():
            if name.startswith("socket_"):
                options.setdefault(name, value)
        if not options.keys() & {"retry", "retry_on_timeout", "retry_on_error"}:
            # One immediate retry, for an idle connection that the Sentinel has closed.
            options["retry"] = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        return options
