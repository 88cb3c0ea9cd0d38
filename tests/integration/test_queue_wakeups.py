"""An idle consumer is woken, one at a time, and passes the wake-up on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Destination, Publish, ack, bury, give_back
from tests.queues import Ears, QueueCase, Worker, counted, opened, texts


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


def test_a_wake_up_that_reaches_nobody_goes_to_the_next(queue: QueueCase, ears: Ears) -> None:
    # given a consumer that waits, among many that have died
    dead = [f"dead-{n}" for n in range(10)]
    for name in (*dead, "anna"):
        idle(queue, name)
    # when something comes
    queue.send("1")
    # then it is woken
    assert ears.heard() == [("anna", "orders")]
    assert not queue.is_idle("anna")


def test_a_wake_up_for_what_is_delayed_goes_on_to_the_next_too(
    queue: QueueCase, ears: Ears
) -> None:
    for name in (*[f"dead-{n}" for n in range(10)], "anna"):
        idle(queue, name)

    queue.send("1", delay_ms=60_000)

    assert ears.heard() == [("anna", "orders")]


def test_the_dead_cost_wake_ups_once(queue: QueueCase, ears: Ears) -> None:
    # given more dead consumers than one wake-up tries
    for n in range(100):
        idle(queue, f"dead-{n}")
    # when messages come and go
    for n in range(10):
        queue.send(str(n))
        queue.purge("orders")
    # then nobody is tried for the next
    with counted(queue) as calls:
        queue.send("1")
    assert calls["publish"] == 0


@pytest.mark.parametrize("count", [1, 2_000])
def test_waking_costs_the_same_however_many_wait(queue: QueueCase, ears: Ears, count: int) -> None:
    # given consumers that wait, and listen
    listener = queue.client.pubsub()
    listener.psubscribe("*wake:*")
    assert listener.get_message(timeout=5)
    for n in range(count):
        idle(queue, f"idle-{n}")
    queue.send("0", to="stock")
    # when something comes
    with counted(queue) as calls:
        queue.send("1")
    # then these are all the commands, one of which asks for the queue's own limit of time
    assert sum(calls.values()) == 10 + 1, calls
    assert not {"sinter", "smembers"} & calls.keys()
    listener.close()


def test_a_consumer_that_was_found_busy_is_woken_when_it_waits_again(
    queue: QueueCase, ears: Ears
) -> None:
    # given a consumer that is busy when something comes, while another one waits elsewhere
    queue.send("1")
    anna = queue.worker("anna", "orders", "stock")
    taken = anna.take()
    idle(queue, "berta", "mail")
    queue.send("2", to="orders")
    queue.send("3", to="stock")
    # when it has done all of it, and waits
    anna.end(ack, taken)
    anna.end(ack, anna.take())
    assert anna.take() == []
    # then it is woken for any of its queues
    queue.send("4", to="stock")
    assert ears.heard() == [("anna", "stock")]
    assert texts(anna.take(was_idle=True)) == ["4"]
    assert anna.take() == []
    queue.send("5", to="orders")
    assert ears.heard() == [("anna", "orders")]


def test_the_one_that_waits_is_woken_among_many_that_are_busy(queue: QueueCase, ears: Ears) -> None:
    for n in range(60):
        queue.worker(f"busy-{n}")
    idle(queue, "anna")

    queue.send("1")

    assert ears.heard() == [("anna", "orders")]


def test_a_consumer_that_was_out_of_reach_is_woken_when_it_waits_again(
    queue: QueueCase,
) -> None:
    # given a consumer whose connection was away when it was to be woken
    anna = idle(queue, "anna")
    queue.send("1")
    # when it has come back
    ears = Ears(queue, "anna")
    assert texts(anna.take(was_idle=True)) == ["1"]
    assert anna.take() == []
    # then it is woken
    queue.send("2")
    assert ears.heard() == [("anna", "orders")]
    ears.close()


def test_a_waiting_consumer_is_woken_for_a_queue_that_it_consumes_since(
    queue: QueueCase, ears: Ears
) -> None:
    idle(queue, "anna", "orders")
    queue.consume("anna", ["orders", "stock"])

    queue.send("1", to="stock")

    assert ears.heard() == [("anna", "stock")]


@pytest.mark.parametrize("count", [1, 100])
def test_waiting_again_costs_the_same_however_many_queues_are_consumed(
    queue: QueueCase, ears: Ears, count: int
) -> None:
    # given a consumer of many queues that was woken
    queues = [f"queue-{n}" for n in range(count)]
    anna = idle(queue, "anna", *queues)
    queue.send("1", to=queues[0])
    assert texts(anna.take(was_idle=True)) == ["1"]
    # when it waits again
    with counted(queue) as calls:
        assert anna.take(queues=[]) == []
    # then the sets of its queues have it still
    assert calls["sadd"] == calls["srem"] == 1
    queue.send("2", to=queues[-1])
    assert ears.heard() == [("anna", queues[0]), ("anna", queues[-1])]


def test_a_busy_consumer_writes_nothing_about_waiting(queue: QueueCase) -> None:
    # given a busy consumer, while another one waits elsewhere
    idle(queue, "berta", "mail")
    anna = queue.worker("anna")
    queue.send(*map(str, range(20)))
    taken = anna.take(10)
    # when it goes on
    with counted(queue) as calls:
        assert len(anna.exchange(*(ack(one.id, one.fence) for one in taken)).taken) == 10
    # then nothing was written about that
    assert calls["sadd"] == calls["srem"] == 0


def test_many_messages_at_once_wake_as_many_as_it_takes(queue: QueueCase) -> None:
    # given ten consumers that wait, each for one message
    names = [f"idle-{n}" for n in range(10)]
    ears = Ears(queue, *names)
    workers = {name: idle(queue, name) for name in names}
    # when ten come at once
    queue.publish_many([Publish([Destination("orders", str(n))]) for n in range(10)])
    # then each has one
    got = {}
    while heard := ears.heard():
        for name, _ in heard:
            (got[name],) = texts(workers[name].take(1, was_idle=True))
    assert sorted(got) == sorted(names)
    assert sorted(got.values()) == [str(n) for n in range(10)]
    ears.close()


def test_a_consumer_of_the_release_before_is_woken(queue: QueueCase, ears: Ears) -> None:
    # given one that is in no set of those that wait for a queue, next to one that has died
    idle(queue, "anna")
    for key in ("idle:orders", "callable"):
        assert queue.redis.srem(queue.key(key), "anna") == 1
    idle(queue, "dead")
    # when something comes
    queue.send("1")
    # then it is woken
    assert ears.heard() == [("anna", "orders")]


def test_a_publisher_of_the_release_before_wakes_a_consumer(queue: QueueCase, ears: Ears) -> None:
    # given a consumer that such a publisher has woken
    anna = idle(queue, "anna")
    (who,) = queue.redis.sinter(queue.key("idle"), queue.key("consuming:orders"))
    assert who == b"anna"
    queue.redis.srem(queue.key("idle"), who)
    # when it has taken everything, and waits
    assert anna.take(was_idle=True) == []
    # then it is woken as before
    queue.send("1")
    assert ears.heard() == [("anna", "orders")]


def test_a_consumer_that_the_release_before_has_recovered_is_forgotten(
    queue: QueueCase, ears: Ears
) -> None:
    # given one that was recovered by a worker that knew nothing of the sets of a later release
    idle(queue, "dead")
    for key in ("idle", "consuming:orders"):
        assert queue.redis.srem(queue.key(key), "dead") == 1
    assert queue.redis.zrem(queue.key("consumers"), "dead") == 1
    queue.redis.delete(queue.key("queues_of:dead"))
    # and one of the release before, that waits
    idle(queue, "anna")
    for key in ("idle:orders", "callable"):
        assert queue.redis.srem(queue.key(key), "anna") == 1
    # when something comes
    queue.send("1")
    # then the one that waits is woken, and nothing is kept of the other one
    assert ears.heard() == [("anna", "orders")]
    for name in ("idle:orders", "callable", "busy"):
        assert not queue.redis.exists(queue.key(name)), name


@pytest.mark.parametrize("how", ["recover", "leave"])
def test_nothing_is_kept_of_a_consumer_that_has_gone(queue: QueueCase, how: str) -> None:
    # given a consumer that a wake-up has found busy, and one that waits
    queue.send("1")
    queue.worker("anna").take()
    idle(queue, "berta", "mail", "orders")
    queue.send("2")
    # when both have gone
    queue.end_lease("anna", "berta")
    if how == "recover":
        queue.recover()
    else:
        queue.leave("anna")
        queue.leave("berta")
    # then no set has them
    for name in ("idle", "idle:orders", "idle:mail", "callable", "busy", "consumers"):
        assert not queue.redis.exists(queue.key(name)), name
