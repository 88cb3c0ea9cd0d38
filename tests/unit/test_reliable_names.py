"""The names under which the reliable queue is set as the broker's transport."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from cqrs_celery.app.broker import has_reliable_queue
from cqrs_celery.transport import SentinelTransport, Transport


@pytest.mark.parametrize(
    ("named", "is_reliable"),
    [
        ("cqrs_celery.transport:Transport", True),
        ("cqrs_celery.transport.Transport", True),
        ("cqrs_celery.transport.transport:Transport", True),
        ("cqrs_celery.transport:SentinelTransport", True),
        ("reliable-redis", True),
        ("reliable-sentinel", True),
        (Transport, True),
        (SentinelTransport, True),
        ("redis", False),
        ("kombu.transport.redis:Transport", False),
        ("cqrs_celery.transport:Transprot", False),
        ("cqrs_celery.transprot:Transport", False),
        ("reliable-reddis", False),
        ("", False),
        (None, False),
    ],
)
def test_the_reliable_queue_is_known_by_each_name_that_kombu_accepts(
    named: Any, is_reliable: bool
) -> None:
    app = Celery("shop", set_as_current=False)
    app.conf.update(broker_url="redis://localhost:6379/0", broker_transport=named)
    assert has_reliable_queue(app) is is_reliable
    # but not where Kombu takes the transport from the URL
    app.conf.broker_url = "redis+socket:///tmp/redis.sock"
    assert not has_reliable_queue(app)
