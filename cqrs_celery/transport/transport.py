"""The transports that Kombu asks for: stock Redis connections, our channels and our loop."""

from __future__ import annotations

import ssl
from typing import Any

from kombu.transport import redis as stock
from redis import exceptions

from .celery_worker import teach_celery
from .channel import Channel, SentinelChannel
from .eta import show_etas
from .pace import POLL_S
from .poller import Poller
from .scheduled import show_delayed

#: URL schemes of Kombu's own, each with ours.
SCHEMES = {
    "redis": "reliable-redis",
    "rediss": "reliable-rediss",
    "sentinel": "reliable-sentinel",
}


class Transport(stock.Transport):
    """Be a connection to the reliable queue on Redis or Valkey.

    It calls itself redis, which is what switches on fanout events, gossip and
    `worker_disable_prefetch` in Celery.
    """

    Channel = Channel

    #: A batch repeated by Kombu stores nothing twice: every publish has its id.
    supports_batch_publish = True

    # A server that is a replica or cut off: connect again, to the right one.
    connection_errors = (
        *stock.Transport.connection_errors,
        exceptions.ReadOnlyError,
        exceptions.MasterDownError,
        exceptions.ClusterDownError,
        exceptions.TryAgainError,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        _keep_ours_on_failover(client)
        if _is_tls(client) and not client.ssl:
            # Kombu knows one scheme that means TLS; under another one it would talk plain text.
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)
        teach_celery()
        show_etas()
        show_delayed()
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Turn with Kombu's event loop, at least once every `POLL_S`."""
        super().register_with_event_loop(connection, loop)
        self.cycle.use_hub(loop)
        loop.call_repeatedly(POLL_S, self.cycle.turn_soon)


class SentinelTransport(Transport):
    """Be a connection to the reliable queue on whichever server Sentinel calls the master."""

    default_port = 26379
    Channel = SentinelChannel


def _is_tls(client: Any) -> bool:
    # Kombu has taken the URL apart by now: of its scheme, the transport's name is what is left, and
    # nothing where `broker_transport` gave that name. Then `broker_use_ssl` must say it.
    return client.transport_cls in ("rediss", SCHEMES["rediss"])


def _keep_ours_on_failover(client: Any) -> None:
    """Make the alternates of a failover list name our schemes.

    `broker_transport` counts for the first URL alone: a switch to a redis:// one would go on with
    Kombu's own transport, which does not find what is in flight here.
    """
    alternates = client.alt or []
    ours = [_our_url(url) for url in alternates]
    if ours != alternates:
        client.alt = ours
        client.cycle = client.failover_strategy(ours)
        next(client.cycle)


def _our_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return SCHEMES.get(scheme, scheme) + separator + rest
