"""Limit the time to make a connection, and the time to wait for each answer on it.

A firewall that has lost a connection's state drops everything without a reply: without a limit, the
wait lasts forever. An attempt to connect is given up soon, since the next one may succeed. An
answer on a working connection may take longer, since the server may be busy.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

#: Seconds to wait for an answer if `socket_timeout` is not set.
ANSWER_S = 5.0

#: Seconds that each step of making a connection may take if `socket_connect_timeout` is not set: to
#: reach the server, and for each of its answers until the connection can be used.
CONNECT_S = 2.0


def bounded(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a connection pool with a limit on each wait.

    Args:
        params: the parameters that Kombu made; a limit that is set is kept.
    """
    if params.get("socket_timeout") is None:
        params["socket_timeout"] = ANSWER_S
    # A socket file has no connect timeout.
    if params.get("socket_connect_timeout", CONNECT_S) is None:
        params["socket_connect_timeout"] = CONNECT_S
    connection_class = params["connection_class"]
    params["connection_class"] = type(
        connection_class.__name__, (QuickToConnect, connection_class), {}
    )
    return params


#: The connection pools of this process's channels.
_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_pools_lock = threading.Lock()


def watch(pool: Any) -> None:
    """Register a pool for `drop_idle`."""
    with _pools_lock:
        _pools.add(pool)


def drop_idle() -> None:
    """Close every connection of this process's channels that is not in use.

    If one connection has died silently, others probably have too, and each of them would cost the
    full wait for an answer.
    """
    with _pools_lock:
        pools = list(_pools)
    for pool in pools:
        pool.disconnect(inuse_connections=False)


class QuickToConnect:
    """A mix-in for redis-py's connections: the connect timeout covers the handshake too.

    redis-py limits the time for the socket to connect, but waits for what follows (TLS, HELLO,
    AUTH, SELECT) as long as for any other answer.
    """

    _sock: Any
    socket_timeout: float | None
    socket_connect_timeout: float | None

    def _connect(self) -> Any:
        answer_s = self.socket_timeout
        self.socket_timeout = shorter(answer_s, self.socket_connect_timeout)
        try:
            # The socket keeps this bound until the connection can be used.
            return super()._connect()  # type: ignore[misc]
        finally:
            self.socket_timeout = answer_s

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Connect if the connection is not open, and make it usable."""
        is_connected = self._sock is not None
        super().connect_check_health(*args, **options)  # type: ignore[misc]
        if not is_connected:
            self._sock.settimeout(self.socket_timeout)


def shorter(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two waits in seconds; None is an endless wait."""
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)
