"""What idle consumers cost the server, and whom a message wakes."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.transport import TRANSPORT
from tests.waiting import wait_until

CONSUMERS = 20


class Idler:
    """A consumer that waits in a thread of its own, with a connection of its own."""

    def __init__(self, url: str, queue: str) -> None:
        self.got: list[Any] = []
        self._url, self._queue = url, queue
        self._stop = threading.Event()
        self.is_listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with Connection(self._url, transport=TRANSPORT) as connection:
            channel = connection.channel()
            with Consumer(channel, [Queue(self._queue)], callbacks=[self._note]):
                while not self._stop.is_set():
                    with contextlib.suppress(socket.timeout):
                        connection.drain_events(timeout=1)
                    self.is_listening.set()

    def _note(self, body: Any, message: Any) -> None:
        self.got.append(body)
        message.ack()

    def stop(self) -> None:
        self._stop.set()

    def join(self) -> None:
        self._thread.join(10)


@pytest.fixture
def idlers(redis_url: str) -> Iterator[list[Idler]]:
    """Give twenty consumers of one queue that have found nothing yet."""
    idlers = [Idler(redis_url, "idle") for _ in range(CONSUMERS)]
    try:
        for idler in idlers:
            assert idler.is_listening.wait(20)
        yield idlers
    finally:
        for idler in idlers:
            idler.stop()
        for idler in idlers:
            idler.join()


@pytest.fixture
def frozen(redis_url: str) -> Iterator[None]:
    """Give twenty consumers of one queue that wait, are connected, and do nothing when woken."""
    names = [f"frozen-{n}" for n in range(CONSUMERS)]
    with redis.Redis.from_url(redis_url) as client, client.pubsub() as pubsub:
        queue = ReliableQueue(client)
        pubsub.subscribe(*(queue.key(f"wake:{name}") for name in names))
        for name in names:
            queue.beat(name, 600_000, register=True)
            queue.consume(name, ["idle"])
            queue.settle_and_take(name, queues=["idle"], count=1)
        yield


@pytest.fixture
def idler(redis_url: str, frozen: None) -> Iterator[Idler]:
    """Give a consumer that waits next to those."""
    idler = Idler(redis_url, "idle")
    with redis.Redis.from_url(redis_url) as client:
        wait_until(lambda: client.scard("cq:idle") == CONSUMERS + 1, 20, "all to be idle")
    yield idler
    idler.stop()
    idler.join()


@pytest.mark.alone  # measures time
@pytest.mark.parametrize("countdown_s", [0, 1.5])
def test_a_message_comes_within_a_second_though_its_wake_up_went_to_a_frozen_consumer(
    redis_url: str, idler: Idler, countdown_s: float
) -> None:
    # given a consumer next to frozen ones, of which mostly one of those is woken
    with Connection(redis_url, transport=TRANSPORT) as connection:
        producer = connection.Producer()
        for n in range(5):
            # when a message is sent
            eta = datetime.now(UTC) + timedelta(seconds=countdown_s)
            producer.publish(n, routing_key="idle", exchange="", headers={"eta": eta.isoformat()})
            # then that consumer gets it, at most a second late
            wait_until(lambda: len(idler.got) > n, 20, "the message")  # noqa: B023
            late_s = (datetime.now(UTC) - eta).total_seconds()
            assert late_s < 4, f"{late_s:.1f} s late"
        assert idler.got == list(range(5))


@pytest.mark.alone  # measures time
def test_a_message_of_a_stock_producer_comes_within_a_second(redis_url: str) -> None:
    # given a consumer that waits for the reliable queue's wake-ups
    idler = Idler(redis_url, "idle")
    try:
        assert idler.is_listening.wait(20)
        with Connection(redis_url, transport="redis") as connection:
            producer = connection.Producer()
            for n in range(3):
                # when a producer that knows of none sends a message
                sent_at = time.monotonic()
                producer.publish(n, routing_key="idle", exchange="")
                # then the consumer finds it
                wait_until(lambda: len(idler.got) > n, 20, "the message")  # noqa: B023
                assert time.monotonic() - sent_at < 4
        assert idler.got == [0, 1, 2]
    finally:
        idler.stop()
        idler.join()


def commands(client: redis.Redis) -> dict[str, int]:
    """Return how often each command was called, those in scripts too."""
    return {name: stats["calls"] for name, stats in client.info("commandstats").items()}


def test_twenty_idle_consumers_cost_less_than_50_commands_a_second(
    redis_url: str, idlers: list[Idler]
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        before, started_at = commands(client), time.monotonic()
        wait_until(lambda: time.monotonic() >= started_at + 5, 10)
        seconds = time.monotonic() - started_at
        after = commands(client)
    calls = {name: after[name] - before.get(name, 0) for name in after}
    calls = {name: count for name, count in calls.items() if count}
    assert sum(calls.values()) / seconds < 50, calls


def test_one_message_wakes_exactly_one_of_twenty(redis_url: str, idlers: list[Idler]) -> None:
    with redis.Redis.from_url(redis_url) as client:
        # given all of them asleep
        wait_until(lambda: client.scard("cq:idle") == CONSUMERS, 20, "all to be idle")
        before = commands(client)
        # when one message is published
        with Connection(redis_url, transport=TRANSPORT) as connection:
            producer = connection.Producer()
            producer.publish("x", routing_key="idle", exchange="", declare=[Queue("idle")])
        wait_until(lambda: sum(len(idler.got) for idler in idlers) == 1, 20, "the message")
        # then one wake-up was sent
        after = commands(client)
        assert after["cmdstat_publish"] - before.get("cmdstat_publish", 0) == 1
        # and all are asleep again
        wait_until(lambda: client.scard("cq:idle") == CONSUMERS, 20, "all to be idle")


def test_a_channel_knows_its_queues_as_consumers_come_and_go(redis_url: str) -> None:
    with Connection(redis_url, transport=TRANSPORT) as connection:
        channel: Any = connection.channel()
        for name in ("orders", "stock", "orders"):
            queue = Queue(name, channel=channel)
            queue.declare()
            tag = f"{name}-{len(channel.active_queues)}"
            channel.basic_consume(name, callback=print, consumer_tag=tag)
        broadcast = Queue("all", Exchange("all", "fanout"), channel=channel)
        broadcast.declare()
        channel.basic_consume("all", callback=print, consumer_tag="all")
        assert channel.active_queues == ["orders", "stock"]

        channel.basic_cancel("orders-0")
        assert channel.active_queues == ["stock", "orders"]

        for tag in ("orders-2", "stock-1", "all"):
            channel.basic_cancel(tag)
        assert channel.active_queues == []
