"""Queues take turns, none starves, and nobody gets more than asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import ack, give_back
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_a_take_brings_no_more_than_asked_for(queue: QueueCase) -> None:
    queue.send(*"12345")
    anna = queue.worker()

    first, second, third = anna.take(2), anna.take(2), anna.take(2)

    assert [texts(taken) for taken in (first, second, third)] == [["1", "2"], ["3", "4"], ["5"]]


def test_a_take_of_an_empty_queue_brings_nothing(queue: QueueCase) -> None:
    answer = queue.worker().exchange()

    assert answer.is_known
    assert not answer.taken
    assert answer.due_in_ms is None


def test_a_take_from_no_queue_brings_nothing(queue: QueueCase) -> None:
    queue.send("1")

    assert queue.worker().take(queues=()) == []


def test_what_one_worker_holds_no_other_gets(queue: QueueCase) -> None:
    queue.send("1", "2")

    ours = queue.worker("anna").take(1)
    others = queue.worker("berta").take()

    assert texts(ours) == ["1"]
    assert texts(others) == ["2"]


def test_an_unknown_consumer_takes_nothing_and_is_told(queue: QueueCase) -> None:
    queue.send("1")

    answer = queue.settle_and_take("stranger", queues=["orders"], count=1)

    assert not answer.is_known
    assert not answer.taken
    assert queue.count_of() == {"ready": 1}


def test_every_take_has_a_higher_fence(queue: QueueCase) -> None:
    queue.send(*"1234")
    anna, berta = queue.worker("anna"), queue.worker("berta")

    fences = [worker.take(1)[0].fence for worker in (anna, berta, anna, berta)]

    assert fences == sorted(set(fences))


def test_a_flooded_queue_starves_none_of_fifty(queue: QueueCase) -> None:
    # given fifty queues, one of them flooded, the others with one message each
    names = [f"queue-{n:02}" for n in range(50)]
    queue.send(*(f"flood-{n}" for n in range(500)), to="queue-00")
    for name in names[1:]:
        queue.send("1", to=name)
    # when one take asks for one message a queue
    taken = queue.worker("anna", *names).take(50)
    # then every queue is served
    assert sorted({one.queue for one in taken}) == names


@pytest.mark.parametrize("flooded", ["a", "m", "z"])
def test_the_place_of_the_flooded_queue_does_not_matter(queue: QueueCase, flooded: str) -> None:
    # given three queues, one flooded
    queue.send(*(f"flood-{n}" for n in range(100)), to=flooded)
    for name in {"a", "m", "z"} - {flooded}:
        queue.send("1", "2", to=name)
    # when ten are taken
    taken = queue.worker("anna", "a", "m", "z").take(10)
    # then the others are empty and the flood fills what they leave
    assert sum(one.queue == flooded for one in taken) == 6


def test_a_full_queue_fills_the_take_where_the_others_are_empty(queue: QueueCase) -> None:
    queue.send(*(str(n) for n in range(100)))

    taken = queue.worker("anna", *(f"empty-{n}" for n in range(20)), "orders").take(40)

    assert len(taken) == 40


def test_with_fewer_places_than_queues_the_order_of_turn_decides(queue: QueueCase) -> None:
    for name in "abcde":
        queue.send("1", "2", to=name)
    anna = queue.worker()

    taken = anna.take(3, queues=list("cdeab"))

    assert [one.queue for one in taken] == ["c", "d", "e"]


def test_urgent_messages_of_one_queue_take_no_turn_of_another(queue: QueueCase) -> None:
    queue.send("urgent-1", "urgent-2", priority=0)
    queue.send("patient", to="stock", priority=9)

    taken = queue.worker("anna", "orders", "stock").take(2)

    assert texts(taken) == ["urgent-1", "patient"]


def test_a_sequence_waits_its_turn_among_other_messages(queue: QueueCase) -> None:
    # given a hot sequence and plain messages behind it
    anna = queue.worker()
    queue.send(*"123", sequence="hot")
    queue.send("a", "b")
    # when one worker does one after the other
    done = []
    while taken := anna.take(1):
        done += texts(taken)
        anna.end(ack, taken)
    # then the sequence goes to the end of the line after each
    assert done == ["1", "a", "b", "2", "3"]


def test_only_the_first_of_a_sequence_uses_up_the_count(queue: QueueCase) -> None:
    queue.send(*"123", sequence="hot")
    queue.send("a")

    taken = queue.worker().take(2, run=3)

    assert texts(taken) == ["1", "a", "2", "3"]


def test_nine_thousand_are_taken_and_settled_at_once(queue: QueueCase) -> None:
    # given more than Lua's stack holds
    anna = queue.worker()
    queue.send_many(9_000)
    # when all are taken, and all are acknowledged, each in one call
    taken = anna.take(9_000)
    answer = anna.end(ack, taken)
    # then each came once and nothing is left
    assert len({one.id for one in taken}) == 9_000
    assert answer.refused == ()
    assert leftovers(queue.client) == []


def test_a_run_of_nine_thousand_is_taken_given_back_and_done(queue: QueueCase) -> None:
    # given one sequence, longer than Lua's stack
    anna = queue.worker()
    queue.send_many(9_000, sequence="hot")
    # when all of it is taken, its first message given back, and all taken again and done
    first = anna.take(1, run=9_000)
    answer = anna.end(give_back, first[:1])
    second = anna.take(1, run=9_000)
    anna.end(ack, second)
    # then all went back with the first, and came again in order
    assert len(answer.revoked) == 8_999
    assert texts(second) == texts(first) == [str(n) for n in range(9_000)]
    assert leftovers(queue.client) == []
