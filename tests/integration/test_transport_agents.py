"""What the transport changes in Celery's worker holds whoever else wraps it, or the worker ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.lab import Lab
from tests.integration.conftest import WorkerFactory
from tests.nodes import WorkerNode
from tests.proxy import Proxy
from tests.waiting import wait_until

IMPORTS = ["tests.agent", "cqrs_celery.transport"]


@pytest.mark.parametrize(
    ("pool", "agent"),
    [
        ("prefork", "before"),
        ("prefork", "after"),
        ("threads", "before"),
        ("threads", "after"),
    ],
)
def test_no_task_starts_twice_when_connections_are_cut(
    tmp_path: Path, pool: str, agent: str
) -> None:
    conf: dict[str, Any] = {
        "worker_prefetch_multiplier": 4,
        "imports": IMPORTS,
        "lab_agent": agent,
    }
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given a worker with a running task and three prefetched, whose methods are measured
            worker = lab.worker("measured", pool=pool, url=proxy.url(), conf=conf)
            assert_measured(worker)
            for n in range(8):
                lab.send(n, kwargs={"gate": "gate"})
            lab.wait_started(0)
            wait_until(lambda: lab.client.llen("work") == 4, 10, "the prefetch")
            # when all connections are cut, twice
            for _ in range(2):
                assert proxy.cut() > 0
                lab.waits(lab.lease_s)
            lab.open("gate")
            # then each was started once, in order
            lab.wait_empty(deadline_s=40)
            assert lab.journal.order() == list(range(8))
            assert lab.journal.done() == set(range(8))
            seen = worker.logs()
            assert "agent saw on_connection_error_after_connected" in seen
            assert "agent saw acknowledge" in seen
            assert (pool != "threads") or "agent saw on_apply" in seen


@pytest.mark.parametrize("agent", ["before", "after"])
def test_what_a_thread_has_taken_and_not_begun_starts_once_though_an_agent_measures_it(
    tmp_path: Path, agent: str
) -> None:
    conf: dict[str, Any] = {
        "worker_prefetch_multiplier": 2,
        "lab_thread_delay_s": 0.5,
        "imports": IMPORTS,
        "lab_agent": agent,
    }
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given threads that take half a second between taking a task and beginning with it
            worker = lab.worker("late", pool="threads", concurrency=2, url=proxy.url(), conf=conf)
            assert_measured(worker)
            for n in range(6):
                lab.send(n)
            wait_until(lambda: worker.logs().count("received") >= 4, 10, "the prefetch")
            assert not lab.journal.starts()
            # when all connections are cut in that time
            assert proxy.cut() > 0
            # then each is started once
            lab.wait_done(*range(6))
            lab.wait_empty(deadline_s=40)
            assert lab.journal.starts() == dict.fromkeys(range(6), 1)


def assert_measured(worker: WorkerNode) -> None:
    wait_until(lambda: "agent measures" in worker.logs(), 10, "the agent")


def test_a_worker_with_many_open_files_survives_a_cut_while_a_child_has_not_begun(
    tmp_path: Path,
) -> None:
    conf = {"imports": IMPORTS, "lab_descriptors": 1_100}
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given a worker whose pipes have numbers above those that select() knows, and whose
            # child was sent a task, but stands still
            worker = lab.worker("crowded", pool="prefork", url=proxy.url(), conf=conf)
            (child,) = psutil.Process(worker.pid).children()
            child.suspend()
            try:
                lab.send(0)
                wait_until(lambda: "received" in worker.logs(), 10, "the task")
                # when all connections are cut
                assert proxy.cut() > 0
                wait_until(lambda: worker.logs().count("received") > 1, 10, "the second delivery")
            finally:
                child.resume()
            # then the worker lives, and runs everything
            lab.send(1)
            lab.wait_done(0, 1)
            lab.wait_empty(deadline_s=40)
            assert worker.status == "running"
            assert "out of range" not in worker.logs()


#: Removes what a later version of Celery may have under another name.
LACKING = """
    import os

    from celery import Celery
    from celery.worker.request import Request

    app = Celery("lacking", broker=os.environ["TEST_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    app.conf.broker_connection_retry_on_startup = True
    del Request.on_retry
"""


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_worker_does_not_start_on_a_celery_that_lacks_what_is_changed_in_it(
    redis_url: str, worker_factory: WorkerFactory, pool: str
) -> None:
    # given a Celery in which a method is missing
    worker = worker_factory(LACKING, pool=pool, env={"TEST_URL": redis_url}, is_started=False)
    # when a worker is started
    worker.start()
    # then it ends, and says what is missing, where, and which versions have it
    wait_until(lambda: worker.status == "exited", 30, "the worker's end")
    log = worker.logs()
    assert "celery.worker.request.Request.on_retry(exc_info) is not there" in log
    assert "celery>=5.7,<5.8" in log
    assert "ready." not in log
