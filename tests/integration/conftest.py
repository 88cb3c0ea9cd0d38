"""Fixtures for tests that need real worker processes.

    worker = worker_factory(SOURCE, pool="solo", queues=["orders"])

writes the application's source into a folder of the test, starts `celery worker` on it, waits until
it is ready, and kills all that is left of it after the test. Every test in this folder is marked
`integration`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import mill
from tests.conftest import watch
from tests.nodes import WorkerNode

#: Starts a worker from an application's source; takes the keyword arguments of `WorkerNode`.
WorkerFactory = Callable[..., WorkerNode]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; the hook sees those of all folders."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def worker_factory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WorkerFactory]:
    """Start workers that end with the test.

    `worker_factory(source, *, module="worker_app", is_started=True, **options)`: the source is
    written to <module>.py, dedented, and must define `app`. Workers are named worker-1, worker-2, …
    The options are those of `WorkerNode`.
    """
    workers: list[WorkerNode] = []

    def start(
        source: str, *, module: str = "worker_app", is_started: bool = True, **options: Any
    ) -> WorkerNode:
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        options.setdefault("name", f"worker-{len(workers) + 1}")
        node = WorkerNode(tmp_path, module, **options)
        workers.append(node)
        watch(request, node)
        if is_started:
            node.start()
            node.wait_ready()
        return node

    yield start
    for worker in workers:
        worker.teardown()


@pytest.fixture
def data(redis_url: str) -> Iterator[Any]:
    """Give a client of the server."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def queue(data: redis.Redis) -> ReliableQueue:
    """Give the queues of the server."""
    return ReliableQueue(data)


@pytest.fixture
def cqrs(redis_url: str) -> Iterator[CQRS]:
    """Give a client of the mill."""
    cqrs = mill.client(redis_url)
    yield cqrs
    cqrs.app.backend.result_consumer.stop()
    cqrs.app.close()
