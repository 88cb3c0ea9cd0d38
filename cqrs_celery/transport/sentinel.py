"""Find the server through Sentinel."""

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from .channel import Channel


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
            return super()._sentinel_managed_pool(asynchronous)
        finally:
            client.alt = alternates
