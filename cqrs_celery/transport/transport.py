"""The transports that Kombu loads: stock Redis connections with our channels and our loop."""

from __future__ import annotations

import ssl
import sys
from typing import Any
from urllib.parse import urlsplit

from kombu.transport import redis as stock
from redis import exceptions

from ..errors import InvalidSetting
from .celery.eta import show_etas
from .celery.scheduled import show_delayed
from .celery.worker_patches import teach_celery
from .channel import Channel
from .consumer.polling import POLL_S
from .consumer.worker_facts import watch_for_worker
from .formats import check_format
from .options import check_options
from .poller import Poller
from .sentinel import SentinelChannel

#: Kombu's URL schemes, each with ours.
SCHEMES = {
    "redis": "reliable-redis",
    "rediss": "reliable-rediss",
    "sentinel": "reliable-sentinel",
}


class Transport(stock.Transport):
    """A connection to the reliable queue on Redis or Valkey.

    Its driver type is redis, which enables fanout events, gossip and `worker_disable_prefetch` in
    Celery.
    """

    Channel = Channel

    #: If Kombu repeats a batch, nothing is stored twice: every publish has its id.
    supports_batch_publish = True

    # A server that is a replica or cut off: connect again, to the right one.
    connection_errors = (
        *stock.Transport.connection_errors,
        exceptions.ReadOnlyError,
        exceptions.MasterDownError,
        exceptions.ClusterDownError,
        # A node of Redis Cluster that does not have the keys, or no longer; MOVED is one of them.
        exceptions.AskError,
        exceptions.TryAgainError,
    )

    #: True once the connection has checked that it knows the format of the keys.
    _is_checked = False

    def __init__(self, client: Any, **kwargs: Any) -> None:
        check_options(client.transport_options)
        _keep_ours_on_failover(client)
        if _is_tls(client) and not client.ssl:
            # Kombu knows only one scheme for TLS; with another one it would connect without TLS.
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        _refuse_plain_text(client)
        super().__init__(client, **kwargs)
        teach_celery()
        show_etas()
        show_delayed()
        watch_for_worker()
        self.cycle = Poller()

    def create_channel(self, connection: Any) -> Any:
        """Return a new channel, connected.

        Raises:
            UnsupportedFormat: the queues have the format of a later release. A worker ends with
                this error.
        """
        used = len(self._used_channel_ids)
        try:
            channel = super().create_channel(connection)
            self._check_format(channel)
            return channel
        except BaseException:
            # Kombu would keep the channel's id as used: an outage of some hours would use up all.
            del self._used_channel_ids[used:]
            raise

    def _check_format(self, channel: Any) -> None:
        if self._is_checked:
            return
        try:
            # The client's URL, since Kombu has cleared the transport's own if it has just switched.
            where = channel.connection.client.as_uri()
            check_format(channel.client, channel.global_keyprefix, where=where)
        except BaseException:
            channel.close()
            raise
        self._is_checked = True

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Use Kombu's event loop, and make it turn at least once every `POLL_S` seconds.

        Args:
            connection: Kombu's connection.
            loop: its event loop.
        """
        super().register_with_event_loop(connection, loop)
        self.cycle.use_hub(loop)
        loop.call_repeatedly(POLL_S, self.cycle.turn_soon)


class SentinelTransport(Transport):
    """A connection to the reliable queue on whichever server Sentinel calls the master."""

    default_port = 26379
    Channel = SentinelChannel


def _is_tls(client: Any) -> bool:
    # Kombu has parsed the URL by now, and of its scheme only the transport's name is left. If
    # `broker_transport` gave that name, nothing is left: then `broker_use_ssl` must request TLS.
    return client.transport_cls in ("rediss", SCHEMES["rediss"])


def _refuse_plain_text(client: Any) -> None:
    """Refuse a connection without TLS if the application's URL requests TLS.

    If `broker_transport` is set, Kombu drops the scheme of the URL, and with it the request for
    TLS.
    """
    state = sys.modules.get("celery._state")
    if client.ssl or state is None:
        return
    conf = state.get_current_app().conf
    for urls in (conf.broker_url, conf.broker_read_url, conf.broker_write_url):
        for url in str(urls or "").split(";"):
            parts = urlsplit(url)
            if parts.scheme == "rediss" and parts.hostname == client.hostname:
                raise InvalidSetting(
                    "the broker's URL begins with rediss://, but with broker_transport set, Kombu"
                    " would connect without TLS. Begin the URL with reliable-rediss:// and leave"
                    " broker_transport out, or set broker_use_ssl.",
                    setting="broker_url",
                    accepted="reliable-rediss://, or rediss:// with broker_use_ssl",
                )


def _keep_ours_on_failover(client: Any) -> None:
    """Replace the schemes of a failover list's alternates by ours.

    `broker_transport` applies only to the first URL: after a switch to a redis:// URL, Kombu's own
    transport would be used, which does not find the messages in flight here.
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
