"""Queues take turns, none starves, and nobody gets more than asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from math import ceil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cqrs_celery.queue.reliable_queue import MOST_IN_BATCHES
from cqrs_celery.queue.values import Taken, ack, give_back
from tests.nodes import RedisNode
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


def counts(taken: Iterable[Taken]) -> dict[str, int]:
    return dict(Counter(one.queue for one in taken))


def test_a_batch_counts_as_one_delivery_and_shares_with_single_messages(queue: QueueCase) -> None:
    # given three flooded queues, one of them of a task that takes up to ten at once
    for name in ("batch", "commands", "plain"):
        queue.send_many(100, to=name)
    anna = queue.worker("anna", "batch", "commands", "plain")
    # when six deliveries are taken
    taken = anna.take(6, batches={"batch": 10})
    # then each queue has two of them
    assert counts(taken) == {"batch": 20, "commands": 2, "plain": 2}


def test_a_batch_takes_no_more_than_it_holds(queue: QueueCase) -> None:
    # given a few long sequences, and many messages without one
    for name in "ab":
        queue.send_many(100, to="batch", sequence=name)
    queue.send_many(100, to="batch")
    # when one batch is taken, from the sequences first
    taken = queue.worker("anna", "batch").take(1, batches={"batch": 30})
    # then it is full, and nothing is held that does not fit
    assert len(taken) == 30
    assert counts(taken) == {"batch": 30}


def test_the_runs_of_sequences_fill_what_is_left_of_a_batch(queue: QueueCase) -> None:
    for name in "ab":
        queue.send_many(100, to="batch", sequence=name)

    taken = queue.worker("anna", "batch").take(1, batches={"batch": 30})

    assert len(taken) == 30
    assert {one.sequence for one in taken} == {"a", "b"}
    for name in "ab":
        mine = [int(one.payload) for one in taken if one.sequence == name]
        assert mine == list(range(len(mine)))


def test_what_batches_leave_of_the_take_others_get(queue: QueueCase) -> None:
    queue.send("1", to="batch")
    queue.send_many(100, to="plain")

    taken = queue.worker("anna", "batch", "plain").take(4, batches={"batch": 10})

    assert counts(taken) == {"batch": 1, "plain": 3}


def test_all_batches_together_take_no_more_than_the_server_can_bear(queue: QueueCase) -> None:
    names = ["one", "two", "three"]
    for name in names:
        queue.send_many(2_000, to=name)
    queue.send("1", to="plain")

    taken = queue.worker("anna", *names, "plain").take(
        100, queues=[*names, "plain"], batches=dict.fromkeys(names, 500)
    )

    assert len(taken) == MOST_IN_BATCHES + 1
    assert counts(taken)["plain"] == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    waiting=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    sizes=st.lists(st.sampled_from([1, 1, 2, 7, 100]), min_size=6, max_size=6),
    wanted=st.integers(1, 30),
)
def test_no_queue_with_messages_goes_away_empty_while_another_has_two_deliveries(
    redis_node: RedisNode, waiting: list[int], sizes: list[int], wanted: int
) -> None:
    # given queues with some messages each, some of them for batches
    with redis_node.client() as client:
        client.flushall()
    with opened(redis_node.url) as queue:
        names = [f"queue-{n}" for n in range(len(waiting))]
        size_of = dict(zip(names, sizes, strict=False))
        for name, count in zip(names, waiting, strict=True):
            queue.send_many(count, to=name)
        # when some deliveries are taken
        taken = queue.worker("anna", *names).take(
            wanted, batches={name: size for name, size in size_of.items() if size > 1}
        )
        # then they are shared: nobody gets a second one while another that waits has none
        deliveries = {name: ceil(counts(taken).get(name, 0) / size_of[name]) for name in names}
        left = {name: queue.count(name).ready for name in names}
        assert sum(deliveries.values()) <= wanted
        assert sum(deliveries.values()) == wanted or not any(left.values())
        if any(deliveries[name] == 0 and left[name] for name in names):
            assert max(deliveries.values()) <= 1
