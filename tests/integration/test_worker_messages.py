"""Messages that are not stored, on real queues: one step, every subscriber, and room."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from celery import Celery

from cqrs_celery import CQRS, Message, subscribes
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.errors import PublishFailed, QueueFull
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.workers.registration import subscriber_of
from tests.integration.conftest import WorkerFactory
from tests.nodes import RedisNode
from tests.waiting import wait_until

ALONE = ("--without-mingle", "--without-gossip")
PREFIX = "{news}."
QUEUES = ("news.readers", "news.press")


class Printed(Message, name="news.printed"):
    copies: int


class Turned(Message, name="news.turned", key="book"):
    book: str
    page: int


@subscribes(Printed, subscription="news.readers")
def read(message: Printed) -> None: ...


@subscribes(Turned, subscription="news.readers")
def turn(message: Turned) -> None: ...


@subscribes(Printed, subscription="news.press")
def count(message: Printed) -> None: ...


WORKER = """
    import os

    import redis
    from celery import Celery
    from cqrs_celery import CQRS, Message, Metadata, subscribes

    app = Celery("news", broker=os.environ["NEWS_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    app.conf.broker_transport_options = {"global_keyprefix": "{news}."}
    CQRS(app)
    client = redis.Redis.from_url(os.environ["NEWS_URL"])

    class Printed(Message, name="news.printed"):
        copies: int

    class Turned(Message, name="news.turned", key="book"):
        book: str
        page: int

    @subscribes(Printed, subscription="news.readers")
    def read(message: Printed, metadata: Metadata) -> None:
        if message.copies < 0:
            raise ValueError("no such edition")
        client.rpush("read", f"{message.copies} {metadata.causation_id}")

    @subscribes(Turned, subscription="news.readers")
    def turn(message: Turned) -> None:
        client.rpush(f"turned:{message.book}", message.page)

    @subscribes(Printed, subscription="news.press")
    def count(message: Printed) -> None:
        client.rpush("counted", message.copies)
"""


@contextmanager
def news(url: str, **settings: Any) -> Iterator[CQRS]:
    """Give a client of the application, without subscriptions of its own in the broker."""
    app = Celery("news", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_transport_options={"global_keyprefix": PREFIX},
    )
    app.conf.update(settings)
    cqrs = CQRS(app)
    try:
        yield cqrs
    finally:
        app.close()


@pytest.fixture
def cqrs(redis_url: str) -> Iterator[CQRS]:
    """Give a publisher whose two subscriptions are registered, and no worker."""
    with news(redis_url) as cqrs:
        register(cqrs)
        yield cqrs


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def register(cqrs: CQRS) -> None:
    runtime = cqrs.runtime
    assert runtime.subscriptions is not None
    for definition in definitions.all():
        if definition.function.__module__ == __name__:
            runtime.subscriptions.register(subscriber_of(definition, runtime))


def waiting(client: redis.Redis) -> list[int]:
    """Return how many messages are ready in each of the two queues."""
    queue = ReliableQueue(client, prefix=PREFIX)
    return [queue.count(name).ready for name in QUEUES]


def test_a_publish_is_one_step_to_every_subscriber(cqrs: CQRS, client: redis.Redis) -> None:
    """ACCEPTANCE 77 and 78."""
    # given a publisher that is connected
    cqrs.publish(Printed(copies=1))
    before: Any = client.info("stats")
    # when it publishes
    published = cqrs.publish(Printed(copies=2))
    # then each subscriber has it after one round trip; the other one is this look itself
    after: Any = client.info("stats")
    assert published.queues == 2
    assert after["total_reads_processed"] - before["total_reads_processed"] == 2
    assert waiting(client) == [2, 2]
    # and its body is kept once
    queue = ReliableQueue(client, prefix=PREFIX)
    assert client.hlen(queue.key("body")) == 2


def test_a_repeated_publish_is_one_message(cqrs: CQRS, client: redis.Redis) -> None:
    published = [cqrs.publish(Printed(copies=1), message_id="edition-1") for _ in "12"]
    assert published == [("edition-1", 2), ("edition-1", None)]
    assert waiting(client) == [1, 1]


def test_a_worker_gets_messages_through_each_subscription(
    redis_url: str, client: redis.Redis, worker_factory: WorkerFactory
) -> None:
    """ACCEPTANCE 78."""
    # given a worker with subscriptions, and no event store or aggregate anywhere
    worker_factory(WORKER, arguments=ALONE, concurrency=2, env={"NEWS_URL": redis_url})
    with news(redis_url) as cqrs:
        # when messages are published, strange ids among them
        ids = [cqrs.publish(Printed(copies=n)).message_id for n in (1, 2)]
        ids.append(cqrs.publish(Printed(copies=3), message_id='"é\\ 🔩').message_id)
        for page in range(1, 31):
            for book in ("a", "b"):
                cqrs.publish(Turned(book=book, page=page))
        # then every subscriber has each
        wait_until(lambda: client.llen("read") == client.llen("counted") == 3, 15, "the messages")
        read: Any = client.lrange("read", 0, -1)
        assert {one.decode() for one in read} == {f"{n} {it}" for n, it in enumerate(ids, 1)}
        # and those with a key in order, though two processes are at work
        wait_until(lambda: client.llen("turned:a") == client.llen("turned:b") == 30, 15, "pages")
        for book in ("a", "b"):
            pages: Any = client.lrange(f"turned:{book}", 0, -1)
            assert [int(page) for page in pages] == list(range(1, 31))


def test_a_failing_message_holds_up_no_other(
    redis_url: str, client: redis.Redis, worker_factory: WorkerFactory
) -> None:
    worker_factory(WORKER, pool="solo", arguments=ALONE, env={"NEWS_URL": redis_url})
    with news(redis_url) as cqrs:
        for copies in (-1, 1, 2):
            cqrs.publish(Printed(copies=copies))
    wait_until(lambda: client.llen("read") == 2 and client.llen("counted") == 3, 15, "the others")


# Capacity


@pytest.mark.alone  # measures time
def test_a_full_queue_is_told_of_and_nobody_gets_the_message(
    cqrs: CQRS, client: redis.Redis
) -> None:
    """ACCEPTANCE 81."""
    # given room for 3, and 3 that wait
    for n in range(3):
        cqrs.publish(Printed(copies=n), capacity=3, timeout_s=0)
    # when a fourth is published, then it says where and how many, after its timeout
    started = time.monotonic()
    with pytest.raises(QueueFull, match=r"3 messages wait, expected fewer than 3") as caught:
        cqrs.publish(Printed(copies=4), capacity=3, timeout_s=0.3, message_id="fourth")
    assert 0.3 <= time.monotonic() - started < 3
    error = caught.value
    assert (error.capacity, error.found, error.message_id) == (3, 3, "fourth")
    assert error.queue in QUEUES
    assert isinstance(error, PublishFailed)
    # and nobody has it, and it may be published again
    assert waiting(client) == [3, 3]
    assert cqrs.publish(Printed(copies=4), message_id="fourth").queues == 2


def test_one_full_queue_keeps_it_from_all_subscribers(cqrs: CQRS, client: redis.Redis) -> None:
    queue = ReliableQueue(client, prefix=PREFIX)
    for page in range(5):
        cqrs.publish(Turned(book="a", page=page))
    with pytest.raises(QueueFull) as caught:
        cqrs.publish(Printed(copies=1), capacity=5, timeout_s=0)
    assert (caught.value.queue, caught.value.found) == ("news.readers", 5)
    assert queue.count("news.press").ready == 0


def test_what_waits_in_sequences_counts_and_what_a_worker_holds_does_not(
    cqrs: CQRS, client: redis.Redis
) -> None:
    # given 3 messages in each of 2 sequences, one of which a worker holds, and one without
    for page in range(3):
        for book in ("a", "b"):
            cqrs.publish(Turned(book=book, page=page))
    queue = ReliableQueue(client, prefix=PREFIX)
    queue.beat("anna", 60_000, register=True)
    (taken,) = queue.settle_and_take("anna", queues=["news.readers"], count=1).taken
    cqrs.publish(Printed(copies=1))
    # then 6 wait
    with pytest.raises(QueueFull) as caught:
        cqrs.publish(Turned(book="c", page=1), capacity=6, timeout_s=0)
    assert caught.value.found == 6
    assert cqrs.publish(Turned(book="c", page=1), capacity=7, timeout_s=0).queues == 1
    assert taken.sequence == "news.turned:a"


def test_a_publisher_waits_until_there_is_room(cqrs: CQRS, client: redis.Redis) -> None:
    """ACCEPTANCE 81."""
    # given a full queue, and a publisher that waits
    for n in range(3):
        cqrs.publish(Printed(copies=n))
    waiter = ThreadPoolExecutor(1)
    published = waiter.submit(cqrs.publish, Printed(copies=4), capacity=3, timeout_s=20)
    # when a worker takes one of each
    queue = ReliableQueue(client, prefix=PREFIX)
    queue.beat("anna", 60_000, register=True)
    queue.settle_and_take("anna", queues=QUEUES, count=2)
    # then it is published
    assert published.result(timeout=10).queues == 2
    waiter.shutdown()
    assert waiting(client) == [3, 3]


def test_many_publishers_never_overfill_a_queue(cqrs: CQRS, client: redis.Redis) -> None:
    # given a worker that takes slowly, and 16 publishers of 10 messages each, with room for 5
    queue = ReliableQueue(client, prefix=PREFIX)
    queue.beat("anna", 60_000, register=True)
    most, taken, stop = 0, 0, threading.Event()

    def consume() -> None:
        nonlocal most, taken
        while not stop.is_set():
            most = max(most, *waiting(client))
            taken += len(queue.settle_and_take("anna", queues=QUEUES, count=4).taken)

    worker = threading.Thread(target=consume)
    worker.start()
    try:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda n: publish_ten(cqrs), range(16)))
        wait_until(lambda: taken == 320, 20, lambda: f"320 to be taken: {taken}")
    finally:
        stop.set()
        worker.join()
    # then all arrived, and there were never more than 5
    assert 0 < most <= 5


def publish_ten(cqrs: CQRS) -> None:
    for n in range(10):
        cqrs.publish(Printed(copies=n), capacity=5, timeout_s=60)


# Redis away


@pytest.mark.alone  # measures time
def test_redis_away_is_publish_failed_after_the_configured_retries(
    fresh_redis_node: RedisNode,
) -> None:
    """ACCEPTANCE 80."""
    policy = {"max_retries": 2, "interval_start": 0.2, "interval_step": 0, "interval_max": 0.2}
    with news(fresh_redis_node.url, task_publish_retry_policy=policy) as cqrs:
        # given a server that goes away
        register(cqrs)
        cqrs.publish(Printed(copies=1))
        fresh_redis_node.kill()
        # when something is published, then it says so, with the message's id, after two retries
        started = time.monotonic()
        with pytest.raises(PublishFailed, match=r"does not answer.*after 2 retries") as caught:
            cqrs.publish(Printed(copies=2), message_id="edition-2")
        assert 0.4 <= time.monotonic() - started < 5
        assert caught.value.message_id == "edition-2"
        # and when it is there again, the same can be published
        fresh_redis_node.start()
        assert cqrs.publish(Printed(copies=2), message_id="edition-2").queues == 2


def test_a_short_outage_is_bridged_by_the_retries(fresh_redis_node: RedisNode) -> None:
    policy = {"max_retries": 50, "interval_start": 0.1, "interval_step": 0.1, "interval_max": 0.2}
    with news(fresh_redis_node.url, task_publish_retry_policy=policy) as cqrs:
        register(cqrs)
        fresh_redis_node.kill()
        with ThreadPoolExecutor(1) as threads:
            published = threads.submit(cqrs.publish, Printed(copies=2))
            fresh_redis_node.start()
            assert published.result(timeout=20).queues == 2


def test_without_retries_it_fails_at_once(fresh_redis_node: RedisNode) -> None:
    with news(fresh_redis_node.url, task_publish_retry=False) as cqrs:
        fresh_redis_node.kill()
        with pytest.raises(PublishFailed, match="after 0 retries"):
            cqrs.publish(Printed(copies=2))
