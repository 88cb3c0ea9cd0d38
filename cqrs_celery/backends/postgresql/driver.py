"""Make psycopg2 wait as gevent wants it: other greenlets run while the server works."""

from __future__ import annotations

import sys
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.engine import URL


def prepare_driver(engine: Engine) -> None:
    """Give psycopg2 its wait callback where gevent has replaced the sockets; else do nothing.

    It holds for the whole process, as gevent's patches do.
    """
    monkey = sys.modules.get("gevent.monkey")
    if (
        engine.dialect.driver == "psycopg2"
        and monkey is not None
        and monkey.is_module_patched("socket")
    ):
        from psycopg2 import extensions

        if extensions.get_wait_callback() is None:
            extensions.set_wait_callback(_wait)


#: What a connection is opened with if its URL does not say otherwise: the seconds to wait for each
#: host, and what tells a host that is gone from one that is silent.
TCP_OPTIONS: Final = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

#: Milliseconds for which what was sent may go without TCP's acknowledgement. libpq knows it from
#: version 12 on.
TCP_USER_TIMEOUT_MS: Final = 15_000


def tcp_options(url: URL) -> dict[str, int]:
    """Return the options by which a connection notices that its server's host is gone.

    Args:
        url: whose own options go before.
    """
    options = dict(TCP_OPTIONS)
    if _libpq_version(url.get_driver_name()) >= 120_000:
        options["tcp_user_timeout"] = TCP_USER_TIMEOUT_MS
    return {name: value for name, value in options.items() if name not in url.query}


def connect_options(url: URL) -> dict[str, int | None]:
    """Return what the driver opens a connection with.

    Args:
        url: has its driver; its own options go before.

    Raises:
        ImportError: the driver can't be loaded.
    """
    options: dict[str, int | None] = dict(tcp_options(url))
    if url.get_driver_name() == "psycopg" and "prepare_threshold" not in url.query:
        # The names of what it prepares by itself are the server's, which a pooler may change.
        options["prepare_threshold"] = None
    return options


def _libpq_version(driver: str) -> int:
    if driver == "psycopg":
        from psycopg import pq

        return pq.version()
    from psycopg2 import extensions

    return int(extensions.libpq_version())


def _wait(connection: Any, timeout: float = -1) -> None:
    from gevent.socket import wait_read, wait_write
    from psycopg2 import OperationalError, extensions

    waiting = {extensions.POLL_READ: wait_read, extensions.POLL_WRITE: wait_write}
    while (state := connection.poll()) != extensions.POLL_OK:
        if state not in waiting:
            raise OperationalError(f"poll returned {state}")
        waiting[state](connection.fileno())
