"""A function with a batch takes many events in one task, in order, and finds the bad one."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import mill
from tests.integration.conftest import WorkerFactory
from tests.mill import Grind
from tests.milling import letters, seen, start, tried, wait_for
from tests.nodes import WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

LEDGER = "mill.ledger"


def commit(cqrs: CQRS, sacks: int, events: int) -> list[str]:
    """Commit events to sacks, without a worker; returns the sacks."""
    names = [f"s{n}" for n in range(sacks)]
    for name in names:
        with cqrs.session() as session:
            sack = mill.Sack(name)
            for _ in range(events):
                sack.record(mill.Ground(grams=1))
            session.add(sack)
    return names


def registered(factory: WorkerFactory, url: str) -> None:
    """Let a worker register the subscriptions, and end."""
    worker = start(factory, url)
    worker.kill()


def sizes(data: Any) -> list[int]:
    return [int(size) for size in data.lrange("batches", 0, -1)]


def start_ledger(factory: WorkerFactory, url: str, **options: Any) -> WorkerNode:
    """Start a worker of the ledger alone."""
    return start(factory, url, queues=[LEDGER], **options)


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_what_waits_is_handled_many_at_once_and_in_order(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    # given events that wait
    registered(worker_factory, redis_url)
    names = commit(cqrs, sacks=10, events=50)
    # when a worker takes them
    start_ledger(worker_factory, redis_url, pool=pool)
    # then each sack's come once and in order, in few tasks of at most a hundred
    for name in names:
        wait_for(data, "ledger", name, list(range(1, 51)))
    assert sum(sizes(data)) == 500
    assert max(sizes(data)) <= 100
    assert len(sizes(data)) <= 25
    wait_until(lambda: not any(queue.count(LEDGER)), 10, "nothing to be left")
    wait_until(lambda: not in_flight(data), 10, "nothing in flight")


def test_the_bad_one_is_found_and_holds_up_its_own_sack_alone(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a bad event in the middle of many
    registered(worker_factory, redis_url)
    names = commit(cqrs, sacks=5, events=20)
    data.hset("broken", "ledger:s2:11", "Rotten")
    # when they are handled
    worker = start_ledger(worker_factory, redis_url)
    # then all others are, and those behind it wait
    for name in names:
        expected = list(range(1, 11 if name == "s2" else 21))
        wait_for(data, "ledger", name, expected)
    wait_until(lambda: letters(queue, LEDGER), 10, "the letter")
    (letter,) = letters(queue, LEDGER)
    assert letter.sequence == "mill:Sack:s2"
    assert queue.count(LEDGER).blocked == 10
    # once with the others and once alone
    assert len(tried(data, "ledger:s2:11")) == 2
    told = "messages of queue mill.ledger failed (its function failed), they are handled one by one"
    assert told in worker.logs()
    # when it can be handled, then the rest follows
    data.delete("broken")
    assert queue.letters.redrive(LEDGER, letter.id) == "done"
    wait_for(data, "ledger", "s2", list(range(1, 21)))


def test_a_killed_worker_s_batch_comes_back_whole(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker that is killed after it has booked and before it is done
    registered(worker_factory, redis_url)
    commit(cqrs, sacks=1, events=30)
    data.set("hold", 1)
    worker = start_ledger(worker_factory, redis_url)
    wait_until(lambda: sum(sizes(data)) == 30, 20, "the batch")
    worker.kill()
    data.delete("hold")
    # when another one takes over
    start_ledger(worker_factory, redis_url)
    # then it handles them all again, in order
    wait_for(data, "ledger", "s0", [*range(1, 31), *range(1, 31)])
    wait_until(lambda: not any(queue.count(LEDGER)), 10, "nothing to be left")


def test_a_stopped_worker_finishes_its_batch(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    registered(worker_factory, redis_url)
    commit(cqrs, sacks=1, events=30)
    data.set("hold", 1)
    worker = start_ledger(worker_factory, redis_url)
    wait_until(lambda: sum(sizes(data)) == 30, 20, "the batch")

    os.kill(worker.pid, signal.SIGTERM)
    data.rpush("gate", "open")
    wait_until(lambda: worker.status != "running", 30, "the worker to end")

    assert not any(queue.count(LEDGER))
    assert seen(data, "ledger", "s0") == list(range(1, 31))


def test_an_event_that_comes_alone_is_a_list_of_one(
    cqrs: CQRS, data: Any, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url)

    cqrs.send_command(Grind(id="one")).get(timeout=20)

    wait_for(data, "ledger", "one", [1])
    assert sizes(data) == [1]
