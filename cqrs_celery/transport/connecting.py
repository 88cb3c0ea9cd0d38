"""Bound how long a connection may take to be made, and each answer on it.

A firewall that has lost a connection's state swallows everything and says nothing: whoever waits
without a bound waits forever. A connection that is being made is given up soon, since the next
attempt may be the one that gets through; an answer on one that works may take longer, as a busy
server does.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

#: Seconds to wait for an answer where `socket_timeout` is not set.
ANSWER_S = 5.0

#: Seconds that each step of making a connection may take where `socket_connect_timeout` is not set:
#: to reach the server, and each of its answers until the connection can be used.
CONNECT_S = 2.0


def bounded(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a connection pool, with a bound on each wait.

    Args:
        params: as Kombu has made them; what is set is kept.
    """
    if params.get("socket_timeout") is None:
        params["socket_timeout"] = ANSWER_S
    # A socket file has none.
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
    """Remember a pool, for `drop_idle`."""
    with _pools_lock:
        _pools.add(pool)


def drop_idle() -> None:
    """Close every connection of this process's channels that is not in use.

    Where one has died without a word, so have others, and each would cost the wait for an answer.
    """
    with _pools_lock:
        pools = list(_pools)
    for pool in pools:
        pool.disconnect(inuse_connections=False)


class QuickToConnect:
    """A connection whose TLS handshake and first answers are waited for no longer than itself.

    redis-py knows one bound for the socket to connect, and waits for what follows (TLS, HELLO,
    AUTH, SELECT) as long as for any other answer. A mix-in for a connection class of redis-py.
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
        """Connect, if it is not connected, and make the connection usable."""
        is_connected = self._sock is not None
        super().connect_check_health(*args, **options)  # type: ignore[misc]
        if not is_connected:
            self._sock.settimeout(self.socket_timeout)


def shorter(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two waits; None is an endless one."""
    return min((seconds for seconds in (one, other) if seconds is not None), default=None)
