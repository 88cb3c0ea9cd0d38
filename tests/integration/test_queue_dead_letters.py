"""A dead letter is kept whole; it blocks its sequence or lets it go on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import ack, bury, give_back, later, requeue
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_a_letter_holds_the_message_and_the_reason(queue: QueueCase) -> None:
    # given a message with everything, delivered twice
    anna = queue.worker()
    queue.send("payload", sequence="Item-1", priority=3)
    anna.end(requeue, anna.take())
    # when it is set aside
    before_ms = queue.beat("anna", 1_000).now_ms
    anna.end(bury, anna.take(), '{"reason": "no"}')
    # then its letter says all of it
    (letter,) = queue.dead_letters("orders")
    assert before_ms <= letter.died_at_ms <= before_ms + 10_000
    assert letter.first_died_at_ms == letter.died_at_ms
    assert letter._replace(died_at_ms=0, first_died_at_ms=0) == (
        1, "orders", "Item-1", 3, 0, 0, 1, 1, "dead", '{"reason": "no"}', b"payload", b"",
    )  # fmt: skip


def test_a_letter_with_a_shared_body_holds_it(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send_shared("body", "orders", "stock")
    anna.end(bury, anna.take(), "{}")

    (letter,) = queue.dead_letters("orders")

    assert (letter.payload, letter.body) == (b"", b"body")


def test_a_letter_is_not_delivered(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    anna.end(bury, anna.take(), "{}")

    assert anna.take() == []
    assert queue.count_of() == {"dead": 1}


def test_a_letter_lets_its_sequence_go_on(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", "2", sequence="Item-1")
    anna.end(bury, anna.take(), "{}")

    assert texts(anna.take()) == ["2"]


def test_a_letter_of_a_blocking_queue_stops_its_sequence_and_no_other(queue: QueueCase) -> None:
    # given a queue whose letters block
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send("a1", "a2", sequence="a")
    queue.send("b1", sequence="b")
    queue.send("plain")
    # when the first of one sequence is set aside
    first, *_ = anna.take()
    anna.end(bury, [first], "{}")
    anna.end(give_back, anna.take())
    queue.leave("anna")
    # then only that sequence waits
    assert sorted(texts(queue.worker("berta").take())) == ["b1", "plain"]
    assert queue.count_of()["blocked"] == 2


def test_what_is_published_behind_a_blocking_letter_waits(queue: QueueCase) -> None:
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    anna.end(bury, anna.take(), "{}")

    queue.send("2", sequence="Item-1")

    assert anna.take() == []
    assert queue.count_of() == {"blocked": 2, "dead": 1}


def test_a_redriven_letter_comes_first_in_the_sequence_that_it_blocked(queue: QueueCase) -> None:
    # given a blocked sequence
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    taken = anna.take()
    anna.end(bury, taken, "{}")
    # when its letter is redriven
    assert queue.redrive("orders", taken[0].id)
    # then the sequence goes on from it
    assert texts(anna.take(run=3)) == ["1", "2", "3"]


def test_a_discarded_letter_frees_the_sequence_that_it_blocked(queue: QueueCase) -> None:
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    taken = anna.take()
    anna.end(bury, taken, "{}")

    assert queue.discard("orders", taken[0].id)

    assert texts(anna.take(run=3)) == ["2", "3"]


def test_a_redriven_letter_comes_last_in_a_sequence_that_went_on(queue: QueueCase) -> None:
    # given a sequence that went on without its first, and is held
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"123", sequence="Item-1")
    dead = anna.take()
    anna.end(bury, dead, "{}")
    held = anna.take()
    # when the letter is redriven
    assert queue.redrive("orders", dead[0].id)
    # then it waits behind the others
    assert berta.take() == []
    anna.end(ack, held)
    assert texts(berta.take(run=3)) == ["3", "1"]


def test_a_redriven_letter_of_a_finished_sequence_starts_it_anew(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    dead = anna.take()
    anna.end(bury, dead, "{}")

    queue.redrive("orders", dead[0].id)

    anna.end(ack, anna.take())
    assert leftovers(queue.client) == []


def test_a_redriven_letter_has_a_fresh_count_of_tries(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    anna.end(requeue, anna.take())
    taken = anna.take()
    anna.end(bury, taken, "{}")

    queue.redrive("orders", taken[0].id)

    assert [one.tries for one in anna.take()] == [0]


@pytest.mark.parametrize("deed", ["redrive", "discard"])
def test_a_letter_can_be_redriven_or_discarded_once(queue: QueueCase, deed: str) -> None:
    anna = queue.worker()
    queue.send("1")
    taken = anna.take()
    anna.end(bury, taken, "{}")

    outcomes = [getattr(queue, deed)("orders", taken[0].id) for _ in range(2)]

    assert outcomes == [True, False]


@pytest.mark.parametrize("deed", ["redrive", "discard"])
def test_a_message_that_is_no_letter_is_left_alone(queue: QueueCase, deed: str) -> None:
    queue.send("1")
    held = queue.send("2")
    anna = queue.worker()
    anna.take(1)

    assert not getattr(queue, deed)("orders", held)
    assert not getattr(queue, deed)("orders", held - 1)
    assert not getattr(queue, deed)("stock", held)


def test_a_discarded_letter_leaves_nothing(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send_shared("body", "orders", sequence="Item-1")
    anna.end(requeue, anna.take())
    taken = anna.take()
    anna.end(bury, taken, "{}")

    queue.discard("orders", taken[0].id)

    assert leftovers(queue.client) == []


def test_several_letters_of_a_sequence_come_back_in_the_order_of_their_redrive(
    queue: QueueCase,
) -> None:
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    dead = anna.take(run=3)
    anna.end(bury, dead, "{}")

    for one in (dead[1], dead[0], dead[2]):
        queue.redrive("orders", one.id)

    assert texts(anna.take(run=3)) == ["2", "1", "3"]


def test_a_block_can_be_set_and_lifted(queue: QueueCase) -> None:
    # given a sequence that was blocked while its queue's letters did block
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send("1", "2", sequence="Item-1")
    first = anna.take()
    anna.end(bury, first, "{}")
    # when they no longer do
    queue.letters.set_policy("orders", None)
    # then it stays blocked until somebody decides about its letter
    assert anna.take() == []
    queue.discard("orders", first[0].id)
    anna.end(bury, anna.take(), "{}")
    assert queue.count_of() == {"dead": 1}


def test_a_letter_without_a_sequence_blocks_nothing(queue: QueueCase) -> None:
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send("1", "2")

    anna.end(bury, anna.take(1), "{}")

    assert texts(anna.take()) == ["2"]


def test_a_redrive_after_a_delay_brings_the_payload_of_the_delay(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send_shared("body", "orders", "stock")
    anna.end(later, anna.take(), 1, "second")
    queue.make_due()
    taken = anna.take()
    anna.end(bury, taken, "{}")

    queue.redrive("orders", taken[0].id)

    assert texts(anna.take()) == ["second"]
