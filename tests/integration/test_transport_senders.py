"""What stock senders may write, a worker of ours runs too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from cqrs_celery.transport import TRANSPORT
from tests.integration.conftest import WorkerFactory
from tests.waiting import wait_until

WORKER = """
    import json
    import redis
    from celery import Celery

    app = Celery("senders", broker={url!r})
    app.conf.broker_transport = {transport!r}
    told = redis.Redis.from_url({url!r})

    @app.task(bind=True, name="senders.tell", max_retries=1)
    def tell(self, retries=0):
        request = self.request
        told.rpush("told", json.dumps([
            request.id, request.get("retries"), bool(request.ignore_result), request.headers,
        ]))
        if request.retries < retries:
            raise self.retry(countdown=0)
"""


@pytest.fixture
def sender(redis_url: str, worker_factory: WorkerFactory) -> Iterator[Celery]:
    """Give an application whose worker runs."""
    worker_factory(WORKER.format(url=redis_url, transport=TRANSPORT), pool="solo")
    app = Celery("senders", broker=redis_url)
    app.conf.broker_transport = TRANSPORT
    yield app
    app.close()


def test_whole_numbers_as_ids_and_any_truth_as_an_option_run_as_with_stock(
    sender: Celery, data: Any
) -> None:
    # when a task is sent with an id and an option of types that Celery accepts
    sender.send_task("senders.tell", task_id=5, ignore_result=1)
    # then it runs
    wait_until(lambda: data.llen("told") == 1, 20, "the task to run")
    assert json.loads(data.lindex("told", 0))[:3] == ["5", 0, True]
    assert data.hlen("cq:dead:celery") == 0


def test_headers_by_the_names_of_celery_s_own_methods_reach_the_task(
    sender: Celery, data: Any
) -> None:
    # when a sender's headers have names that Celery's request has methods by
    headers = {"update": "a", "get": "b", "clear": 1, "tenant": "shop"}
    sender.send_task("senders.tell", kwargs={"retries": 1}, headers=headers)
    # then the task finds them among its headers, at its retry too
    wait_until(lambda: data.llen("told") == 2, 20, "the task to run twice")
    for n in range(2):
        _, retries, _, found = json.loads(data.lindex("told", n))
        assert retries == n
        assert headers.items() <= found.items()
    assert data.hlen("cq:dead:celery") == 0
