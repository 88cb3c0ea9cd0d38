"""An idle consumer is woken, one at a time, and passes the wake-up on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import ack, bury, give_back
from tests.queues import Ears, QueueCase, Worker, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


@pytest.fixture
def ears(queue: QueueCase) -> Iterator[Ears]:
    ears = Ears(queue, "anna", "berta", "clara")
    yield ears
    ears.close()


def idle(queue: QueueCase, name: str, *queues: str) -> Worker:
    """Start a consumer that found nothing and waits."""
    worker = queue.worker(name, *queues)
    assert worker.take() == []
    return worker


def test_a_publish_wakes_an_idle_consumer(queue: QueueCase, ears: Ears) -> None:
    idle(queue, "anna")

    queue.send("1")

    assert ears.heard() == [("anna", "orders")]


def test_a_publish_wakes_one_consumer_of_many(queue: QueueCase, ears: Ears) -> None:
    for name in ("anna", "berta", "clara"):
        idle(queue, name)

    queue.send("1")

    assert len(ears.heard()) == 1


def test_a_second_publish_wakes_nobody_while_the_first_waits(queue: QueueCase, ears: Ears) -> None:
    idle(queue, "anna")
    idle(queue, "berta")
    queue.send("1")
    ears.heard()

    queue.send("2", "3")

    assert ears.heard() == []


def test_a_busy_consumer_is_not_woken(queue: QueueCase, ears: Ears) -> None:
    # given a consumer that has something to do
    queue.send("1")
    queue.worker("anna").take()

    queue.send("2")

    assert ears.heard() == []


def test_a_consumer_of_another_queue_is_not_woken(queue: QueueCase, ears: Ears) -> None:
    idle(queue, "anna", "stock")

    queue.send("1", to="orders")

    assert ears.heard() == []


def test_a_consumer_that_consumes_no_more_is_not_woken(queue: QueueCase, ears: Ears) -> None:
    idle(queue, "anna", "orders", "stock")
    queue.consume("anna", ["stock"])

    queue.send("1", to="orders")
    queue.send("2", to="stock")

    assert ears.heard() == [("anna", "stock")]


def test_a_woken_consumer_that_leaves_something_wakes_the_next(
    queue: QueueCase, ears: Ears
) -> None:
    # given three idle consumers and three messages
    workers = {name: idle(queue, name) for name in ("anna", "berta", "clara")}
    queue.send("1", "2", "3")
    woken = []
    # when each woken one takes one
    while heard := ears.heard():
        ((name, _),) = heard
        woken.append(name)
        assert len(workers[name].take(1, was_idle=True)) == 1
    # then each has woken the next, until nothing was left
    assert sorted(woken) == ["anna", "berta", "clara"]


def test_a_woken_consumer_that_takes_everything_wakes_nobody(queue: QueueCase, ears: Ears) -> None:
    workers = {name: idle(queue, name) for name in ("anna", "berta")}
    queue.send("1", "2")
    ((name, _),) = ears.heard()

    workers[name].take(2, was_idle=True)

    assert ears.heard() == []


def test_a_wake_up_is_passed_on_for_less_urgent_messages_too(queue: QueueCase, ears: Ears) -> None:
    workers = {name: idle(queue, name) for name in ("anna", "berta")}
    queue.send("1", "2", priority=6)
    ((name, _),) = ears.heard()

    workers[name].take(1, was_idle=True)

    assert len(ears.heard()) == 1


def test_a_wake_up_goes_on_to_a_consumer_of_the_queue_that_has_more(
    queue: QueueCase, ears: Ears
) -> None:
    # given two messages in a queue, then a consumer of it and one of another that wait
    queue.send("1", "2", to="stock")
    idle(queue, "berta", "orders")
    clara = queue.worker("clara", "stock")
    clara.take(queues=["orders"])
    # when a consumer of both leaves one of them
    queue.worker("anna", "orders", "stock").take(1)
    # then that is told to whom it concerns
    assert ears.heard() == [("clara", "stock")]


def test_a_consumer_that_found_something_is_idle_no_more(queue: QueueCase) -> None:
    anna = idle(queue, "anna")
    queue.push_raw("{}")

    anna.take(was_idle=True)

    assert not queue.is_idle("anna")


def test_a_consumer_that_only_settles_stays_as_it_was(queue: QueueCase) -> None:
    queue.send("1")
    anna = queue.worker()
    taken = anna.take()

    anna.end(ack, taken)

    assert not queue.is_idle("anna")


def test_what_goes_back_to_an_empty_queue_wakes_somebody(queue: QueueCase, ears: Ears) -> None:
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()
    idle(queue, "berta")

    anna.end(give_back, taken)

    assert ears.heard() == [("berta", "orders")]


def test_a_sequence_that_is_freed_wakes_somebody(queue: QueueCase, ears: Ears) -> None:
    queue.send("1", "2", sequence="Item-1")
    anna = queue.worker("anna")
    taken = anna.take()
    idle(queue, "berta")

    anna.end(ack, taken)

    assert ears.heard() == [("berta", "orders")]


def test_a_message_behind_a_held_one_wakes_nobody(queue: QueueCase, ears: Ears) -> None:
    queue.send("1", sequence="Item-1")
    queue.worker("anna").take()
    idle(queue, "berta")

    queue.send("2", sequence="Item-1")

    assert ears.heard() == []


def test_a_recovery_wakes_a_living_consumer_and_none_of_the_dead(
    queue: QueueCase, ears: Ears
) -> None:
    # given a dead worker that held something, and one dead and one living that wait
    queue.send("1")
    queue.worker("anna").take()
    idle(queue, "berta")
    idle(queue, "clara")
    queue.end_lease("anna", "berta")
    # when they are recovered
    queue.recover()
    # then the living one is woken
    assert ears.heard() == [("clara", "orders")]


def test_a_redrive_wakes_somebody(queue: QueueCase, ears: Ears) -> None:
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()
    anna.end(bury, taken, "{}")
    idle(queue, "berta")

    queue.redrive("orders", taken[0].id)

    assert ears.heard() == [("berta", "orders")]


def test_what_comes_due_wakes_somebody_of_its_queue(queue: QueueCase, ears: Ears) -> None:
    # given something due in a queue whose consumer waits
    idle(queue, "anna", "orders")
    queue.send("1", delay_ms=60_000)
    queue.make_due()
    # when the consumer of another queue asks
    queue.worker("berta", "stock").take()
    # then that one is woken
    assert ears.heard() == [("anna", "orders")]


def test_a_topic_wakes_a_consumer_of_each_subscriber(queue: QueueCase, ears: Ears) -> None:
    for name, to in (("anna", "orders"), ("berta", "stock")):
        idle(queue, name, to)
        queue.subscribe(f"{to}.handler", ["placed"], queue=to, pieces="<|||>")

    queue.publish_topic("placed", "body", message_id="m", root_id="r")

    assert sorted(ears.heard()) == [("anna", "orders"), ("berta", "stock")]


def test_a_lost_wake_up_is_made_good_by_the_next_take(queue: QueueCase, ears: Ears) -> None:
    # given a consumer that did not hear its wake-up
    anna = idle(queue, "anna")
    queue.send("1")
    ears.heard()
    # when it asks by itself
    taken = anna.take(was_idle=True)
    # then it has everything
    assert texts(taken) == ["1"]


def test_a_consumer_that_leaves_is_woken_no_more(queue: QueueCase, ears: Ears) -> None:
    idle(queue, "anna")
    queue.leave("anna")

    queue.send("1")

    assert ears.heard() == []


def test_a_take_that_is_full_of_batches_passes_the_wake_up_on(queue: QueueCase, ears: Ears) -> None:
    # given an idle consumer of a queue, and one that takes batches of it
    berta = queue.worker("berta")
    assert berta.take(1) == []
    anna = queue.worker("anna")
    queue.send_many(3_000)
    queue.redis.sadd(queue.key("idle"), "berta")
    ears.heard()
    # when that one takes as much as the server bears, and more is there
    assert len(anna.take(4, batches={"orders": 1_000})) == 1_000
    # then the idle one hears of it
    assert ("berta", "orders") in ears.heard()
