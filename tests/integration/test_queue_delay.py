"""What is to come later waits in Redis, by its clock, and comes on time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Destination, ack, give_back, later
from tests.queues import QueueCase, leftovers, opened, texts
from tests.waiting import wait_until


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_a_delayed_message_comes_when_it_is_due_and_not_before(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", delay_ms=60_000)

    assert anna.take() == []
    queue.make_due()
    assert texts(anna.take()) == ["1"]


def test_a_delay_ends_by_itself(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", delay_ms=30)

    taken = wait_until(anna.take, 5, "the message to be due")

    assert texts(taken) == ["1"]


def test_an_exchange_says_when_the_next_delayed_message_is_due(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", delay_ms=60_000)
    queue.send("2", to="stock", delay_ms=50_000)

    due_in_ms = anna.exchange().due_in_ms

    assert due_in_ms is not None
    assert 40_000 < due_in_ms <= 50_000


def test_an_exchange_that_takes_something_says_it_too(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    queue.send("2", delay_ms=60_000)

    answer = anna.exchange()

    assert texts(answer.taken) == ["1"]
    assert answer.due_in_ms is not None


def test_with_nothing_delayed_nothing_is_due(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", delay_ms=60_000)
    queue.make_due()
    anna.take()

    assert anna.exchange().due_in_ms is None


def test_due_messages_come_in_the_order_of_their_times_before_what_waits(queue: QueueCase) -> None:
    # given one message at once and three for later
    anna = queue.worker()
    queue.send("now")
    for tag, delay_ms in (("third", 30_000), ("first", 10_000), ("second", 20_000)):
        queue.send(tag, delay_ms=delay_ms)
    # when all are due
    queue.make_due()
    # then what had its time comes first
    assert texts(anna.take()) == ["first", "second", "third", "now"]


def test_a_worker_of_another_queue_moves_what_is_due(queue: QueueCase) -> None:
    # given something due in a queue, and a worker of another one
    anna, berta = queue.worker("anna", "orders"), queue.worker("berta", "stock")
    queue.send("1", delay_ms=60_000)
    queue.make_due()
    # when that one asks
    berta.take()
    # then the message is ready in its own queue
    assert queue.count_of() == {"ready": 1}
    assert texts(anna.take()) == ["1"]


def test_a_first_send_with_a_delay_does_not_block_its_sequence(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("later", sequence="Item-1", delay_ms=60_000)
    queue.send("now", sequence="Item-1")

    first = anna.take()
    anna.end(ack, first)
    queue.make_due()

    assert texts(first) == ["now"]
    assert texts(anna.take()) == ["later"]


def test_a_due_message_joins_the_end_of_its_sequence(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("later", sequence="Item-1", delay_ms=60_000)
    queue.send("1", "2", sequence="Item-1")

    queue.make_due()

    assert texts(anna.take(run=3)) == ["1", "2", "later"]


def test_a_retry_later_holds_its_sequence(queue: QueueCase) -> None:
    # given the first of a sequence, to be tried again later
    anna = queue.worker()
    queue.send("1", "2", sequence="Item-1")
    anna.end(later, anna.take(), 60_000)
    # when one more comes
    queue.send("3", sequence="Item-1")
    # then all wait for its time
    assert anna.take() == []
    assert queue.count_of() == {"retrying": 3}
    queue.make_due()
    assert texts(anna.take(run=3)) == ["1", "2", "3"]


def test_a_sequence_whose_time_has_come_counts_as_ready_until_somebody_takes_it(
    queue: QueueCase,
) -> None:
    # given two sequences whose heads are delayed
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    queue.send("2", "3", sequence="Item-2")
    for taken in anna.take():
        anna.end(later, [taken], 60_000)
    assert queue.count_of() == {"retrying": 3}
    # when both are due, and one of them is taken
    queue.make_due()
    assert texts(anna.take(1)) == ["1"]
    # then the other one waits for nothing but a worker
    assert queue.count_of() == {"ready": 1, "in_sequences": 3}


def test_a_retry_later_of_a_plain_message_holds_nothing(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", "2")
    anna.end(later, anna.take(1), 60_000)

    assert texts(anna.take()) == ["2"]
    assert queue.count_of() == {"delayed": 1}


def test_a_retry_may_bring_a_new_payload(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("first try")
    anna.end(later, anna.take(), 60_000, "second try")
    queue.make_due()

    assert texts(anna.take()) == ["second try"]


def test_a_retry_counts_no_delivery(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    anna.end(later, anna.take(), 60_000)
    queue.make_due()

    assert [one.tries for one in anna.take()] == [0]


def test_a_retry_keeps_its_priority(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("patient", priority=9)
    anna.end(later, anna.take(), 60_000)
    queue.send("urgent")
    queue.make_due()

    assert [(one.payload, one.priority) for one in anna.take()] == [(b"urgent", 0), (b"patient", 9)]


def test_a_delayed_publish_is_deduplicated_like_any(queue: QueueCase) -> None:
    queue.send("1", delay_ms=60_000, publish_id="p")
    queue.send("1", delay_ms=60_000, publish_id="p")

    assert queue.count_of() == {"delayed": 1}


def test_delayed_messages_that_are_done_leave_nothing(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", delay_ms=60_000)
    queue.send("2", delay_ms=60_000, sequence="Item-1")
    queue.make_due()
    anna.end(give_back, anna.take())
    anna.end(ack, anna.take())

    assert leftovers(queue.client) == []


def test_a_thousand_due_messages_of_many_queues_all_come(queue: QueueCase) -> None:
    # given more due messages than one take moves
    names = [f"queue-{n}" for n in range(20)]
    for name in names:
        queue.publish([Destination(name, str(n)) for n in range(150)], delay_ms=60_000)
    queue.make_due()
    anna = queue.worker("anna", *names)
    # when a worker takes until nothing is due
    count = 0
    while (answer := anna.exchange(count=1_000)).taken or answer.due_in_ms is not None:
        count += len(answer.taken)
        anna.end(ack, answer.taken)
    # then it had them all
    assert count == 3_000
    assert leftovers(queue.client) == []
