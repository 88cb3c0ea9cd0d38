"""A consumer gives back what it holds, whatever happens to the connection meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from cqrs_celery.clock import elapsed_s
from cqrs_celery.transport.consumer import process_locks
from cqrs_celery.transport.consumer.deliveries import tag_of
from cqrs_celery.transport.consumer.lease import LeasedConsumer
from cqrs_celery.transport.consumer.recoverer import RECOVERED_AT_ONCE, Recoverer
from tests.queues import PREFIX, QueueCase, Worker, opened, texts
from tests.waiting import wait_until


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


@pytest.fixture
def new_consumer(redis_url: str) -> Iterator[Any]:
    consumers: list[LeasedConsumer] = []

    def make(lease_s: float = 60) -> LeasedConsumer:
        queue = QueueCase(redis_url)
        assert queue.prefix == PREFIX
        consumer = LeasedConsumer(queue, lease_s=lease_s, max_deliveries=3)
        consumer.consume(["orders"])
        consumers.append(consumer)
        return consumer

    yield make
    for consumer in consumers:
        consumer.close()


def take(consumer: LeasedConsumer, count: int) -> list[str]:
    consumer.exchange(["orders"], count=count, run=1, was_idle=False)
    found = []
    while (taken := consumer.deliveries.next_ready()) is not None:
        found.append(taken.payload.decode())
    return found


def test_what_was_settled_is_sent_soon_though_no_loop_turns_and_the_next_beat_is_far_away(
    queue: QueueCase, new_consumer: Any
) -> None:
    # given a consumer that has had nothing to do
    consumer = new_consumer()
    queue.send("1")
    # when it has done something, and its channel says nothing more
    assert take(consumer, 1) == ["1"]
    (tag,) = consumer.deliveries._held
    consumer.deliveries.ack(tag)
    # then the queue learns it long before the beat
    assert consumer.lease_s / 3 > 10
    wait_until(lambda: queue.in_flight(consumer.name) == {}, 5, "the settlement")


def test_a_lost_delivery_is_not_said_to_be_held_though_there_is_a_new_lease(
    queue: QueueCase, new_consumer: Any
) -> None:
    # given a message that is about to be delivered
    queue.send("1")
    consumer = new_consumer()
    consumer.exchange(("orders",), count=1, run=1, was_idle=False)
    tag = tag_of(consumer.deliveries.next_ready())
    assert consumer.held_until(tag) > elapsed_s()
    # when the lease is lost in between, and a new one begins
    queue.leave(consumer.name)
    consumer._beat(time.monotonic(), threading.Event())
    # then whoever begins with it must ask
    assert consumer.held_until(tag) == 0


def test_what_was_taken_since_is_not_given_up_by_a_beat_that_was_answered_before(
    queue: QueueCase, new_consumer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a consumer whose message was given to others
    queue.send("1")
    consumer = new_consumer()
    assert take(consumer, 1) == ["1"]
    queue.leave(consumer.name)
    beat = consumer.queue.beat

    def slow(*args: Any, **options: Any) -> Any:
        answer = beat(*args, **options)
        if not options:
            # when, while its beat is told so, its loop learns it too, and takes the message again
            assert take(consumer, 1) == []
            assert take(consumer, 1) == ["1"]
        return answer

    with monkeypatch.context() as slowly:
        slowly.setattr(consumer.queue, "beat", slow)
        consumer._beat(time.monotonic(), threading.Event())
    # then it still knows that it has it
    (tag,) = consumer.deliveries._held
    consumer.deliveries.ack(tag)
    consumer.flush()
    assert queue.count_of() == {}
    assert not queue.redis.exists(queue.key(f"flight:{consumer.name}"))


def test_what_was_taken_under_a_lease_that_was_lost_before_the_answer_came_is_not_delivered(
    queue: QueueCase, new_consumer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a consumer that takes two messages
    queue.send("1", "2")
    consumer = new_consumer()
    exchange = consumer.queue.settle_and_take

    def frozen(*args: Any, **options: Any) -> Any:
        answer = exchange(*args, **options)
        # when, before it has read the answer, they are given to others, and its beat is told so
        queue.leave(consumer.name)
        consumer._beat(time.monotonic(), threading.Event())
        return answer

    with monkeypatch.context() as cold:
        cold.setattr(consumer.queue, "settle_and_take", frozen)
        # then it delivers none of them
        assert take(consumer, 2) == []
    # and has them when the queue gives them to it again
    assert take(consumer, 2) == ["1", "2"]


def test_what_was_taken_under_a_new_lease_by_an_exchange_from_before_its_loss_goes_back(
    queue: QueueCase, new_consumer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a consumer that is about to take two messages
    queue.send("1", "2")
    consumer = new_consumer()
    exchange = consumer.queue.settle_and_take

    def late(*args: Any, **options: Any) -> Any:
        # when its lease ends, and its beat gets it a new one, before the question has left
        queue.leave(consumer.name)
        consumer._beat(time.monotonic(), threading.Event())
        return exchange(*args, **options)

    with monkeypatch.context() as cold:
        cold.setattr(consumer.queue, "settle_and_take", late)
        assert take(consumer, 2) == []
    # then nothing is stuck: they go back, uncounted, and are taken again
    consumer.flush()
    assert queue.in_flight(consumer.name) == {}
    assert take(consumer, 2) == ["1", "2"]
    assert not queue.redis.exists(queue.key("tries"))


def test_what_a_closed_channel_could_not_give_back_comes_before_what_stands_behind_it(
    queue: QueueCase, new_consumer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a channel that holds the first two of three messages
    queue.send("1", "2", "3")
    old = new_consumer()
    assert take(old, 2) == ["1", "2"]
    # when it is closed while the server is away
    with monkeypatch.context() as away:

        def refuse(*args: object, **options: object) -> None:
            raise redis.ConnectionError("away")

        away.setattr(old.queue, "settle_and_take", refuse)
        old.close()
    # then the next channel takes them before the third
    assert take(new_consumer(), 10) == ["1", "2", "3"]
    # and nothing of the old one is left
    assert not queue.redis.exists(queue.key(f"flight:{old.name}"))


def test_who_has_left_and_consumes_again_recovers_what_the_dead_held(
    queue: QueueCase, new_consumer: Any
) -> None:
    # given a consumer whose worker was told to consume nothing, and then to consume again
    consumer = new_consumer(lease_s=0.5)
    consumer.consume([])
    assert queue.lease_ends() == {}
    consumer.consume(["orders"])
    # when another consumer dies
    queue.send("1")
    victim = Worker(queue, "victim", ["orders"])
    assert texts(victim.take()) == ["1"]
    queue.redis.zadd(queue.key("consumers"), {"victim": 1})
    # then the consumer recovers what it held
    wait_until(lambda: list(queue.lease_ends()) == [consumer.name], 10, "the recovery")
    assert take(consumer, 1) == ["1"]


def test_however_many_have_died_few_of_their_files_are_open_at_a_time(
    queue: QueueCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given processes that have died, far more than this broker's consumers, of which there are some
    folder, boot = tmp_path / "locks", process_locks.boot_id()
    folder.mkdir(mode=0o700)
    files = [folder / f"{boot}.1-{number}" for number in range(500)]
    for path in files:
        path.touch(mode=0o600)
    for number, path in enumerate(files[: RECOVERED_AT_ONCE + 20]):
        Worker(queue, f"victim-{number}", ["orders"], about={"lock": str(path)})
    recoverer = Recoverer(queue, name="anna", lease_s=60, max_deliveries=3, folder=folder)
    # when one looks for them
    before = len(list(Path("/proc/self/fd").iterdir()))
    counts: list[int] = []

    def counting(function: Any) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            counts.append(len(list(Path("/proc/self/fd").iterdir())))
            return function(*args, **options)

        return counted

    monkeypatch.setattr(queue, "recover", counting(queue.recover))
    monkeypatch.setattr(recoverer, "_told", counting(recoverer._told))
    recoverer.recover_on_host()
    # then few files were open, and all of the broker's are recovered, and no file of others is gone
    assert max(counts) <= before + RECOVERED_AT_ONCE + 5
    assert queue.lease_ends() == {}
    assert len(list(folder.iterdir())) == 500 - (RECOVERED_AT_ONCE + 20)
