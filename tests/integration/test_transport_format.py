"""Queues of a later release are refused, by workers and senders, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from kombu import pools

from cqrs_celery.errors import UnsupportedFormat
from cqrs_celery.queue.upkeep import FORMAT
from cqrs_celery.transport import TRANSPORT
from tests.integration.conftest import WorkerFactory
from tests.waiting import wait_until

LATER = FORMAT + 1

APP = f"""
    import os
    from celery import Celery
    app = Celery("shop", broker=os.environ["BROKER"])
    app.conf.update(broker_transport={TRANSPORT!r}, broker_connection_retry_on_startup=True)

    @app.task(name="pack")
    def pack():
        pass
"""


@pytest.fixture(autouse=True)
def fresh_pools() -> Iterator[None]:
    """Keep connections that other tests have made, which do not ask for the format again, away."""
    pools.reset()
    yield
    pools.reset()


def app_of(url: str, **options: Any) -> Celery:
    app = Celery("shop", broker=url)
    app.conf.update(broker_transport=TRANSPORT, broker_transport_options=options)
    return app


def test_a_sender_refuses_a_later_format_and_writes_nothing(redis_url: str, data: Any) -> None:
    # given queues of a later release
    data.set("cq:format", LATER)
    # when something is sent
    with app_of(redis_url) as app, pytest.raises(UnsupportedFormat) as caught:
        app.send_task("pack")
    # then the error names both numbers and the broker, and nothing was written
    error = caught.value
    assert (error.found, error.known) == (LATER, FORMAT)
    assert f"are in format {LATER}" in str(error)
    assert redis_url.partition("//")[2] in str(error)
    assert [key for key in data.scan_iter() if key.startswith(b"cq:")] == [b"cq:format"]


def test_a_format_under_a_prefix_of_its_own_is_found(redis_url: str, data: Any) -> None:
    data.set("shop.cq:format", LATER)

    with app_of(redis_url) as app:
        app.send_task("pack")
    with (
        app_of(redis_url, global_keyprefix="shop.") as app,
        pytest.raises(UnsupportedFormat),
    ):
        app.send_task("pack")


def test_a_sender_asks_for_the_format_once_a_connection(redis_url: str, data: Any) -> None:
    with app_of(redis_url) as app, app.connection() as connection:
        data.config_resetstat()
        producer = app.amqp.Producer(connection)
        for _ in range(5):
            app.send_task("pack", producer=producer)
        assert data.info("commandstats")["cmdstat_get"]["calls"] == 1


def test_a_worker_ends_where_the_format_is_of_a_later_release(
    redis_url: str, data: Any, worker_factory: WorkerFactory
) -> None:
    # given queues of a later release
    data.set("cq:format", LATER)
    # when a worker starts
    worker = worker_factory(APP, env={"BROKER": redis_url}, is_started=False)
    worker.start()
    # then it ends, and says why
    wait_until(lambda: worker.exit_code is not None, 30, "the worker to end")
    log = worker.logs()
    assert f"are in format {LATER}" in log
    assert data.get("cq:format") == str(LATER).encode()
    assert not data.exists("cq:consumers")


def test_a_worker_raises_the_format_of_what_an_older_release_left(
    redis_url: str, data: Any, worker_factory: WorkerFactory
) -> None:
    worker_factory(
        APP + '    app.conf.broker_transport_options = {"lease_s": 1}\n', env={"BROKER": redis_url}
    )

    wait_until(lambda: data.get("cq:format") == str(FORMAT).encode(), 20, "the format")
