"""A queue counts what it has, lists itself, and can be emptied."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Destination, ack, bury, later
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def fill(queue: QueueCase) -> None:
    """Put messages of every kind into a queue whose letters block: 15, of which 2 in flight."""
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send("1", "2", "3", sequence="blocked")
    anna.end(bury, anna.take(), "{}")
    queue.send("1", "2", sequence="retrying")
    anna.end(later, anna.take(), 60_000)
    queue.send("1", "2", "3", "4", sequence="held")
    anna.take(1, run=2)
    queue.send("1", "2", sequence="ready")
    queue.send("plain")
    queue.send("patient", priority=9)
    queue.send("delayed", delay_ms=60_000)
    queue.send("delayed too", delay_ms=60_000, sequence="ready")


def test_a_queue_counts_its_messages_by_what_they_wait_for(queue: QueueCase) -> None:
    fill(queue)

    assert queue.count_of() == {
        "ready": 3, "in_sequences": 6, "retrying": 2, "blocked": 3, "delayed": 2, "dead": 1,
    }  # fmt: skip


def test_an_unknown_queue_counts_nothing(queue: QueueCase) -> None:
    assert queue.count_of("nowhere") == {}


def test_a_count_includes_what_stock_producers_pushed(queue: QueueCase) -> None:
    queue.push_raw("{}")

    assert queue.count_of() == {"ready": 1}


def test_what_is_ready_is_the_length_of_the_list_that_stock_tools_read(queue: QueueCase) -> None:
    queue.send("1", "2")
    queue.send(*"345", sequence="Item-1")

    assert queue.redis.llen("{t}.orders") == queue.count("orders").ready == 3


def test_messages_in_flight_are_counted_nowhere_unless_in_a_sequence(queue: QueueCase) -> None:
    queue.send("plain")
    queue.send("1", "2", sequence="Item-1")
    queue.worker().take()

    assert queue.count_of() == {"in_sequences": 2}


def test_declared_queues_are_listed_by_name(queue: QueueCase) -> None:
    for name in ("stock", "orders", "mail"):
        queue.declare(name)

    assert queue.queues() == ["mail", "orders", "stock"]
    assert queue.exists("mail")
    assert not queue.exists("nowhere")


def test_a_purge_of_an_empty_queue_deletes_nothing(queue: QueueCase) -> None:
    assert queue.purge("orders") == 0


def test_a_purge_leaves_what_is_in_flight_or_dead(queue: QueueCase) -> None:
    # given a queue with everything in it
    fill(queue)
    # when it is purged
    count = queue.purge("orders")
    # then only the two in flight and the dead one stay
    assert count == 12
    assert queue.count_of() == {"in_sequences": 2, "blocked": 1, "dead": 1}
    assert queue.redis.hlen(queue.key("msg")) == 3


def test_what_a_purge_left_can_still_end(queue: QueueCase) -> None:
    # given a purged queue
    fill(queue)
    queue.purge("orders")
    # when the rest of it is recovered, redriven and done
    queue.leave("anna")
    for letter in list(queue.dead_letters("orders")):
        queue.redrive("orders", letter.id)
    berta = queue.worker("berta")
    while taken := berta.take(run=3):
        berta.end(ack, taken)
    # then nothing is left
    assert leftovers(queue.client) == []


def test_a_purge_leaves_other_queues_alone(queue: QueueCase) -> None:
    queue.send("1")
    queue.send("2", to="stock")
    queue.send("3", to="stock", delay_ms=60_000)

    queue.purge("orders")

    assert queue.count_of("stock") == {"ready": 1, "delayed": 1}


def test_a_purged_sequence_can_start_anew(queue: QueueCase) -> None:
    queue.send("1", "2", sequence="Item-1")
    queue.purge("orders")

    queue.send("3", sequence="Item-1")

    assert texts(queue.worker().take(run=3)) == ["3"]


@pytest.mark.parametrize("sequence", ["", "Item-1"])
@pytest.mark.parametrize("delay_ms", [0, 60_000])
def test_a_purge_of_many_leaves_nothing(queue: QueueCase, sequence: str, delay_ms: int) -> None:
    # given more than one script purges
    for start in range(0, 2_500, 500):
        queue.publish(
            [Destination("orders", str(start + n), sequence, n % 2 * 3) for n in range(500)],
            delay_ms=delay_ms,
        )
    # when the queue is purged
    count = queue.purge("orders")
    # then all are gone
    assert count == 2_500
    assert leftovers(queue.client) == []


def test_a_purge_of_many_behind_one_in_flight_leaves_that_one(queue: QueueCase) -> None:
    queue.send_many(2_500, sequence="Item-1")
    anna = queue.worker()
    taken = anna.take()

    assert queue.purge("orders") == 2_499

    assert anna.end(ack, taken).refused == ()
    assert leftovers(queue.client) == []


def test_a_purge_counts_what_stock_producers_pushed(queue: QueueCase) -> None:
    queue.push_raw("{}")
    queue.send("1")

    assert queue.purge("orders") == 2
    assert leftovers(queue.client) == []


def test_a_deleted_queue_is_not_listed_and_its_messages_are_gone(queue: QueueCase) -> None:
    queue.declare("orders")
    queue.send("1", "2")

    assert queue.delete("orders") == 2

    assert not queue.exists("orders")
    assert leftovers(queue.client) == []
