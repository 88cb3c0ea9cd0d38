"""Publishing by the transport: once for each publish, by priority, to where it belongs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from kombu import Connection, Exchange, Producer, Queue

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.transport import TRANSPORT
from tests.chaos.lab import QUEUE, Lab
from tests.conftest import RedisFactory
from tests.nodes import RedisNode
from tests.proxy import Proxy


@pytest.fixture
def proxy(redis_node: RedisNode, redis_url: str) -> Iterator[Proxy]:
    """Give a proxy in front of the session's server, emptied."""
    with Proxy(redis_node.port) as proxy:
        yield proxy


def connect(url: str, **options: Any) -> Connection:
    return Connection(url, transport=TRANSPORT, transport_options={"lease_s": 1, **options})


#: Kombu repeats a publish whose connection broke, as Celery has it do.
RETRY_POLICY = {"max_retries": 3, "interval_start": 0.01, "interval_step": 0.01}


def test_a_publish_whose_reply_is_lost_is_there_once_though_celery_repeats_it(
    tmp_path: Path, proxy: Proxy, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given a publisher that has published before
        lab.send(0, url=proxy.url())
        # when the reply to a publish is lost, and Celery publishes again
        task_id = str(uuid4())
        proxy.swallow_reply_to(task_id.encode())
        lab.send(1, url=proxy.url(), task_id=task_id, retry=True, retry_policy=RETRY_POLICY)
        # then the message is there once
        assert proxy.swallowed == 1
        with lab.app().connection() as connection:
            queue = connection.SimpleQueue(QUEUE)
            got = [queue.get(timeout=5).headers["id"] for _ in range(2)]
            assert got[1] == task_id
            assert queue.qsize() == 0
            queue.close()


def test_a_topic_publish_whose_reply_is_lost_is_once_on_each_queue(
    proxy: Proxy, redis_url: str
) -> None:
    # given an exchange with three queues
    exchange = Exchange("news", type="topic")
    queues = [Queue(f"news-{n}", exchange, routing_key="item.*") for n in range(3)]
    with connect(proxy.url()) as connection, connection.channel() as channel:
        for queue in queues:
            queue(channel).declare()
        producer = Producer(channel)
        # when the reply to a publish is lost, and Kombu publishes again
        proxy.swallow_reply_to(b"the-only-one")
        producer.publish(
            "the-only-one", exchange=exchange, routing_key="item.added",
            retry=True, retry_policy=RETRY_POLICY,
        )  # fmt: skip
        assert proxy.swallowed == 1
    # then it is on each of them once
    with connect(redis_url) as connection, connection.channel() as channel:
        for queue in queues:
            bound = queue(channel)
            message = bound.get()
            assert message is not None
            assert message.payload == "the-only-one"
            message.ack()
            assert bound.get() is None


def test_a_retry_is_not_taken_for_a_repeated_publish(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given two publishes with one task id, as a caller does who starts a task anew
        for _ in range(2):
            lab.send(1, task_id="the-same")
        # then both are there: only a repetition of the very same publish counts once
        with lab.app().connection() as connection:
            assert connection.SimpleQueue(QUEUE).qsize() == 2


def test_the_most_urgent_priority_is_0_and_each_keeps_its_order(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given messages of several priorities, in no order
        for n, priority in enumerate([9, 0, 3, 6, 0, 9, 3, 6]):
            lab.send(n, priority=priority)
        # when a worker runs them
        lab.worker()
        lab.wait_done(*range(8))
        # then 0 comes first, and what has the same priority in the order of sending
        assert lab.journal.order() == [1, 4, 2, 6, 3, 7, 0, 5]


def test_an_urgent_message_overtakes_what_waits_in_redis(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given a busy worker with a long line
        lab.worker(pool="prefork")
        for n in range(6):
            lab.send(n, priority=6, kwargs={"gate": "gate"})
        lab.wait_started(0)
        # when an urgent message comes
        lab.send(100, priority=0)
        lab.open("gate")
        lab.wait_done(*range(6), 100)
        # then only what the worker had prefetched comes before it
        assert lab.journal.order().index(100) <= 2


def publish_for_ever(producer: Producer, body: str) -> NoReturn:
    while True:
        producer.publish(body, exchange="work", routing_key="work")


def test_a_message_for_nobody_is_dropped_and_a_full_server_is_said_so(
    redis_factory: RedisFactory,
) -> None:
    node = redis_factory(options={"maxmemory": "4mb"})
    with connect(node.url) as connection, connection.channel() as channel:
        producer = Producer(channel)
        queue = Queue("work", Exchange("work", type="direct"), routing_key="work")(channel)
        queue.declare()
        # a routing key that no queue is bound with
        producer.publish("x", exchange="work", routing_key="elsewhere")
        # a message larger than the room that is left
        errors = connection.connection_errors + connection.channel_errors
        with pytest.raises(errors, match="maxmemory"):
            publish_for_ever(producer, "x" * 1_000_000)
        # what was accepted is whole
        count = ReliableQueue(node.client()).count("work").ready
        for _ in range(count):
            message = queue.get()
            assert message is not None
            assert len(json.dumps(message.payload)) == 1_000_002
            message.ack()
        assert queue.get() is None
