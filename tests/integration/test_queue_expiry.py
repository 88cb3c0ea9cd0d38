"""Messages that waited too long are dropped; queues that nobody uses are deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery.queue.values import Destination, ack, give_back, requeue
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def expire_all(queue: QueueCase) -> None:
    for key in queue.redis.hkeys(queue.key("until")):
        queue.redis.hset(queue.key("until"), key, 1)


def test_a_message_that_waited_too_long_is_dropped_and_leaves_nothing(queue: QueueCase) -> None:
    # given one that may wait for a while, and one that may wait for ever
    anna = queue.worker()
    queue.publish([Destination("orders", "soon gone")], ttl_ms=60_000)
    queue.publish([Destination("orders", "patient")])
    # when the while is over
    expire_all(queue)
    taken = anna.take(10)
    # then it is not delivered
    assert texts(taken) == ["patient"]
    anna.exchange(*(ack(t.id, t.fence) for t in taken), count=0)
    assert leftovers(queue.client) == []


def test_a_message_in_time_is_delivered_and_its_time_is_forgotten(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.publish([Destination("orders", "quick")], ttl_ms=60_000)
    taken = anna.take(10)
    assert texts(taken) == ["quick"]
    anna.exchange(*(ack(t.id, t.fence) for t in taken), count=0)
    assert leftovers(queue.client) == []


def test_a_body_that_several_queues_share_stays_for_those_that_have_time(queue: QueueCase) -> None:
    # given one message on two queues, taken from one of them in time
    anna, bert = queue.worker(), queue.worker("bert", "mail")
    queue.publish([Destination("orders", ""), Destination("mail", "")], ttl_ms=60_000, body="both")
    taken = anna.take(1)
    # when it expires
    expire_all(queue)
    # then the other queue does not deliver it, and the body goes with its last reader
    assert bert.take(1) == []
    assert texts(taken) == ["both"]
    anna.exchange(*(ack(t.id, t.fence) for t in taken), count=0)
    assert leftovers(queue.client) == []


def test_a_delayed_message_s_time_begins_when_it_is_due(queue: QueueCase) -> None:
    queue.publish([Destination("orders", "later")], delay_ms=1_000_000, ttl_ms=60_000)
    [until] = queue.redis.hvals(queue.key("until"))
    seconds, _ = queue.redis.time()
    assert int(until) - seconds * 1000 > 1_000_000


def test_a_message_in_a_sequence_never_expires(queue: QueueCase) -> None:
    queue.publish([Destination("orders", "kept", "Item-1")], ttl_ms=1)
    assert not queue.redis.exists(queue.key("until"))


def test_an_unused_queue_is_deleted_with_its_messages(queue: QueueCase) -> None:
    # given a queue that lives for a while, with a message
    queue.declare("reply", expires_ms=60_000)
    queue.publish([Destination("reply", "nobody reads this")])
    anna = queue.worker()
    # when its time is over
    queue.redis.zadd(queue.key("expiring"), {"reply": 1})
    # then a heartbeat says so, and it can be deleted
    assert queue.beat(anna.name, 60_000).expired_queues == 1
    assert queue.delete_expired() == ["reply"]
    assert not queue.exists("reply")
    assert queue.beat(anna.name, 60_000).expired_queues == 0
    assert leftovers(queue.client) == []


def test_a_queue_with_a_consumer_lives_on(queue: QueueCase) -> None:
    queue.declare("reply", expires_ms=60_000)
    queue.worker("anna", "reply")
    queue.redis.zadd(queue.key("expiring"), {"reply": 1})
    assert queue.delete_expired() == []
    assert queue.exists("reply")
    assert queue.redis.zscore(queue.key("expiring"), "reply") > 60_000


def test_a_queue_declared_anew_without_a_time_lives_for_ever(queue: QueueCase) -> None:
    queue.declare("reply", expires_ms=60_000)
    queue.declare("reply")
    assert not queue.redis.exists(queue.key("expiring"))
    assert not queue.redis.exists(queue.key("lifetime"))


@pytest.mark.parametrize("way", [requeue, give_back])
def test_what_was_taken_in_its_time_comes_again_however_late(queue: QueueCase, way: Any) -> None:
    # given a message that was taken in time, and comes back after it
    anna = queue.worker()
    queue.publish([Destination("orders", "tried")], ttl_ms=60_000)
    taken = anna.take(1)
    expire_all(queue)
    anna.end(way, taken)
    # when it is taken again, then it is there
    assert texts(anna.take(1)) == ["tried"]


def test_what_a_dead_worker_held_comes_again_however_late(queue: QueueCase) -> None:
    queue.publish([Destination("orders", "tried")], ttl_ms=60_000)
    queue.worker("anna").take(1)
    expire_all(queue)
    queue.end_lease("anna")
    queue.recover()

    assert texts(queue.worker("berta").take(1)) == ["tried"]


def test_a_take_of_expired_messages_alone_asks_for_the_next_at_once(queue: QueueCase) -> None:
    # given a few expired messages in front of one that is not
    anna = queue.worker()
    for n in range(8):
        queue.publish([Destination("orders", str(n))], ttl_ms=60_000)
    queue.publish([Destination("orders", "fresh")])
    expire_all(queue)
    # when all that a take finds has expired, then the consumer is to come again without a pause
    first, second, third = (anna.exchange(count=4) for _ in range(3))
    assert [texts(one.taken) for one in (first, second, third)] == [[], [], ["fresh"]]
    assert (first.due_in_ms, second.due_in_ms) == (0, 0)
