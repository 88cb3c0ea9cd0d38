"""Give others a client to the broker's own Redis, by the transport's own connection parameters."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from ..transport import eviction
from .redis_errors import Client

#: Connections at most that one process's client opens: one a thread.
MAX_CONNECTIONS = 1_000

#: How often an operation is repeated when its connection broke; for operations that bear it.
RETRIES = 3


class BrokerClient:
    """Return a redis client to a broker's database when called; a new one after a fork.

    URL, TLS, credentials, Sentinel and sockets are as the transport would have them. The client
    repeats an operation whose connection broke, so what runs on it must bear repetition.

    Args:
        connect: returns a Kombu connection to the broker, not yet connected.
        socket_timeout_s: seconds to wait for an answer, and for a connection; None for the
            transport's own.
        retries: how often an operation is repeated; 0 for one that is repeated elsewhere.
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
            # For all that the channel does, which asks the server as soon as it is made.
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
    """Return a client on a pool that a channel has made for it alone; `close` disconnects both."""
    return Client(
        connection_pool=pool,
        credential_provider=pool.connection_kwargs.get("credential_provider"),
    )
