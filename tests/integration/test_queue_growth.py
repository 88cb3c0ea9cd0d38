"""What the queue does costs the same, however much of something else there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cqrs_celery.queue.inspection import QueueInspector
from cqrs_celery.queue.reliable_queue import FORMAT
from cqrs_celery.queue.values import Destination, FullQueue, ack, bury, later
from tests.queues import QueueCase, counts_by_scan, counts_kept, leftovers, opened

MANY = 2_000


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def commands_of(queue: QueueCase, function: Callable[[], Any]) -> Counter[str]:
    """Return how often the server ran each command for a call, those inside of scripts included."""
    function()
    queue.redis.config_resetstat()
    function()
    stats = queue.redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
    own = ("config", "info")
    return Counter({name: n for name, n in calls.items() if not name.startswith(own)})


def open_sequences(queue: QueueCase, count: int, *, length: int = 1) -> None:
    """Begin sequences of a number of messages each in the queue orders."""
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        queue.publish(
            [Destination("orders", str(k), f"Item-{n}") for n in numbers for k in range(length)]
        )


def block_all(queue: QueueCase, count: int) -> None:
    """Make the first message of each of these sequences a dead letter that blocks it."""
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    while count > 0:
        taken = anna.take(500)
        anna.end(bury, taken, "{}")
        count -= len(taken)
    queue.leave("anna")


@pytest.mark.parametrize("is_blocked", [False, True])
def test_counting_a_queue_costs_the_same_however_many_sequences_it_has(
    queue: QueueCase, is_blocked: bool
) -> None:
    # given many sequences, ready or blocked, that were counted before
    open_sequences(queue, MANY, length=2)
    if is_blocked:
        block_all(queue, MANY)
    # when the queue is counted
    commands = commands_of(queue, lambda: queue.count("orders"))
    # then a few commands did it, and the numbers are right
    assert commands.total() < 15, commands
    assert queue.count_of() == (
        {"blocked": 2 * MANY, "dead": MANY} if is_blocked
        else {"ready": MANY, "in_sequences": 2 * MANY}
    )  # fmt: skip


def test_a_publish_with_a_capacity_costs_the_same_however_many_sequences_are_blocked(
    queue: QueueCase,
) -> None:
    # given a queue with many sequences, each behind a dead letter
    queue.subscribe("orders.handle", ["placed"], queue="orders", pieces="<|||>")
    open_sequences(queue, MANY, length=2)
    block_all(queue, MANY)

    def publish(capacity: int = 10 * MANY) -> Any:
        return queue.publish_topic(
            "placed", "x", message_id="m", root_id="r", sequence="Other", capacity=capacity
        )

    # when something is published with a capacity
    commands = commands_of(queue, publish)
    # then a few commands did it, and the capacity is kept to the message
    assert commands.total() < 25, commands
    waiting = MANY + 2
    assert publish(waiting) == FullQueue("orders", waiting)
    assert publish(waiting + 1) == 1


def test_a_look_at_a_queue_costs_the_same_however_many_sequences_it_has(queue: QueueCase) -> None:
    open_sequences(queue, MANY, length=3)
    anna = queue.worker()
    anna.take(10, run=2)
    inspector = QueueInspector(queue)

    commands = commands_of(queue, lambda: inspector.look("orders", inspector.holdings()))
    look = inspector.look("orders", inspector.holdings())

    assert commands.total() < 120, commands
    assert (look.ready, look.in_flight) == (MANY - 10, 20)
    assert look.waiting == 3 * MANY - look.ready - look.in_flight


def test_counts_are_kept_in_every_state_of_a_sequence(queue: QueueCase) -> None:
    # given a sequence that is ready, one held, one retried, and one blocked, each with some behind
    queue.block_on_dead_letter("orders")
    anna = queue.worker()
    open_sequences(queue, 4, length=5)
    held = anna.take(3, run=2)
    retried, blocked = ([one for one in held if one.sequence == f"Item-{n}"] for n in (1, 2))
    anna.end(later, retried[:1], 60_000)
    anna.end(bury, blocked[:1], "{}")
    # when there is more behind each
    open_sequences(queue, 4)
    # then the counts are what the sequences have
    expected = {"b": 5 + 4, "x": 1, "l": 1, "lb": 5, "d": 1, "db": 5}
    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders") == Counter(expected)


def test_what_an_older_release_left_is_counted_once(queue: QueueCase) -> None:
    # given sequences of which nobody kept count
    open_sequences(queue, MANY, length=2)
    queue.redis.delete(queue.key("counts:orders"))
    # when the queue is counted, and counted again
    first = queue.count("orders")
    commands = commands_of(queue, lambda: queue.count("orders"))
    # then both are right, and only the first went through the sequences
    assert first == queue.count("orders")
    assert queue.count_of() == {"ready": MANY, "in_sequences": 2 * MANY}
    assert commands.total() < 15


def test_counts_that_an_older_sender_made_wrong_are_right_after_the_next_recount(
    queue: QueueCase,
) -> None:
    # given counts, and messages that were put behind others without being counted
    open_sequences(queue, 3)
    queue.count("orders")
    for n in range(5):
        message_id = queue.redis.incr(queue.key("id"))
        queue.redis.hset(queue.key("msg"), message_id, f"old {n}")
        queue.redis.lpush(queue.key("seq:orders\x1fItem-1"), message_id)
    assert queue.count_of()["in_sequences"] == 3
    # when upkeep counts anew
    off = queue.recount("orders")
    # then it says what was wrong, and nothing is any more
    assert off == 5
    assert queue.count_of() == {"ready": 3, "in_sequences": 8}
    assert queue.recount("orders") == 0


def test_a_recount_in_slices_is_exact_whatever_happens_meanwhile(queue: QueueCase) -> None:
    # given many sequences whose counts are wrong, and a recount that is under way
    open_sequences(queue, MANY, length=3)
    anna = queue.worker()
    anna.end(ack, anna.take(100, run=2))
    queue.redis.hincrby(queue.key("counts:orders"), "b", 1_000)
    queue.redis.hset(queue.key("counts:orders"), "at", 1)
    slices, off = 0, None
    # when sequences begin, grow, shrink, and end between its slices
    while off is None:
        off = queue.recount("orders", most=100)
        slices += 1
        anna.end(ack, anna.take(7, run=3))
        open_sequences(queue, 20)
        queue.send("new", "newer", sequence=f"New-{slices}")
        anna.take(3, run=2)
    # then what it has found is what there is
    assert slices > 10
    assert off == 1_000
    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")
    queue.leave("anna")
    berta = queue.worker("berta")
    while taken := berta.take(500, run=3):
        berta.end(ack, taken)
    assert leftovers(queue.client) == []


def test_a_purge_in_the_middle_of_a_recount_leaves_counts_that_are_right(queue: QueueCase) -> None:
    open_sequences(queue, MANY, length=3)
    queue.worker().take(5, run=2)
    assert queue.recount("orders", most=100) is None

    queue.purge("orders")
    open_sequences(queue, 10, length=2)
    while queue.recount("orders", most=100) is None:
        pass

    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")


def test_nobody_relies_on_counts_while_a_consumer_of_an_older_release_is_there(
    queue: QueueCase,
) -> None:
    # given counts, and a consumer that does not say of which format it is
    open_sequences(queue, 3)
    queue.count("orders")
    queue.worker("anna")
    queue.redis.hset(queue.key("about"), "old", '{"slots": 1}')
    queue.redis.zadd(queue.key("consumers"), {"old": 2**42})
    # when anna takes up the upkeep, and the old one does something uncounted
    upkeep = queue.take_upkeep("anna", 60_000)
    message_id = queue.redis.incr(queue.key("id"))
    queue.redis.lpush(queue.key("seq:orders\x1fItem-1"), message_id)
    # then the queue is counted by its sequences
    assert upkeep == (True, 1)
    assert queue.count_of() == {"ready": 3, "in_sequences": 4}
    # and a count that began meanwhile is not relied on either
    queue.recount("orders")
    queue.redis.lpush(queue.key("seq:orders\x1fItem-2"), message_id)
    assert queue.count_of() == {"ready": 3, "in_sequences": 5}


def test_counts_are_relied_on_again_when_the_last_old_consumer_has_long_gone(
    queue: QueueCase,
) -> None:
    open_sequences(queue, MANY)
    queue.redis.hset(queue.key("about"), "old", "{}")
    queue.redis.zadd(queue.key("consumers"), {"old": 2**42})
    queue.take_upkeep("anna", 1)
    queue.leave("old")
    queue.redis.decrby(queue.key("old_until"), 1_000)

    commands = commands_of(queue, lambda: queue.count("orders"))

    assert commands.total() < 15


def test_one_consumer_at_a_time_does_the_upkeep(queue: QueueCase) -> None:
    queue.worker("anna")

    answers = [queue.take_upkeep(name, 60_000).is_ours for name in ("anna", "berta", "anna")]

    assert answers == [True, False, False]


def test_the_format_is_raised_once_and_never_lowered(queue: QueueCase) -> None:
    assert queue.read_format() == 1
    assert queue.raise_format() == queue.raise_format() == FORMAT

    queue.redis.set(queue.key("format"), FORMAT + 1)

    assert queue.raise_format() == queue.read_format() == FORMAT + 1


def test_a_deleted_queue_leaves_no_counts(queue: QueueCase) -> None:
    queue.declare("orders")
    open_sequences(queue, 3, length=2)
    queue.count("orders")

    queue.delete("orders")

    assert not queue.redis.exists(queue.key("counts:orders"))


def test_a_consumer_tells_of_many_queues_at_the_cost_of_what_has_changed(queue: QueueCase) -> None:
    names = [f"queue-{n}" for n in range(MANY)]
    queue.worker("anna", *names)

    commands = commands_of(queue, lambda: queue.consume("anna", [*names[1:], "another"]))

    assert commands.total() < 10, commands
    assert queue.redis.smembers(queue.key("consuming:another")) == {b"anna"}
    assert not queue.redis.exists(queue.key("consuming:queue-0"))
    assert queue.redis.scard(queue.key("queues_of:anna")) == MANY
