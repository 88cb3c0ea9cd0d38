"""A lease is kept by beats; what a dead worker held returns to its place, once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Recovered, ack, bury, give_back, later, requeue
from tests.queues import LEASE_MS, QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_a_dead_workers_messages_return_to_their_places(queue: QueueCase) -> None:
    # given the first two of three in the hands of a worker
    queue.send(*"123")
    queue.worker("anna").take(2)
    # when its lease ends
    queue.end_lease("anna")
    assert queue.recover() == [Recovered("anna", 2, 0)]
    # then the next one gets all in order, and those two count a delivery
    taken = queue.worker("berta").take()
    assert [(one.payload, one.tries) for one in taken] == [(b"1", 1), (b"2", 1), (b"3", 0)]


def test_a_consumer_is_recovered_once(queue: QueueCase) -> None:
    queue.send("1")
    queue.worker("anna").take()
    queue.end_lease("anna")

    assert len(queue.recover()) == 1
    assert queue.recover() == []


def test_a_living_consumer_is_not_recovered(queue: QueueCase) -> None:
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()

    assert queue.recover() == []
    assert anna.end(ack, taken).refused == ()


def test_a_beat_renews_a_lease_by_the_servers_clock(queue: QueueCase) -> None:
    queue.worker("anna")

    beat = queue.beat("anna", 5_000)

    assert beat.is_held
    assert queue.redis.zscore(queue.key("consumers"), "anna") == beat.now_ms + 5_000


def test_a_late_beat_before_the_recovery_keeps_everything(queue: QueueCase) -> None:
    # given a worker whose lease has ended
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()
    queue.end_lease("anna")
    # when it beats before anybody recovers
    assert queue.beat("anna", LEASE_MS).is_held
    # then it keeps what it holds
    assert queue.recover() == []
    assert anna.end(ack, taken).refused == ()


def test_a_beat_after_the_recovery_says_that_the_lease_is_lost(queue: QueueCase) -> None:
    queue.worker("anna")
    queue.end_lease("anna")
    queue.recover()

    assert not queue.beat("anna", LEASE_MS).is_held
    assert not queue.settle_and_take("anna").is_known


def test_a_beat_says_when_the_first_of_all_leases_ends(queue: QueueCase) -> None:
    for name in ("anna", "berta", "clara"):
        queue.worker(name)
    assert queue.beat("anna", LEASE_MS).first_end_ms > queue.beat("anna", LEASE_MS).now_ms
    queue.redis.zadd(queue.key("consumers"), {"berta": 7, "clara": 9})

    assert queue.beat("anna", LEASE_MS).first_end_ms == 7


def test_a_beat_of_a_stranger_registers_nobody(queue: QueueCase) -> None:
    assert not queue.beat("stranger", LEASE_MS).is_held
    assert queue.redis.keys() == []


def test_an_ack_after_the_recovery_counts_nothing(queue: QueueCase) -> None:
    # given a worker that was frozen, recovered, and goes on unaware
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()
    queue.end_lease("anna")
    queue.recover()
    again = queue.worker("berta").take()
    # when it acknowledges what it did
    answer = anna.end(ack, taken)
    # then that is refused, and the other's delivery stands
    assert not answer.is_known
    assert answer.refused == (taken[0].id,)
    assert queue.worker("berta").end(ack, again).refused == ()


def test_a_recovered_worker_that_registers_again_holds_nothing(queue: QueueCase) -> None:
    queue.send("1")
    taken = queue.worker("anna").take()
    queue.end_lease("anna")
    queue.recover()

    anna = queue.worker("anna")

    assert anna.end(ack, taken).refused == (taken[0].id,)
    assert texts(anna.take()) == ["1"]


def test_all_dead_consumers_are_recovered_in_one_turn(queue: QueueCase) -> None:
    names = [f"worker-{n:02}" for n in range(25)]
    queue.send(*names)
    for name in names:
        queue.worker(name).take(1)
    queue.end_lease(*names)

    assert [len(queue.recover()) for _ in range(2)] == [25, 0]
    assert texts(queue.worker("anna").take(25)) == names


def test_a_message_delivered_too_often_becomes_a_letter(queue: QueueCase) -> None:
    # given a message that kills its workers
    queue.send("poison")
    recovered = []
    for name in ("anna", "berta", "clara"):
        queue.worker(name).take()
        queue.end_lease(name)
        # when each is recovered
        recovered += queue.recover(most_tries=3)
    # then the third loss is the last
    assert [one.dead_letters for one in recovered] == [0, 0, 1]
    (letter,) = queue.dead_letters("orders")
    assert letter.tries == 3
    assert "delivered too often" in letter.why


def test_only_the_first_of_a_run_counts_a_delivery(queue: QueueCase) -> None:
    # given a run whose first message kills its worker
    queue.send("poison", "2", "3", sequence="Item-1")
    queue.worker("anna").take(run=3)
    queue.end_lease("anna")
    # when it is recovered with a limit of one
    assert queue.recover(most_tries=1) == [Recovered("anna", 3, 1)]
    # then the others go on
    taken = queue.worker("berta").take(run=3)
    assert [(one.payload, one.tries) for one in taken] == [(b"2", 0), (b"3", 0)]


def test_a_worn_out_message_of_a_blocking_queue_stops_its_sequence(queue: QueueCase) -> None:
    # given a run whose first message kills its worker, in a queue whose letters block
    queue.block_on_dead_letter("orders")
    queue.send("poison", "2", "3", sequence="Item-1")
    queue.worker("anna").take(run=3)
    queue.end_lease("anna")
    # when it is recovered with a limit of one
    queue.recover(most_tries=1)
    # then the others wait behind it until somebody decides
    berta = queue.worker("berta")
    assert berta.take() == []
    assert queue.count_of() == {"blocked": 3, "dead": 1}
    (letter,) = queue.dead_letters("orders")
    queue.redrive("orders", letter.id)
    assert texts(berta.take(run=3)) == ["poison", "2", "3"]


def test_a_requeue_counts_with_the_losses_of_workers(queue: QueueCase) -> None:
    queue.send("1")
    anna = queue.worker("anna")
    anna.end(requeue, anna.take())
    anna.take()
    queue.end_lease("anna")

    assert queue.recover(most_tries=2) == [Recovered("anna", 1, 1)]


def test_a_done_message_is_not_counted_when_its_worker_dies_later(queue: QueueCase) -> None:
    queue.send("1", "2")
    anna = queue.worker("anna")
    first, _ = anna.take()
    anna.end(ack, [first])
    queue.end_lease("anna")

    assert queue.recover() == [Recovered("anna", 1, 0)]


def test_a_worker_that_leaves_gives_back_everything_uncounted(queue: QueueCase) -> None:
    # given a worker that holds plain messages and a run
    queue.send("1", "2")
    queue.send("a", "b", sequence="Item-1")
    queue.worker("anna").take(run=2)
    # when it leaves
    assert queue.leave("anna") == [Recovered("anna", 4, 0)]
    # then the next one gets all of it, untried
    taken = queue.worker("berta").take(run=2)
    assert sorted(texts(taken)) == ["1", "2", "a", "b"]
    assert {one.tries for one in taken} == {0}


def test_a_stranger_may_leave(queue: QueueCase) -> None:
    assert queue.leave("stranger") == [Recovered("stranger", 0, 0)]


def test_a_consumer_that_left_leaves_no_trace(queue: QueueCase) -> None:
    queue.worker("anna", "orders", "stock").take()

    queue.leave("anna")

    assert queue.redis.keys() == []


def test_a_consumer_that_was_recovered_leaves_no_trace(queue: QueueCase) -> None:
    queue.worker("anna", "orders", "stock").take()
    queue.end_lease("anna")

    queue.recover()

    assert queue.redis.keys() == []


def test_sequences_of_a_dead_worker_return_in_their_order(queue: QueueCase) -> None:
    for n in range(10):
        queue.send(str(n), sequence=f"Item-{n}")
    queue.worker("anna").take()
    queue.end_lease("anna")
    queue.recover()

    assert texts(queue.worker("berta").take()) == [str(n) for n in range(10)]


def test_delayed_and_dead_messages_are_no_matter_of_their_last_worker(queue: QueueCase) -> None:
    queue.send("1", "2")
    anna = queue.worker("anna")
    first, second = anna.take()
    anna.settle(later(first.id, first.fence, 60_000), bury(second.id, second.fence, "{}"))
    queue.end_lease("anna")

    assert queue.recover() == [Recovered("anna", 0, 0)]
    assert queue.count_of() == {"delayed": 1, "dead": 1}


def test_ten_thousand_messages_of_a_dead_worker_return(queue: QueueCase) -> None:
    # given a worker that took more than Lua's stack holds
    queue.send_many(10_000)
    queue.worker("anna").take(10_000)
    queue.end_lease("anna")
    # when it is recovered
    queue.recover()
    # then all stand in line as they were published
    assert texts(queue.worker("berta").take(10_000)) == [str(n) for n in range(10_000)]


def test_the_messages_of_two_dead_workers_return_in_order(queue: QueueCase) -> None:
    queue.send(*"1234")
    anna, berta = queue.worker("anna"), queue.worker("berta")
    for worker in (anna, berta, anna, berta):
        worker.take(1)
    queue.end_lease("anna", "berta")

    queue.recover()

    assert texts(queue.worker("clara").take()) == ["1", "2", "3", "4"]


def test_work_after_a_recovery_leaves_nothing(queue: QueueCase) -> None:
    queue.send("1", sequence="Item-1")
    queue.send("2")
    queue.worker("anna").take()
    queue.end_lease("anna")
    queue.recover()
    berta = queue.worker("berta")
    berta.end(give_back, berta.take())
    berta.end(ack, berta.take())

    assert leftovers(queue.client) == []


def tries_after(queue: QueueCase) -> dict[str, int]:
    """Let the consumers' leases end; return each message's count as the next one gets it."""
    queue.end_lease("anna")
    queue.recover(most_tries=10)
    return {one.payload.decode(): one.tries for one in queue.worker("berta").take(100, run=100)}


@pytest.mark.parametrize(
    ("slots", "counted"), [(1, "1"), (2, "12"), (4, "1234"), (9, "12345"), (0, "12345")]
)
def test_only_as_many_count_a_delivery_as_the_dead_worker_ran_at_once(
    queue: QueueCase, slots: int, counted: str
) -> None:
    # given a worker that holds five, of which the oldest are running
    queue.send(*"12345")
    queue.worker("anna", slots=slots).take(5)
    # when it dies
    tries = tries_after(queue)
    # then those alone may have killed it; all of them where it is not known how many it runs
    assert tries == {one: int(one in counted) for one in "12345"}


def test_the_oldest_delivery_counts_and_not_the_oldest_message(queue: QueueCase) -> None:
    # given a worker that got an older message after a younger one
    anna, berta = queue.worker("anna", slots=1), queue.worker("berta")
    queue.send("older", "younger")
    [older] = berta.take(1)
    anna.take(1)
    berta.end(give_back, [older])
    anna.take(1)
    # when it dies
    # then what it had first counts
    assert tries_after(queue) == {"older": 0, "younger": 1}


def test_what_has_been_settled_leaves_its_slot_to_the_next(queue: QueueCase) -> None:
    queue.send(*"123")
    anna = queue.worker("anna", slots=1)
    first, *_ = anna.take(3)
    anna.end(ack, [first])

    assert tries_after(queue) == {"2": 1, "3": 0}


def test_a_deadly_message_is_set_aside_and_nothing_with_it(queue: QueueCase) -> None:
    # given a message that kills every solo worker, and four that are prefetched behind it
    queue.send("deadly", *"1234")
    # when ten workers have died of it
    for number in range(10):
        name = f"anna-{number}"
        queue.worker(name, slots=1).take(5)
        queue.end_lease(name)
        queue.recover(most_tries=10)
    # then it is a dead letter, and the others are as good as new
    assert [letter.payload for letter in queue.dead_letters()] == [b"deadly"]
    rest = queue.worker("berta").take(5)
    assert [(one.payload, one.tries) for one in rest] == [
        (b"1", 0),
        (b"2", 0),
        (b"3", 0),
        (b"4", 0),
    ]


def test_behind_another_of_its_sequence_a_message_counts_only_where_all_run(
    queue: QueueCase,
) -> None:
    # given a worker of one slot whose first of a sequence is done, and a later take
    queue.send("a1", "a2", sequence="A")
    anna = queue.worker("anna", slots=1)
    first, _ = anna.take(1, run=2)
    queue.send("b")
    anna.take(1)
    anna.end(ack, [first])
    # when it dies
    # then nobody knows which of the two was running, and neither counts
    assert tries_after(queue) == {"a2": 0, "b": 0}


def test_alone_the_next_of_a_sequence_counts(queue: QueueCase) -> None:
    queue.send("a1", "a2", "a3", sequence="A")
    anna = queue.worker("anna", slots=1)
    first, *_ = anna.take(1, run=3)
    anna.end(ack, [first])

    assert tries_after(queue) == {"a2": 1, "a3": 0}


def test_of_a_batch_all_count_and_what_is_prefetched_behind_it_does_not(queue: QueueCase) -> None:
    # given a worker of one slot with a batch of three, and a plain message behind it
    queue.send(*"123", to="many")
    queue.send("plain")
    anna = queue.worker("anna", "many", "orders", slots=1, batches={"many": 3})
    taken = anna.take(2, queues=["many", "orders"], batches={"many": 3})
    assert len(taken) == 4
    # when it dies
    queue.end_lease("anna")
    queue.recover(most_tries=10)
    # then those of the batch are handled alone from now on
    again = queue.worker("berta", "many", "orders").take(9)
    assert {one.payload.decode(): one.tries for one in again} == {
        "1": 1, "2": 1, "3": 1, "plain": 0,
    }  # fmt: skip


def test_a_batch_that_was_prefetched_counts_nothing(queue: QueueCase) -> None:
    queue.send("plain")
    queue.send(*"123", to="many")
    anna = queue.worker("anna", "orders", "many", slots=1, batches={"many": 3})
    anna.take(2, queues=["orders", "many"], batches={"many": 3})
    queue.end_lease("anna")
    queue.recover(most_tries=10)

    again = queue.worker("berta", "many", "orders").take(9)

    assert {one.payload.decode(): one.tries for one in again} == {
        "1": 0, "2": 0, "3": 0, "plain": 1,
    }  # fmt: skip


@pytest.mark.parametrize("about", ["", "[]", "{", '"x"', '{"slots": "x", "batches": 3}'])
def test_what_is_known_of_a_consumer_may_be_anything(queue: QueueCase, about: str) -> None:
    # given a consumer of which nothing is known that can be read
    queue.send(*"12")
    queue.worker("anna").take(2)
    queue.redis.hset(queue.key("about"), "anna", about)
    # when it is recovered, then all that it held counts
    assert tries_after(queue) == {"1": 1, "2": 1}


def test_a_consumer_that_has_gone_leaves_nothing_of_what_was_known(queue: QueueCase) -> None:
    queue.worker("anna", slots=1)
    queue.worker("berta", slots=1)
    queue.leave("anna")
    queue.end_lease("berta")
    queue.recover()

    assert not queue.redis.exists(queue.key("about"))


def test_what_a_recovered_consumer_says_of_itself_leaves_nothing(queue: QueueCase) -> None:
    # given a consumer that was recovered
    queue.worker("anna")
    queue.end_lease("anna")
    queue.recover()
    # when it says what it consumes, since it does not know
    queue.consume("anna", ["orders", "mail"], about={"slots": 1})
    # then nothing of that is kept, until it is registered again
    assert not queue.redis.exists(
        *map(queue.key, ("about", "queues_of:anna", "consuming:orders", "consuming:mail"))
    )
    queue.beat("anna", LEASE_MS, register=True)
    queue.consume("anna", ["orders"], about={"slots": 1})
    assert queue.redis.smembers(queue.key("queues_of:anna")) == {b"orders"}


def test_what_an_older_release_has_left_of_consumers_that_are_gone_is_forgotten(
    queue: QueueCase,
) -> None:
    # given what such a release wrote about consumers after they were recovered, and one that lives
    anna = queue.worker("anna", "orders", about={"slots": 1})
    for n in range(250):
        queue.redis.hset(queue.key("about"), f"gone-{n}", "{}")
        queue.redis.sadd(queue.key(f"queues_of:gone-{n}"), "orders")
        queue.redis.sadd(queue.key("consuming:orders"), f"gone-{n}")
    # when it is looked for
    assert queue.forget_gone() == 250
    # then only the one that lives is left
    assert queue.redis.hkeys(queue.key("about")) == [anna.name.encode()]
    assert queue.redis.smembers(queue.key("consuming:orders")) == {anna.name.encode()}
    assert list(queue.redis.scan_iter(f"{queue.key('queues_of:')}*")) == [
        queue.key(f"queues_of:{anna.name}").encode()
    ]
    assert queue.forget_gone() == 0
