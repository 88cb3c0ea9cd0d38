"""A channel that consumes many queues costs the server no more than it must."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Queue

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.transport import TRANSPORT

NAMES = [f"queue-{n}" for n in range(300)]


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    with Connection(redis_url, transport=TRANSPORT) as connection:
        yield connection


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """Note what the queue is told that a consumer consumes."""
    told: list[set[str]] = []
    consume = ReliableQueue.consume

    def noting(queue: ReliableQueue, name: str, queues: Any, **options: Any) -> None:
        consume(queue, name, queues, **options)
        told.append(set(queues))

    monkeypatch.setattr(ReliableQueue, "consume", noting)
    return told


def turn(connection: Connection) -> None:
    with contextlib.suppress(socket.timeout):
        connection.drain_events(timeout=0.01)


def consumers_of(data: redis.Redis, queue: str) -> int:
    return int(data.scard(f"cq:consuming:{queue}"))


def test_a_channel_tells_once_of_many_queues_what_it_consumes(
    connection: Connection, told: list[set[str]], data: redis.Redis
) -> None:
    # given a channel
    queues = [Queue(name) for name in NAMES]
    consumer = Consumer(
        connection.channel(), queues, callbacks=[lambda *_: None], auto_declare=False
    )
    # when it begins to consume many queues
    consumer.consume()
    # then the queue was told once, of all of them
    assert told == [set(NAMES)]
    assert all(consumers_of(data, name) == 1 for name in NAMES)
    # when it ends to consume half of them, and its loop turns
    for name in NAMES[:150]:
        consumer.cancel_by_queue(name)
    turn(connection)
    # then it was told once more
    assert told[1:] == [set(NAMES[150:])]
    assert [consumers_of(data, name) for name in (NAMES[0], NAMES[299])] == [0, 1]
    # when it ends to consume the rest, and no turn follows
    consumer.cancel()
    # then nothing is known of it any more
    assert told[2:] == [set()]
    assert not any(consumers_of(data, name) for name in NAMES)
    assert not data.zcard("cq:consumers")


def test_what_was_taken_of_a_queue_that_is_no_longer_consumed_goes_back(
    connection: Connection, data: redis.Redis
) -> None:
    # given a channel that has taken from two queues and delivered one message
    channel, got = connection.channel(), []
    queues = [Queue(name) for name in ("gone", "stays")]
    producer = connection.Producer(connection.channel())
    for queue in queues:
        queue(channel).declare()
        for n in range(3):
            producer.publish({"n": n}, routing_key=queue.name)
    gone, stays = (
        Consumer(channel, [queue], callbacks=[lambda _, m: got.append(m)]) for queue in queues
    )
    gone.consume()
    stays.consume()
    turn(connection)
    assert got
    # when it ends to consume one, and its loop turns
    gone.cancel()
    for _ in range(10):
        turn(connection)
    # then all of that queue that was not delivered is ready again
    delivered = sum(message.delivery_info["routing_key"] == "gone" for message in got)
    assert ReliableQueue(data).count("gone").ready == 3 - delivered
    assert len(got) - delivered == 3


def test_what_could_not_be_told_is_told_at_the_next_turn(
    connection: Connection, told: list[set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a channel whose first attempt to tell fails
    channel = connection.channel()
    consumer = Consumer(channel, [Queue("orders")], callbacks=[lambda *_: None])
    consume = ReliableQueue.consume

    def fails(*_: Any, **__: Any) -> None:
        raise redis.ConnectionError("cut")

    monkeypatch.setattr(ReliableQueue, "consume", fails)
    with pytest.raises(redis.ConnectionError):
        consumer.consume()
    # when the server answers again, and its loop turns
    monkeypatch.setattr(ReliableQueue, "consume", consume)
    turn(connection)
    # then it is told
    assert told == [{"orders"}]
