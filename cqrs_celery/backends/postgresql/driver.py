"""Make psycopg2 wait as gevent wants it: other greenlets run while the server works."""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Engine


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


def _wait(connection: Any, timeout: float = -1) -> None:
    from gevent.socket import wait_read, wait_write
    from psycopg2 import OperationalError, extensions

    waiting = {extensions.POLL_READ: wait_read, extensions.POLL_WRITE: wait_write}
    while (state := connection.poll()) != extensions.POLL_OK:
        if state not in waiting:
            raise OperationalError(f"poll returned {state}")
        waiting[state](connection.fileno())
