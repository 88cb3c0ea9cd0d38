"""Celery's tests of a worker's end on a connection that went silent, without stock's blocking pop.

Copied beside `t/integration/test_connection_recovery.py` as `test_half_open.py` before a run. The
fixture is Celery's, but for its last look at stock's insides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue

from .test_connection_recovery import (  # type: ignore[import-untyped]
    POLLING_INTERVAL,
    _proxied_broker_url,
    blackhole_proxy,
    test_cold_shutdown_teardown_is_bounded,
    test_reconnect_cleanup_is_bounded,
)

__all__ = [
    "blackhole_proxy",
    "half_open_connection",
    "test_cold_shutdown_teardown_is_bounded",
    "test_reconnect_cleanup_is_bounded",
]


@pytest.fixture
def half_open_connection(blackhole_proxy: Any) -> Iterator[Any]:
    connection = Connection(
        _proxied_broker_url(blackhole_proxy.port),
        transport_options={"polling_interval": POLLING_INTERVAL},
    )
    consumer = Consumer(
        connection,
        queues=[Queue("half-open")],
        accept=["json"],
        callbacks=[lambda body, message: message.ack()],
    )
    consumer.consume()
    with contextlib.suppress(TimeoutError):
        connection.drain_events(timeout=1.0)
    blackhole_proxy.blackhole()
    yield connection
    connection._closed = True
