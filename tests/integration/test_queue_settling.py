"""A delivery ends once, by whoever holds it; what goes back returns to its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cqrs_celery.queue.values import Settlement, ack, bury, give_back, later, requeue
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def put_off(id: int, fence: int) -> Settlement:
    """Deliver it again in a minute."""
    return later(id, fence, 60_000)


def set_aside(id: int, fence: int) -> Settlement:
    """Make it a dead letter."""
    return bury(id, fence, "{}")


#: Every way to end a delivery, as a function of its id and fence.
WAYS: dict[str, Callable[[int, int], Settlement]] = {
    way.__name__: way for way in (ack, give_back, requeue, put_off, set_aside)
}


def test_an_acknowledged_message_leaves_nothing(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")

    answer = anna.end(ack, anna.take())

    assert answer.refused == ()
    assert anna.take() == []
    assert leftovers(queue.client) == []


def test_one_round_trip_settles_and_takes(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", "2")
    (first,) = anna.take(1)

    answer = anna.exchange(ack(first.id, first.fence), count=1)

    assert texts(answer.taken) == ["2"]


def test_what_is_given_back_in_an_exchange_may_come_again_in_it(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    (first,) = anna.take(1)

    answer = anna.exchange(give_back(first.id, first.fence), count=1)

    assert texts(answer.taken) == ["1"]
    assert answer.taken[0].fence > first.fence


@pytest.mark.parametrize("way", WAYS)
def test_a_second_settlement_of_a_delivery_is_refused(queue: QueueCase, way: str) -> None:
    anna = queue.worker()
    queue.send("1")
    (taken,) = anna.take()

    first = anna.settle(ack(taken.id, taken.fence))
    second = anna.settle(WAYS[way](taken.id, taken.fence))

    assert first.refused == ()
    assert second.refused == (taken.id,)
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("way", WAYS)
def test_of_two_settlements_in_one_batch_the_first_counts(queue: QueueCase, way: str) -> None:
    anna = queue.worker()
    queue.send("1")
    (taken,) = anna.take()

    answer = anna.settle(ack(taken.id, taken.fence), WAYS[way](taken.id, taken.fence))

    assert answer.refused == (taken.id,)
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("way", WAYS)
def test_nobody_settles_what_another_holds(queue: QueueCase, way: str) -> None:
    # given a message in Anna's hands
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send("1")
    (taken,) = anna.take()
    # when Berta settles it
    answer = berta.settle(WAYS[way](taken.id, taken.fence))
    # then nothing happened, and Anna can
    assert answer.refused == (taken.id,)
    assert anna.settle(ack(taken.id, taken.fence)).refused == ()


@pytest.mark.parametrize("way", WAYS)
def test_a_settlement_of_an_earlier_delivery_of_the_same_message_is_refused(
    queue: QueueCase, way: str
) -> None:
    # given a message that its worker gave back and took again
    anna = queue.worker()
    queue.send("1")
    (first,) = anna.take()
    anna.end(give_back, [first])
    (second,) = anna.take()
    # when the first delivery is settled
    answer = anna.settle(WAYS[way](first.id, first.fence))
    # then only the fence tells them apart, and it counts nothing
    assert (first.id, answer.refused) == (second.id, (first.id,))
    assert anna.settle(ack(second.id, second.fence)).refused == ()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_settlement_of_an_earlier_delivery_counts_nothing_beside_one_of_the_present(
    queue: QueueCase, way: str, is_first: bool
) -> None:
    # given a message that its worker gave back and took again
    anna = queue.worker()
    queue.send("1")
    (first,) = anna.take()
    anna.end(give_back, [first])
    (second,) = anna.take()
    # when both deliveries are settled at once, in any order
    ends = [WAYS[way](first.id, first.fence), bury(second.id, second.fence, "{}")]
    answer = anna.settle(*(ends if is_first else reversed(ends)))
    # then the present one counts
    assert answer.refused == (first.id,)
    assert [letter.id for letter in queue.dead_letters()] == [second.id]


def test_an_unknown_id_is_refused_and_the_others_of_the_batch_count(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    (taken,) = anna.take()

    answer = anna.settle(ack(99, 1), ack(taken.id, taken.fence), ack(98, 1))

    assert answer.refused == (99, 98)
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("how", [give_back, requeue])
def test_what_goes_back_stands_before_younger_messages(queue: QueueCase, how: object) -> None:
    # given two of four in flight
    anna = queue.worker()
    queue.send(*"1234")
    taken = anna.take(2)
    # when they go back, the later one first
    anna.end(how, reversed(taken))
    # then all come in their old order
    assert texts(anna.take()) == ["1", "2", "3", "4"]


def test_what_goes_back_stands_behind_older_messages(queue: QueueCase) -> None:
    # given three in the hands of two
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send(*"1234")
    ones, others = anna.take(1), berta.take(2)
    # when the younger go back first
    berta.end(give_back, others)
    anna.end(give_back, ones)
    # then all come in their old order
    assert texts(anna.take()) == ["1", "2", "3", "4"]


def test_what_goes_back_stands_before_the_first_younger_one_and_moves_no_other(
    queue: QueueCase,
) -> None:
    # given an old message behind a young one, since it was a dead letter
    anna = queue.worker()
    queue.send("1", "2", "3")
    first, second = anna.take(2)
    anna.end(bury, [first], "{}")
    queue.redrive("orders", first.id)
    # when one of an age between them goes back
    anna.end(give_back, [second])
    # then it stands before the younger one, and the old one keeps the place that it was given
    assert texts(anna.take(10)) == ["2", "3", "1"]


def test_alternating_messages_of_two_workers_return_in_order(queue: QueueCase) -> None:
    # given two workers that hold every other of 500 messages
    anna, berta = queue.worker("anna"), queue.worker("berta")
    queue.send_many(500)
    held: dict[str, list] = {"anna": [], "berta": []}
    for n in range(500):
        worker = (anna, berta)[n % 2]
        held[worker.name] += worker.take(1)
    # when one returns all, then the other
    anna.end(give_back, held["anna"])
    berta.end(give_back, held["berta"])
    # then they stand in line as they were published
    assert texts(anna.take(500)) == [str(n) for n in range(500)]


def test_what_goes_back_keeps_its_priority(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("patient", priority=9)
    queue.send("urgent")
    anna.end(give_back, anna.take())

    assert texts(anna.take()) == ["urgent", "patient"]


def test_a_requeue_counts_a_delivery_and_a_give_back_does_not(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1")
    tries = []
    for how in (give_back, requeue, give_back, requeue, requeue):
        taken = anna.take()
        tries.append(taken[0].tries)
        anna.end(how, taken)

    assert [*tries, anna.take()[0].tries] == [0, 0, 1, 1, 2, 3]


def test_sequences_given_back_together_return_in_their_order(queue: QueueCase) -> None:
    # given ten sequences in one worker's hands
    anna = queue.worker()
    for n in range(10):
        queue.send(str(n), sequence=f"Item-{n}")
    taken = anna.take()
    # when it gives them back, in any order
    anna.end(give_back, [*taken[5:], *taken[:5]])
    # then they stand in line as they did
    assert texts(anna.take()) == [str(n) for n in range(10)]


def test_sequences_acknowledged_together_line_up_in_that_order(queue: QueueCase) -> None:
    anna = queue.worker()
    for n in range(10):
        queue.send("first", str(n), sequence=f"Item-{n}")

    anna.end(ack, anna.take())

    assert texts(anna.take()) == [str(n) for n in range(10)]


def test_a_consumer_that_is_unknown_settles_nothing(queue: QueueCase) -> None:
    answer = queue.settle_and_take("stranger", [ack(1, 1)])

    assert not answer.is_known
    assert answer.refused == (1,)


def test_settling_nothing_and_taking_nothing_says_whether_the_lease_holds(queue: QueueCase) -> None:
    queue.worker("anna")

    assert queue.settle_and_take("anna").is_known
    assert not queue.settle_and_take("berta").is_known


def test_a_thousand_settlements_of_all_kinds_in_one_batch(queue: QueueCase) -> None:
    # given a thousand messages in flight
    anna = queue.worker()
    queue.send_many(1_000)
    ways = list(WAYS.values())
    settlements: list[Settlement] = [
        ways[n % len(ways)](one.id, one.fence) for n, one in enumerate(anna.take(1_000))
    ]
    # when they end in every way at once
    answer = anna.settle(*settlements)
    # then each is where it should be
    assert answer.refused == ()
    assert queue.count_of() == {"ready": 400, "delayed": 200, "dead": 200}
