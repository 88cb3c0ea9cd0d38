"""A result backend that does not answer loses results, no commits, and the log says so."""

from __future__ import annotations

import pytest
import redis
from celery import Celery

from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests.integration.conftest import WorkerFactory
from tests.integration.test_worker_store_away import SOURCE
from tests.waiting import wait_until

#: A worker whose results nobody takes: nothing listens at the port.
AWAY = SOURCE.replace("backend=URL", 'backend="redis://127.0.0.1:1/0"')


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_lost_result_is_a_line_that_names_the_backend_and_says_that_the_commit_stands(
    redis_url: str, queue: ReliableQueue, worker_factory: WorkerFactory, pool: str
) -> None:
    # given a worker whose result backend is away
    client = redis.Redis.from_url(redis_url)
    worker = worker_factory(AWAY, pool=pool, env={"TEST_URL": redis_url})
    app = Celery("sender", broker=redis_url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    # when commands are carried out
    for number in range(2):
        plain = {"type": "note.take", "version": 1, "data": {"id": f"{number}"}}
        app.send_task("note.take", (plain,), queue="note.commands", task_id=f"task-{number}")
    app.close()

    def told(number: int) -> str:
        start = f"the result of note.take[task-{number}] is lost: the result backend"
        return next((line for line in worker.logs().splitlines() if start in line), "")

    wait_until(lambda: all(map(told, range(2))), 20, worker.log_tail)
    # then the log says why, and what became of them
    for number in range(2):
        assert "ERROR" in told(number)
        assert "did not take it (Error 111 connecting to 127.0.0.1:1." in told(number)
        assert (
            "What the task has committed stands, and its message is settled; whoever waits in"
            " get() waits until a timeout"
        ) in told(number)
    # and that is so
    assert client.llen("cq:stream:note:Note:0") == client.llen("cq:stream:note:Note:1") == 1
    wait_until(lambda: not any(queue.count("note.commands")), 10, worker.log_tail)
    assert client.get("attempts") == b"2"
    assert "Pool callback raised exception" not in worker.logs()
