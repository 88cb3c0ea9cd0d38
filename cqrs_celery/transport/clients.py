"""Make clients of the broker's Redis, with the transport's own connection parameters."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from ..transport import eviction
from .redis_errors import Client

#: The most connections that one process's client opens: one per thread.
MAX_CONNECTIONS = 1_000

#: How often an operation whose connection broke is repeated; for operations that bear repetition.
RETRIES = 3


class BrokerClient:
    """A callable that returns a redis client of a broker's database; a new one after a fork.

    URL, TLS, credentials, Sentinel and sockets are those of the transport. The client repeats an
    operation whose connection broke, so only operations that may be repeated may run on it.

    Args:
        connect: returns a Kombu connection to the broker, not yet connected.
        socket_timeout_s: seconds to wait for an answer, and for a connection; None for the
            transport's own.
        retries: how often an operation is repeated; 0 if the caller repeats it.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        socket_timeout_s: float | None = None,
        retries: int = RETRIES,
    ) -> None:
        self._retries = retries
        self._connect = connect
        self._socket_timeout_s = socket_timeout_s
        self._pid = 0
        self._client: redis.Redis | None = None

    def __call__(self) -> redis.Redis:
        """Return this process's client.

        Raises:
            redis.ConnectionError: the server does not answer.
        """
        if self._client is None or self._pid != os.getpid():
            self._client = self._new_client()
            self._pid = os.getpid()
        return self._client

    def _new_client(self) -> redis.Redis:
        connection = self._connect()
        if self._socket_timeout_s is not None:
            # Set before the channel exists: it queries the server as soon as it is made.
            connection.transport_options = {
                **(connection.transport_options or {}),
                "socket_timeout": self._socket_timeout_s,
                "socket_connect_timeout": self._socket_timeout_s,
            }
        try:
            channel = connection.channel()
            channel.max_connections = MAX_CONNECTIONS
            pool = channel._get_pool()
        finally:
            connection.close()
        pool.set_retry(Retry(ExponentialWithJitterBackoff(base=0.05, cap=1), self._retries))
        client = client_on(pool)
        eviction.warn_sender(client, connection.as_uri())
        return client


def client_on(pool: Any) -> Client:
    """Return a client on a pool of its own; `close` disconnects the pool too.

    Args:
        pool: a connection pool that a channel has made for this client alone.
    """
    return Client(
        connection_pool=pool,
        credential_provider=pool.connection_kwargs.get("credential_provider"),
    )
