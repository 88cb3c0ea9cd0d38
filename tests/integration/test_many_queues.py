"""Queues take turns: a flooded one does not keep the others waiting."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import depot
from tests.depot import Ring
from tests.integration.conftest import WorkerFactory
from tests.queues import in_flight
from tests.waiting import wait_until

FLOOD = 2_000

QUEUES = [f"queue-{n}" for n in range(50)]

FLOODED, *OTHERS = QUEUES


@pytest.fixture
def cqrs(redis_url: str) -> Iterator[CQRS]:
    """Give a client of the depot."""
    with depot.connected(redis_url) as cqrs:
        yield cqrs


def ring(cqrs: CQRS, queue: str, bell: str) -> None:
    cqrs.send_command(Ring(bell=bell), queue=queue, ignore_result=True)


def test_of_fifty_queues_one_is_flooded_and_the_others_are_served_meanwhile(
    redis_url: str, cqrs: CQRS, worker_factory: WorkerFactory
) -> None:
    # given a queue with 2,000 messages, and 49 queues with two each, which came later
    for _ in range(FLOOD):
        ring(cqrs, FLOODED, "flood")
    for queue in [*OTHERS, *OTHERS]:
        ring(cqrs, queue, f"early in {queue}")
    # when a worker consumes them all, and each of the others gets another one meanwhile
    worker_factory(
        "from tests.depot import app",
        concurrency=2,
        queues=QUEUES,
        arguments=["--without-mingle", "--without-gossip"],
        env={"DEPOT_URL": redis_url},
    )
    with redis.Redis.from_url(redis_url) as data:
        wait_until(lambda: data.llen("rung") >= 300, 30, "the first 300")
        before = data.llen("rung")
        for queue in OTHERS:
            ring(cqrs, queue, f"late in {queue}")
        total = FLOOD + 3 * len(OTHERS)
        wait_until(
            lambda: data.llen("rung") >= total, 60, lambda: f"{data.llen('rung')} of {total}"
        )
        rung = [bell.decode() for bell in data.lrange("rung", 0, -1)]
        # then the others' messages were done while the flood was not half drained
        assert len(rung) == total
        early = max(n for n, bell in enumerate(rung) if bell.startswith("early"))
        assert rung[:early].count("flood") < FLOOD / 2
        # and so were those that came in the middle, before another quarter was
        late = max(n for n, bell in enumerate(rung) if bell.startswith("late"))
        assert rung[before:late].count("flood") < FLOOD / 4
        wait_until(lambda: not in_flight(data), 10, "nothing to be in flight")
        assert not any(any(ReliableQueue(data).count(queue)) for queue in QUEUES)
