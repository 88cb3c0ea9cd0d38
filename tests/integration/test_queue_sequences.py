"""A sequence is in one pair of hands at a time, and comes out in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import ack, bury, give_back, later, requeue
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_the_next_of_a_sequence_waits_for_the_first(queue: QueueCase) -> None:
    # given the first of a sequence in flight
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send("1", "2", sequence="Item-1")
    first = anna.take()
    # when another worker asks before and after it is done
    before = berta.take()
    anna.end(ack, first)
    after = berta.take()
    # then the second comes after only
    assert [texts(taken) for taken in (first, before, after)] == [["1"], [], ["2"]]


def test_different_sequences_run_side_by_side(queue: QueueCase) -> None:
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send("a1", "a2", sequence="a")
    queue.send("b1", "b2", sequence="b")

    assert texts(anna.take()) == ["a1", "b1"]
    assert berta.take() == []


def test_the_same_name_in_two_queues_is_two_sequences(queue: QueueCase) -> None:
    anna, berta = queue.worker("anna", "orders"), queue.worker("berta", "stock")
    queue.send_shared("1", "orders", "stock", sequence="Item-1")

    assert (texts(anna.take()), texts(berta.take())) == (["1"], ["1"])


def test_a_run_brings_the_next_ones_of_a_sequence_along(queue: QueueCase) -> None:
    queue.send(*"12345", sequence="Item-1")

    assert texts(queue.worker().take(1, run=3)) == ["1", "2", "3"]


def test_a_message_published_while_its_sequence_is_held_waits(queue: QueueCase) -> None:
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send("1", sequence="Item-1")
    taken = anna.take(run=10)
    queue.send("2", sequence="Item-1")

    assert berta.take() == []
    anna.end(ack, taken)
    assert texts(berta.take()) == ["2"]


def test_a_sequence_stays_held_until_its_whole_run_is_settled(queue: QueueCase) -> None:
    # given a run of two of three
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"123", sequence="Item-1")
    first, second = anna.take(run=2)
    # when one after the other is done
    anna.end(ack, [first])
    between = berta.take()
    anna.end(ack, [second])
    # then the sequence is free after the last
    assert between == []
    assert texts(berta.take()) == ["3"]


def test_a_run_may_be_acknowledged_in_any_order(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send(*"1234", sequence="Item-1")
    taken = anna.take(run=3)

    answer = anna.end(ack, [taken[1], taken[2], taken[0]])

    assert answer.refused == ()
    assert texts(anna.take()) == ["4"]


@pytest.mark.parametrize("how", [give_back, requeue])
def test_a_first_message_that_goes_back_takes_its_run_with_it(
    queue: QueueCase, how: object
) -> None:
    # given a run of three of four
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"1234", sequence="Item-1")
    taken = anna.take(run=3)
    # when the first goes back
    answer = anna.end(how, taken[:1])
    # then so do the others, and settling them counts nothing
    assert answer.revoked == (taken[1].id, taken[2].id)
    assert anna.end(ack, taken[1:]).refused == answer.revoked
    assert texts(berta.take(run=9)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("how", [give_back, requeue])
def test_a_middle_message_that_goes_back_leaves_what_is_ahead_of_it(
    queue: QueueCase, how: object
) -> None:
    # given a run of four
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"1234", sequence="Item-1")
    taken = anna.take(run=4)
    # when the third goes back
    answer = anna.end(how, [taken[2]])
    # then the fourth goes with it, and the first two are still to be settled
    assert answer.revoked == (taken[3].id,)
    assert berta.take() == []
    assert anna.end(ack, taken[:2]).refused == ()
    assert texts(berta.take(run=4)) == ["3", "4"]


@pytest.mark.parametrize("is_ack_first", [True, False])
def test_a_delay_behind_an_acknowledged_message_holds_the_sequence(
    queue: QueueCase, is_ack_first: bool
) -> None:
    # given a run of three
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    first, second, _ = anna.take(run=3)
    # when the first is done and the second is to come later, in either order
    both = [ack(first.id, first.fence), later(second.id, second.fence, 60_000)]
    anna.settle(*(both if is_ack_first else both[::-1]))
    # then the sequence waits
    assert anna.take() == []
    assert queue.count_of() == {"retrying": 2}
    queue.make_due()
    assert texts(anna.take(run=3)) == ["2", "3"]


@pytest.mark.parametrize("is_ack_first", [True, False])
def test_a_letter_behind_an_acknowledged_message_blocks_the_sequence(
    queue: QueueCase, is_ack_first: bool
) -> None:
    # given a run of three in a queue whose letters block
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    first, second, _ = anna.take(run=3)
    # when the first is done and the second is dead, in either order
    both = [ack(first.id, first.fence), bury(second.id, second.fence, "{}")]
    anna.settle(*(both if is_ack_first else both[::-1]))
    # then the sequence is blocked
    assert anna.take() == []
    assert queue.count_of() == {"blocked": 2, "dead": 1}


def test_a_delay_while_one_ahead_is_still_held_only_puts_back(queue: QueueCase) -> None:
    # given a run of two
    anna = queue.worker()
    queue.send("1", "2", sequence="Item-1")
    first, second = anna.take(run=2)
    # when the second is to come later, and only then the first is done
    anna.settle(later(second.id, second.fence, 60_000))
    anna.end(ack, [first])
    # then the second comes at once: its time was never asked for at the head
    assert texts(anna.take()) == ["2"]


def test_of_several_that_go_back_the_first_of_the_sequence_decides(queue: QueueCase) -> None:
    # given a run of three
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    first, second, third = anna.take(run=3)
    # when the last two go back one way, the first another
    answer = anna.settle(
        later(third.id, third.fence, 60_000),
        requeue(second.id, second.fence),
        later(first.id, first.fence, 60_000),
    )
    # then the first holds all of them
    assert answer.refused == ()
    assert queue.count_of() == {"retrying": 3}


def test_a_worker_that_dies_with_a_run_returns_it_in_order(queue: QueueCase) -> None:
    # given a run of three of four, the first of it done
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"1234", sequence="Item-1")
    taken = anna.take(run=3)
    anna.end(ack, taken[:1])
    # when its worker dies
    queue.end_lease("anna")
    queue.recover()
    # then the next one gets the rest, and only the one that may have run counts a delivery
    again = berta.take(run=3)
    assert [(one.payload, one.tries) for one in again] == [(b"2", 1), (b"3", 0), (b"4", 0)]


def test_a_sequence_has_one_place_in_line_however_long_it_is(queue: QueueCase) -> None:
    queue.send_many(100, sequence="Item-1")

    assert queue.count_of() == {"ready": 1, "in_sequences": 100}


def test_a_finished_sequence_leaves_nothing(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    while taken := anna.take(run=2):
        anna.end(ack, taken)

    assert leftovers(queue.client) == []


@pytest.mark.parametrize(
    "sequence",
    [
        "a|b",
        "a\x1fb",
        "a\nb",
        "=a",
        "{a",
        "é☃",
        "a\0b",
        "@1",
        " ",
        "%d",
        "17",
        "h0|1|anna",
        "x" * 2_000,
    ],
)
@pytest.mark.parametrize("name", ["or|ders", "or\nders", "=orders", "{orders", "é☃", "17", "a b"])
def test_names_may_hold_any_character(queue: QueueCase, name: str, sequence: str) -> None:
    # given a queue and a sequence with odd names
    queue.block_on_dead_letter(name)
    anna = queue.worker("an|na", name)
    queue.send(*"123", to=name, sequence=sequence)
    # when its first message is delayed, dead, redriven, recovered
    anna.end(later, anna.take(run=2)[:1], 60_000)
    queue.make_due()
    (first,) = anna.take()
    anna.end(bury, [first], "{}")
    (letter,) = queue.dead_letters(name)
    assert queue.redrive(name, first.id)
    assert texts(anna.take(run=3)) == ["1", "2", "3"]
    queue.end_lease("an|na")
    queue.recover()
    # then it is still the first of its sequence in its queue
    taken = queue.worker("an|na", name).take(run=3)
    assert texts(taken) == ["1", "2", "3"]
    assert {(one.queue, one.sequence) for one in taken} == {(name, sequence)}
    assert (letter.queue, letter.sequence) == (name, sequence)
    anna.end(ack, taken)
    assert leftovers(queue.client) == []
