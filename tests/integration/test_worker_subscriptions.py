"""A subscription gets what is committed, before it runs and while it does, on every pool."""

from __future__ import annotations

from typing import Any

import pytest

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import mill
from tests.integration.conftest import WorkerFactory
from tests.mill import Grind
from tests.milling import POOLS, start, wait_for
from tests.queues import in_flight
from tests.waiting import wait_until

#: What sees every event: a sync function and an async one, which gets the decoded event.
SUBSCRIPTIONS = ("flour", "echo:1")


def routes(data: Any) -> dict[bytes, int]:
    """Return how many events each subscriber's function gets."""
    return {key: data.hlen(key) for key in data.scan_iter("cq:routes:*")}


@pytest.mark.parametrize("pool", POOLS)
def test_the_decoded_event_arrives_and_nothing_is_left_in_flight(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    """ACCEPTANCE 72 and 73, sync and async."""
    start(worker_factory, redis_url, pool=pool)

    cqrs.send_command(Grind(id="one", times=5)).get(timeout=20)

    for subscription in SUBSCRIPTIONS:
        wait_for(data, subscription, "one", [1, 2, 3, 4, 5])
    wait_until(lambda: not in_flight(data), 10, "nothing in flight")
    assert not any(any(queue.count(name)) for name in queue.queues())


@pytest.mark.parametrize("pool", POOLS)
def test_what_was_committed_before_the_start_is_delivered(
    pool: str, cqrs: CQRS, data: Any, redis_url: str, worker_factory: WorkerFactory
) -> None:
    """ACCEPTANCE 74, sync and async."""
    # given subscriptions whose worker has ended
    start(worker_factory, redis_url, pool=pool).kill()
    # when something is committed meanwhile
    with cqrs.session() as session:
        sack = mill.Sack("one")
        for _ in range(3):
            sack.record(mill.Ground(grams=1))
        session.add(sack)
    # then the next worker handles it
    start(worker_factory, redis_url, pool=pool)
    for subscription in SUBSCRIPTIONS:
        wait_for(data, subscription, "one", [1, 2, 3])


def test_a_subscription_is_registered_once_however_often_workers_start(
    cqrs: CQRS, data: Any, redis_url: str, worker_factory: WorkerFactory
) -> None:
    """ACCEPTANCE 71."""
    start(worker_factory, redis_url)
    once = routes(data)

    start(worker_factory, redis_url)

    assert routes(data) == once
    assert once
    cqrs.send_command(Grind(id="one")).get(timeout=20)
    wait_for(data, "flour", "one", [1])
    wait_for(data, "echo:1", "one", [1])
    wait_until(lambda: not in_flight(data), 10, "nothing in flight")
    assert data.llen("seen:flour:one") == data.llen("seen:echo:1:one") == 1


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_finds_nothing_calls_nothing_and_says_nothing(
    pool: str, data: Any, redis_url: str, worker_factory: WorkerFactory
) -> None:
    """ACCEPTANCE 75."""
    # given a worker with nothing to do
    worker = start(worker_factory, redis_url, pool=pool)
    looks = data.info("commandstats").get("cmdstat_exists", {}).get("calls", 0)
    # when it has looked several times
    wait_until(
        lambda: data.info("commandstats").get("cmdstat_exists", {}).get("calls", 0) >= looks + 3,
        20,
        "three looks",
    )
    # then nothing was called, and nothing went wrong
    assert not list(data.scan_iter("seen:*"))
    assert not [line for line in worker.logs().splitlines() if "ERROR" in line]
    assert worker.status == "running"
