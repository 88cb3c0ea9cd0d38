"""Messages that waited too long are dropped; queues that nobody uses are deleted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery.queue import administration, reliable_queue
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination, Publish, ack, give_back, requeue
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


def test_the_deletion_of_an_expired_queue_that_a_crash_has_ended_is_taken_up_again(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an expired queue with more messages than one step deletes
    monkeypatch.setattr(administration, "PURGE_BATCH", 2)
    queue.declare("reply", expires_ms=60_000)
    for n in range(5):
        queue.publish([Destination("reply", str(n))])
    queue.redis.zadd(queue.key("expiring"), {"reply": 1})
    # when the one who deletes it is killed in the middle
    purge, calls = administration._purge, []

    def killed(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return purge(*args)

    with monkeypatch.context() as patch:
        patch.setattr(administration, "_purge", killed)
        with pytest.raises(KeyboardInterrupt):
            queue.delete_expired()
    # then the next one finds the queue, and nothing of it is left
    assert queue.beat("anna", 60_000).expired_queues == 1
    assert queue.delete_expired() == ["reply"]
    assert leftovers(queue.client) == []


def test_a_queue_that_somebody_consumes_while_it_is_deleted_keeps_what_is_left(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an expired queue
    monkeypatch.setattr(administration, "PURGE_BATCH", 2)
    queue.declare("reply", expires_ms=60_000)
    for n in range(5):
        queue.publish([Destination("reply", str(n))])
    queue.redis.zadd(queue.key("expiring"), {"reply": 1})
    # when a consumer comes after the first step
    purge = administration._purge
    workers: list[Any] = []

    def and_a_worker_comes(*args: Any) -> Any:
        count = purge(*args)
        if not workers:
            workers.append(queue.worker("anna", "reply"))
        return count

    monkeypatch.setattr(administration, "_purge", and_a_worker_comes)
    # then the queue lives on with the rest
    assert queue.delete_expired() == []
    assert queue.exists("reply")
    assert texts(workers[0].take()) == ["2", "3", "4"]


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


# ------------------------------------------------------------ the queue's own limit


def limits(queue: QueueCase) -> list[int]:
    """Return for how many ms each message may wait, in whole minutes, shortest first."""
    seconds, _ = queue.redis.time()
    ends = queue.redis.hvals(queue.key("until"))
    return sorted(round((int(end) - seconds * 1000) / 60_000) for end in ends)


def another(queue: QueueCase) -> ReliableQueue:
    """Return the same queues, as another process knows them."""
    return ReliableQueue(queue.client, prefix=queue.prefix)


def test_a_queue_s_limit_counts_for_whoever_publishes_there(queue: QueueCase) -> None:
    # given a queue whose messages may wait for ten minutes
    queue.declare("orders", ttl_ms=600_000)
    # when another process publishes there: without a limit, with a longer one, with a shorter one
    other = another(queue)
    other.publish([Destination("orders", "1")])
    other.publish([Destination("orders", "2")], ttl_ms=3_600_000)
    other.publish_many(
        [Publish([Destination("orders", "3"), Destination("mail", "3")], "", 0, 60_000)]
    )
    # then the sooner limit counts, and in another queue the message's own
    assert limits(queue) == [1, 1, 10, 10]


def test_a_declaration_without_a_limit_keeps_it_and_one_of_none_takes_it_away(
    queue: QueueCase,
) -> None:
    queue.declare("orders", ttl_ms=600_000)
    another(queue).declare("orders")
    another(queue).publish([Destination("orders", "1")])
    assert limits(queue) == [10]

    queue.declare("orders", ttl_ms=0)
    another(queue).publish([Destination("orders", "2")])
    assert limits(queue) == [10]


def test_a_deleted_queue_takes_its_limit_with_it(queue: QueueCase) -> None:
    queue.declare("orders", ttl_ms=600_000)
    queue.delete("orders")
    assert not queue.redis.exists(queue.key("ttl"))


def test_a_queue_without_a_limit_is_asked_for_it_once_a_while(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a process that has published to a queue
    monkeypatch.setattr(reliable_queue, "NO_TTL_S", 1_000)
    other = another(queue)
    other.publish([Destination("orders", "1")])
    # when it publishes more
    queue.redis.config_resetstat()
    for n in range(5):
        other.publish([Destination("orders", str(n))])
    # then it does not ask again
    assert "cmdstat_hget" not in queue.redis.info("commandstats")
    # until what it knows is too old, or itself declares the queue
    other.declare("orders", ttl_ms=600_000)
    other.publish([Destination("orders", "6")])
    assert limits(queue) == [10]


def test_a_sequence_has_no_limit_of_its_queue(queue: QueueCase) -> None:
    queue.declare("orders", ttl_ms=600_000)
    queue.publish([Destination("orders", "kept", "Item-1")])
    assert not queue.redis.exists(queue.key("until"))
