"""What the queue does costs the same, however much of something else there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cqrs_celery.queue.inspection import QueueInspector
from cqrs_celery.queue.upkeep import FORMAT
from cqrs_celery.queue.values import Destination, FullQueue, Taken, ack, bury, later
from tests.queues import Ears, QueueCase, counts_by_scan, counts_kept, leftovers, opened

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
    # when upkeep counts them
    before = queue.count("orders")
    while queue.upkeep.recount("orders") is None:
        pass
    # then the count stays right, and nobody goes through the sequences any more
    commands = commands_of(queue, lambda: queue.count("orders"))
    assert before == queue.count("orders")
    assert queue.count_of() == {"ready": MANY, "in_sequences": 2 * MANY}
    assert commands.total() < 15


def test_a_count_of_many_sequences_is_kept(queue: QueueCase) -> None:
    open_sequences(queue, MANY, length=2)
    queue.redis.delete(queue.key("counts:orders"))

    commands = commands_of(queue, lambda: queue.count("orders"))

    assert commands.total() < 15


def test_a_look_at_few_changes_nothing(queue: QueueCase) -> None:
    open_sequences(queue, 3, length=2)
    queue.redis.delete(queue.key("counts:orders"))

    queue.count("orders")

    assert not queue.redis.exists(queue.key("counts:orders"))


def test_a_publish_with_a_capacity_counts_once_what_nobody_has_counted(queue: QueueCase) -> None:
    queue.subscribe("orders.handle", ["placed"], queue="orders", pieces="<|||>")
    open_sequences(queue, MANY)
    queue.redis.delete(queue.key("counts:orders"))

    def publish() -> Any:
        return queue.publish_topic(
            "placed", "x", message_id="m", root_id="r", sequence="Item-1", capacity=10 * MANY
        )

    commands = commands_of(queue, publish)

    assert commands.total() < 25
    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")


def test_counts_that_an_older_sender_made_wrong_are_right_after_the_next_recount(
    queue: QueueCase,
) -> None:
    # given counts, and messages that were put behind others without being counted
    open_sequences(queue, 3)
    queue.upkeep.recount("orders")
    for n in range(5):
        message_id = queue.redis.incr(queue.key("id"))
        queue.redis.hset(queue.key("msg"), message_id, f"old {n}")
        queue.redis.lpush(queue.key("seq:orders\x1fItem-1"), message_id)
    assert queue.count_of()["in_sequences"] == 3
    # when upkeep counts anew
    off = queue.upkeep.recount("orders")
    # then it says what was wrong, and nothing is any more
    assert off == 5
    assert queue.count_of() == {"ready": 3, "in_sequences": 8}
    assert queue.upkeep.recount("orders") == 0


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
        off = queue.upkeep.recount("orders", most=100)
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
    assert queue.upkeep.recount("orders", most=100) is None

    queue.purge("orders")
    open_sequences(queue, 10, length=2)
    while queue.upkeep.recount("orders", most=100) is None:
        pass

    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")


def add_old_consumer(queue: QueueCase, about: str = "") -> None:
    """Let a consumer be there that does not say of which format it is."""
    queue.worker("old")
    queue.redis.hdel(queue.key("about"), "old")
    if about:
        queue.redis.hset(queue.key("about"), "old", about)


@pytest.mark.parametrize("about", ["", '{"slots": 1}'])
def test_nobody_relies_on_counts_while_a_consumer_of_an_older_release_is_there(
    queue: QueueCase, about: str
) -> None:
    # given counts, and a consumer that does not say of which format it is
    open_sequences(queue, 3)
    queue.worker("anna")
    add_old_consumer(queue, about)
    # when anna takes up the upkeep, and the old one does something uncounted
    upkeep = queue.upkeep.take("anna", 60_000)
    message_id = queue.redis.incr(queue.key("id"))
    queue.redis.lpush(queue.key("seq:orders\x1fItem-1"), message_id)
    # then the queue is counted by its sequences
    queue.upkeep.recount("orders")
    assert upkeep == (True, 1)
    assert queue.count_of() == {"ready": 3, "in_sequences": 4}
    # and a count that began meanwhile is not relied on either
    queue.upkeep.recount("orders")
    queue.redis.lpush(queue.key("seq:orders\x1fItem-2"), message_id)
    assert queue.count_of() == {"ready": 3, "in_sequences": 5}


def test_counts_are_relied_on_again_when_the_last_old_consumer_has_long_gone(
    queue: QueueCase,
) -> None:
    open_sequences(queue, MANY)
    add_old_consumer(queue)
    assert queue.upkeep.take("anna", 1).old_consumers == 1
    queue.leave("old")
    queue.redis.decrby(queue.key("old_until"), 1_000)
    while queue.upkeep.recount("orders") is None:
        pass

    commands = commands_of(queue, lambda: queue.count("orders"))

    assert commands.total() < 15


def test_a_consumer_that_takes_by_hand_is_not_thought_to_be_old(queue: QueueCase) -> None:
    queue.beat("by hand", 60_000, register=True)

    assert queue.upkeep.take("anna", 60_000) == (True, 0)
    assert not queue.redis.exists(queue.key("old_until"))


def test_one_consumer_at_a_time_does_the_upkeep(queue: QueueCase) -> None:
    queue.worker("anna")

    answers = [queue.upkeep.take(name, 60_000).is_ours for name in ("anna", "berta", "anna")]

    assert answers == [True, False, False]


def test_nothing_is_left_of_a_consumer_that_one_of_an_older_release_recovered(
    queue: QueueCase,
) -> None:
    # given consumers of this release, of which an older one, as far as it knows of them, has
    # forgotten one
    for name in ("anna", "berta"):
        queue.worker(name)
        queue.redis.sadd(queue.key("busy"), name)
    queue.redis.zrem(queue.key("consumers"), "berta")
    queue.redis.hdel(queue.key("about"), "berta")
    # when the upkeep is done
    queue.upkeep.take("anna", 60_000)
    # then nobody counts it any more
    for key in ("callable", "busy"):
        assert queue.redis.smembers(queue.key(key)) == {b"anna"}


def test_the_format_is_raised_once_and_never_lowered(queue: QueueCase) -> None:
    assert queue.upkeep.raise_format() == queue.upkeep.raise_format() == FORMAT
    assert int(queue.redis.get(queue.key("format"))) == FORMAT

    queue.redis.set(queue.key("format"), FORMAT + 1)

    assert queue.upkeep.raise_format() == FORMAT + 1
    assert int(queue.redis.get(queue.key("format"))) == FORMAT + 1


def test_a_deleted_queue_leaves_no_counts(queue: QueueCase) -> None:
    queue.declare("orders")
    open_sequences(queue, 3, length=2)

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


MIB = 2**20

#: Bytes of messages at most in one answer.
CEILING = 16 * MIB


def size_of(taken: list[Taken]) -> int:
    return sum(len(one.payload) + len(one.body) for one in taken)


def large(n: int, mib: int = 3) -> str:
    return f"{n:03}" + "x" * (mib * MIB - 3)


def test_a_take_brings_no_more_bytes_than_a_ceiling_and_the_rest_in_its_order(
    queue: QueueCase,
) -> None:
    # given 12 messages of 3 MiB each, at two priorities
    for n in range(12):
        queue.send(large(n), priority=3 * (n % 2))
    # when they are taken, as many as there are
    anna, takes = queue.worker(), []
    while taken := anna.take(100):
        takes.append(taken)
        anna.end(ack, taken)
    # then no answer was larger than allowed, and each came once, the more urgent first, in order
    assert all(size_of(taken) <= CEILING for taken in takes)
    assert [len(taken) for taken in takes] == [5, 5, 2]
    found = [int(one.payload[:3]) for taken in takes for one in taken]
    assert found == [*range(0, 12, 2), *range(1, 12, 2)]
    assert leftovers(queue.client) == []


def test_a_message_that_is_larger_than_the_ceiling_is_taken_alone(queue: QueueCase) -> None:
    queue.send("small", large(1, mib=17), "small too")
    anna = queue.worker()

    assert [len(anna.take(10)) for _ in range(4)] == [1, 1, 1, 0]


def test_what_of_a_run_does_not_fit_waits_behind_what_is_held(queue: QueueCase) -> None:
    # given two sequences of 5 messages of 3 MiB each
    for n in range(5):
        queue.send(large(n), sequence="a")
        queue.send(large(n), sequence="b")
    # when a consumer takes runs of all of it
    anna, takes = queue.worker(), []
    while taken := anna.take(10, run=10):
        assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")
        takes.append(taken)
        anna.end(ack, taken)
    # then no answer was larger than allowed, and each sequence came in its order
    assert all(size_of(taken) <= CEILING for taken in takes)
    for sequence in "ab":
        numbers = [int(t.payload[:3]) for taken in takes for t in taken if t.sequence == sequence]
        assert numbers == [0, 1, 2, 3, 4]
    assert leftovers(queue.client) == []


def test_sequences_that_do_not_fit_are_ready_for_others(queue: QueueCase) -> None:
    # given 8 sequences of a message of 3 MiB each, and one behind it
    for n in range(8):
        queue.send(large(n), "behind", sequence=f"Item-{n}")
    # when two consumers take
    anna, berta = queue.worker("anna"), queue.worker("berta")
    first, second = anna.take(8, run=2), berta.take(8, run=2)
    # then the second gets what did not fit into the first's answer, in order
    assert [int(one.payload[:3]) for one in first] == [0, 1, 2, 3, 4]
    assert [one.payload[:3] for one in second][:3] == [b"005", b"006", b"007"]
    assert [one.payload for one in second][3:] == [b"behind"] * 3
    assert counts_kept(queue, "orders") == counts_by_scan(queue, "orders")


def test_what_does_not_fit_keeps_its_time_to_live(queue: QueueCase) -> None:
    for n in range(6):
        queue.send(large(n), ttl_ms=600_000)

    queue.worker().take(6)

    assert queue.redis.hlen(queue.key("until")) == 1


def test_a_batch_and_shared_bodies_are_within_the_ceiling_too(queue: QueueCase) -> None:
    for n in range(8):
        queue.send_shared(large(n), "orders", "mail")

    anna = queue.worker("anna", "orders", "mail")
    takes = []
    while taken := anna.take(4, batches={"orders": 100}):
        takes.append(taken)
        anna.end(ack, taken)

    assert all(size_of(taken) <= CEILING for taken in takes)
    assert sum(map(len, takes)) == 16
    assert leftovers(queue.client) == []


def test_small_messages_are_read_by_two_commands_however_many(queue: QueueCase) -> None:
    queue.send_many(2_000)
    anna = queue.worker()

    commands = commands_of(queue, lambda: anna.take(900))

    assert commands["hmget"] == 2
    assert commands.total() <= 10, commands


def test_the_rest_of_a_take_that_was_too_large_wakes_another_consumer(queue: QueueCase) -> None:
    # given two consumers that wait, of which the first message wakes one
    anna, berta, carl = (queue.worker(name) for name in ("anna", "berta", "carl"))
    for waiting in (berta, carl):
        waiting.take()
    ears = Ears(queue, "berta", "carl")
    for n in range(8):
        queue.send(large(n))
    assert len(ears.heard()) == 1
    # when somebody else takes as much as fits into an answer
    anna.take(8)
    # then the other one is woken for the rest
    assert len(ears.heard()) == 1
    ears.close()


def bytes_read(queue: QueueCase) -> int:
    return int(queue.redis.info("stats")["total_net_output_bytes"])


def test_many_messages_are_read_a_bounded_number_of_bytes_at_a_time(queue: QueueCase) -> None:
    # given 40 delayed messages of 1 MiB, and as many small ones
    for n in range(40):
        queue.send(large(n, mib=1), delay_ms=60_000 + n)
    for n in range(40):
        queue.send(f"small {n}", delay_ms=120_000 + n)
    inspector, before = QueueInspector(queue), bytes_read(queue)
    # when somebody looks at the first of them
    delayed = inspector.delayed("orders")
    first = next(delayed)
    # then not much more than fits into one answer was read
    assert first.payload[:3] == b"000"
    assert bytes_read(queue) - before < CEILING + MIB
    # and all of them come, in order
    found = [first, *delayed]
    assert [int(one.payload[:3]) for one in found[:40]] == list(range(40))
    assert [one.payload for one in found[40:]] == [f"small {n}".encode() for n in range(40)]


def test_letters_are_read_as_they_are_asked_for_the_oldest_first(queue: QueueCase) -> None:
    for n in range(12):
        queue.send(large(n))
    anna = queue.worker()
    while taken := anna.take(12):
        anna.end(bury, taken, "{}")
    before = bytes_read(queue)

    letters = queue.letters.in_order("orders")
    first = next(letters)

    assert bytes_read(queue) - before < 4 * MIB
    assert [int(one.payload[:3]) for one in (first, *letters)] == list(range(12))


def test_looks_at_delayed_messages_end_where_they_are_told_to(queue: QueueCase) -> None:
    for n in range(450):
        queue.send(f"{n}", delay_ms=60_000 + n)
    inspector = QueueInspector(queue)

    counts = [len(list(inspector.delayed("orders", most))) for most in (0, 1, 200, 201, 450, None)]

    assert counts == [0, 1, 200, 201, 450, 450]


def test_whether_a_queue_is_consumed_costs_the_same_however_many_consume_others(
    queue: QueueCase,
) -> None:
    queue.worker("anna")
    for n in range(300):
        queue.worker(f"other-{n}", "stock")
    inspector = QueueInspector(queue)

    commands = commands_of(queue, lambda: inspector.is_consumed("orders"))

    assert inspector.is_consumed("orders")
    assert commands.total() < 5, commands
    queue.end_lease("anna")
    assert not inspector.is_consumed("orders")
    queue.leave("anna")
    assert not inspector.is_consumed("orders")


def test_idle_consumers_cost_a_look_at_holdings_few_round_trips(queue: QueueCase) -> None:
    for n in range(450):
        queue.worker(f"worker-{n}")
    queue.send("1", "2", sequence="a")
    queue.worker("worker-7").take(run=2)
    client = RoundTrips(queue)

    holdings = QueueInspector(queue).holdings()

    assert len(holdings) == 450
    assert [one.consumer for one in holdings if one.messages] == ["worker-7"]
    assert client.count < 15


class RoundTrips:
    """Count how often a client waits for an answer."""

    def __init__(self, queue: QueueCase) -> None:
        self.count = 0
        self._of(queue.redis, "execute_command")
        pipeline = queue.redis.pipeline

        def counted(*args: Any, **options: Any) -> Any:
            pipe = pipeline(*args, **options)
            self._of(pipe, "execute")
            return pipe

        queue.redis.pipeline = counted

    def _of(self, client: Any, name: str) -> None:
        original = getattr(client, name)

        def counting(*args: Any, **options: Any) -> Any:
            self.count += 1
            return original(*args, **options)

        setattr(client, name, counting)


def test_a_count_that_is_fresh_is_not_made_anew(queue: QueueCase) -> None:
    # given a count that was made a moment ago, and something wrong with it
    open_sequences(queue, 3)
    queue.upkeep.recount("orders")
    queue.redis.hincrby(queue.key("counts:orders"), "b", 7)

    assert queue.upkeep.recount("orders", fresh_ms=60_000) == 0
    # when an old consumer was there since
    queue.redis.set(queue.key("old_until"), QueueInspector(queue).now_ms())
    # then it is
    assert queue.upkeep.recount("orders", fresh_ms=60_000) == 7


def test_a_ready_list_of_whole_messages_is_read_a_bounded_number_of_bytes_at_a_time(
    queue: QueueCase,
) -> None:
    for n in range(30):
        queue.push_raw(large(n, mib=1))
    before = bytes_read(queue)

    elements = QueueInspector(queue).ready("orders", 0)
    first = next(elements)

    assert bytes_read(queue) - before < CEILING + MIB
    assert [int(one[:3]) for one in (first, *elements)] == list(range(30))
