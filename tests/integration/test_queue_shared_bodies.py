"""A body for several queues is kept once, as long as one of them needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Destination, ack, bury, later, requeue
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_each_queue_gets_the_body(queue: QueueCase) -> None:
    queue.send_shared("body", "orders", "stock", "mail")

    taken = queue.worker("anna", "orders", "stock", "mail").take()

    assert texts(taken) == ["body", "body", "body"]
    assert queue.redis.hlen(queue.key("body")) == 1


def test_each_queue_has_its_own_head(queue: QueueCase) -> None:
    to = [Destination("orders", "head-1"), Destination("stock", "head-2\n@")]
    queue.publish(to, body=b"\x00body")

    taken = queue.worker("anna", "orders", "stock").take()

    assert [(one.payload, one.body) for one in taken] == [
        (b"head-1", b"\x00body"), (b"head-2\n@", b"\x00body"),
    ]  # fmt: skip


def test_a_body_goes_with_its_last_message(queue: QueueCase) -> None:
    # given a body in two queues
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock")
    first, second = anna.take()
    # when one is done, then the other
    anna.end(ack, [first])
    after_one = queue.redis.hlen(queue.key("body"))
    anna.end(ack, [second])
    # then it stays for the other, and no longer
    assert after_one == 1
    assert leftovers(queue.client) == []


def test_both_messages_of_a_body_settled_at_once_free_it(queue: QueueCase) -> None:
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock", sequence="Item-1")

    anna.end(ack, anna.take())

    assert leftovers(queue.client) == []


def test_a_purge_of_one_queue_keeps_the_body_for_the_others(queue: QueueCase) -> None:
    queue.send_shared("body", "orders", "stock")

    queue.purge("stock")

    anna = queue.worker("anna")
    taken = anna.take()
    assert texts(taken) == ["body"]
    anna.end(ack, taken)
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("sequence", ["", "Item-1"])
@pytest.mark.parametrize("delay_ms", [0, 60_000])
def test_a_purge_of_all_its_queues_frees_the_body(
    queue: QueueCase, sequence: str, delay_ms: int
) -> None:
    queue.send_shared("body", "orders", "stock", sequence=sequence, delay_ms=delay_ms)

    assert queue.purge("orders") == queue.purge("stock") == 1

    assert leftovers(queue.client) == []


def test_a_dead_letter_keeps_the_body_until_it_is_discarded(queue: QueueCase) -> None:
    # given a body whose one message is dead, the other done
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock")
    first, second = anna.take()
    anna.settle(bury(first.id, first.fence, "{}"), ack(second.id, second.fence))
    assert [letter.body for letter in queue.dead_letters(first.queue)] == [b"body"]
    # when the letter is discarded
    queue.discard(first.queue, first.id)
    # then nothing is left
    assert leftovers(queue.client) == []


def test_a_redriven_letter_has_its_body_still(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send_shared("body", "orders", "stock")
    queue.purge("stock")
    taken = anna.take()
    anna.end(bury, taken, "{}")

    queue.redrive("orders", taken[0].id)

    assert texts(anna.take()) == ["body"]


def test_what_goes_back_or_waits_keeps_its_body(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send_shared("body", "orders", "stock")
    anna.end(requeue, anna.take())
    anna.end(later, anna.take(), 60_000)
    queue.make_due()

    assert texts(anna.take()) == ["body"]


@pytest.mark.parametrize("sequence", ["", "Item-1"])
def test_a_replaced_payload_needs_the_body_no_more(queue: QueueCase, sequence: str) -> None:
    # given a body in two queues
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock", sequence=sequence)
    first, second = anna.take()
    # when one message is replaced and the other done
    anna.settle(later(first.id, first.fence, 60_000, "whole"), ack(second.id, second.fence))
    # then the body is gone, and the new message whole
    assert queue.redis.hlen(queue.key("body")) == 0
    queue.make_due()
    taken = anna.take()
    assert (texts(taken), taken[0].body) == (["whole"], b"")
    anna.end(ack, taken)
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("sequence", ["", "Item-1"])
def test_a_replaced_message_counts_as_not_done_until_it_is(queue: QueueCase, sequence: str) -> None:
    # given messages with one body, of which the second is replaced, twice, and the other is done
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock", sequence=sequence)
    first, second = anna.take()
    anna.settle(ack(first.id, first.fence), later(second.id, second.fence, 60_000, "new"))
    queue.make_due()
    anna.end(later, anna.take(), 60_000, "newer")
    # then there is a count of its own for it
    assert not_done(queue) == {f"0{second.id}": 1}
    # when it dies, and is put in line again, then it still is
    queue.block_on_dead_letter("stock")
    queue.make_due()
    anna.end(bury, anna.take(), "{}")
    assert not_done(queue) == {f"0{second.id}": 1}
    queue.redrive("stock", second.id)
    taken = anna.take()
    assert texts(taken) == ["newer"]
    assert not_done(queue) == {f"0{second.id}": 1}
    # when it is done
    anna.end(ack, taken)
    # then nothing is left
    assert leftovers(queue.client) == []


@pytest.mark.parametrize("way", ["purged", "discarded", "its queue deleted"])
def test_a_replaced_message_that_is_deleted_leaves_nothing(queue: QueueCase, way: str) -> None:
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock")
    first, second = anna.take()
    anna.settle(ack(first.id, first.fence), later(second.id, second.fence, 60_000, "new"))
    if way == "discarded":
        queue.make_due()
        anna.end(bury, anna.take(), "{}")
        queue.discard(second.queue, second.id)
    else:
        (queue.purge if way == "purged" else queue.delete)(second.queue)

    assert leftovers(queue.client) == []


def test_a_replaced_message_without_a_shared_body_is_not_counted(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("command")
    anna.end(later, anna.take(), 60_000, "again")

    assert not_done(queue) == {}


def test_a_replaced_message_of_a_dead_worker_comes_again_whole(queue: QueueCase) -> None:
    queue.send_shared("body", "orders", "stock")
    anna = queue.worker("anna", "stock")
    anna.end(later, anna.take(), 60_000, "@new")
    queue.make_due()
    assert texts(anna.take()) == ["@new"]
    queue.end_lease("anna")
    queue.recover()

    berta = queue.worker("berta", "stock")
    taken = berta.take()
    assert (texts(taken), taken[0].body) == (["@new"], b"")
    berta.end(ack, taken)
    assert queue.purge("orders") == 1
    assert leftovers(queue.client) == []


def not_done(queue: QueueCase) -> dict[str, int]:
    """Return the counts of what is not done."""
    counts = queue.redis.hgetall(queue.key("refs"))
    return {body.decode(): int(count) for body, count in counts.items()}


def test_a_dead_workers_messages_have_their_bodies_still(queue: QueueCase) -> None:
    queue.send_shared("body", "orders", "stock")
    queue.worker("anna", "orders", "stock").take()
    queue.end_lease("anna")
    queue.recover()

    berta = queue.worker("berta", "orders", "stock")
    taken = berta.take()
    berta.end(ack, taken)

    assert texts(taken) == ["body", "body"]
    assert leftovers(queue.client) == []


def test_a_body_to_one_queue_twice_comes_twice(queue: QueueCase) -> None:
    queue.send_shared("body", "orders", "orders")

    anna = queue.worker()
    taken = anna.take()
    anna.end(ack, taken)

    assert texts(taken) == ["body", "body"]
    assert leftovers(queue.client) == []
