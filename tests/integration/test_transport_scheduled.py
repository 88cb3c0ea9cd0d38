"""`inspect scheduled` shows what waits in Redis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from celery import Celery

from tests.integration.conftest import WorkerFactory
from tests.waiting import wait_until

SOURCE = """
    import os

    from celery import Celery

    app = Celery("calendar", broker=os.environ["TEST_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    app.conf.broker_connection_retry_on_startup = True

    @app.task(name="remind")
    def remind(*args, **kwargs):
        pass
"""


def test_inspect_scheduled_lists_what_waits_in_the_queues_of_the_worker(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker, and tasks for tomorrow in its queue and in another one
    worker_factory(SOURCE, pool="solo", env={"TEST_URL": redis_url})
    app = Celery("sender", broker=redis_url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    sent = app.send_task("remind", (1, "two"), {"three": 3}, eta=tomorrow)
    app.send_task("remind", eta=tomorrow, queue="other")
    # when it is asked what is scheduled
    inspect = app.control.inspect()
    answer = wait_until(inspect.scheduled, 10, "an answer")
    # then it lists the one that it would get
    [scheduled] = answer["worker-1@test"]
    assert datetime.fromisoformat(scheduled["eta"]) == tomorrow
    request = scheduled["request"]
    assert (request["id"], request["name"]) == (sent.id, "remind")
    assert (request["args"], request["kwargs"]) == ([1, "two"], {"three": 3})
    # and it still waits in Redis, not in the worker
    assert inspect.reserved() == {"worker-1@test": []}
