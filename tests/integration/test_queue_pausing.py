"""Of a paused queue nothing is taken, everything is kept, and others do not notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery.queue.values import Destination, ack, give_back
from tests.queues import QueueCase, leftovers, make_due, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def commands(queue: QueueCase) -> dict[str, int]:
    """Return how often each command has run since the last reset of the statistics."""
    stats: Any = queue.redis.info("commandstats")
    return {name: one["calls"] for name, one in stats.items() if "config" not in name}


def test_nothing_of_a_paused_queue_is_taken_and_all_of_it_is_kept_in_order(
    queue: QueueCase,
) -> None:
    # given two queues, of which one is paused
    anna = queue.worker("anna", "orders", "mail")
    queue.publish([Destination("orders", "1")])
    assert queue.pause(["orders"]) == ["orders"]
    # when more is published: plain, in a sequence, delayed, as a stock producer does it
    queue.publish([Destination("orders", "2")])
    queue.publish([Destination("orders", "3", "Item-1")])
    queue.publish([Destination("orders", "4")], delay_ms=60_000)
    queue.redis.lpush(f"{queue.prefix}orders", '{"raw": 5}')
    queue.publish([Destination("mail", "6")])
    make_due(queue)
    # then only the other queue's is taken, however often a consumer asks
    answers = [anna.exchange(count=10) for _ in range(3)]
    assert [texts(one.taken) for one in answers] == [["6"], [], []]
    assert [list(one.paused) for one in answers] == [["orders"]] * 3
    # and when it is resumed, all the rest is, what was due first
    assert queue.resume(["orders"]) == ["orders"]
    assert texts(anna.take()) == ["4", "1", "2", "3", '{"raw": 5}']


def test_what_is_held_when_its_queue_is_paused_ends_or_goes_back_to_its_place(
    queue: QueueCase,
) -> None:
    # given a worker that holds two of three
    anna = queue.worker()
    for n in "123":
        queue.publish([Destination("orders", n)])
    first, second = anna.take(2)
    queue.pause(["orders"])
    # when one ends and the other goes back
    answer = anna.exchange(ack(first.id, first.fence), give_back(second.id, second.fence))
    # then both count, and nothing new is taken
    assert answer.refused == ()
    assert list(answer.taken) == []
    queue.resume(["orders"])
    assert texts(anna.take()) == ["2", "3"]


def test_a_settlement_alone_tells_what_is_paused(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.pause(["orders", "mail"])
    assert sorted(anna.exchange(count=0, queues=()).paused) == ["mail", "orders"]


def test_pausing_and_resuming_twice_changes_nothing(queue: QueueCase) -> None:
    assert queue.pause(["orders", "mail"]) == ["orders", "mail"]
    assert queue.pause(["mail", "other"]) == ["other"]
    assert queue.paused() == ["mail", "orders", "other"]
    assert queue.resume(["orders", "unknown"]) == ["orders"]
    assert queue.resume(["mail", "other"]) == ["mail", "other"]
    assert queue.paused() == []
    assert leftovers(queue.client) == []


def test_a_pause_tells_the_consumers_and_a_resumption_wakes_one(queue: QueueCase) -> None:
    # given an idle consumer that listens, and another one of another queue
    anna, bert = queue.worker("anna", "orders"), queue.worker("bert", "mail")
    for worker in (anna, bert):
        assert worker.take() == []
    with queue.redis.pubsub() as listener:
        listener.subscribe(*(queue.key(f"wake:{one.name}") for one in (anna, bert)))

        def heard() -> list[tuple[bytes, bytes]]:
            found = []
            while message := listener.get_message(timeout=0.2):
                if message["type"] == "message":
                    found.append((message["channel"].split(b":")[-1], message["data"]))
            return found

        heard()
        # when its queue is paused, it is told
        queue.pause(["orders"])
        assert heard() == [(b"anna", b"\x1fpaused")]
        # what is published meanwhile wakes it once, not again and again
        for n in range(5):
            queue.publish([Destination("orders", str(n))])
        assert heard() == [(b"anna", b"orders")]
        assert anna.take(was_idle=True) == []
        queue.publish([Destination("orders", "6")])
        assert heard() == []
        # and the resumption wakes it for what has come
        queue.resume(["orders"])
        assert heard() == [(b"anna", b"orders")]


@pytest.mark.parametrize("what", ["plain", "delayed"])
def test_a_take_asks_redis_no_more_for_pauses_unless_there_is_one(
    queue: QueueCase, what: str
) -> None:
    # given a queue, beside nothing else, or beside something that is delayed
    anna = queue.worker()
    if what == "delayed":
        queue.publish([Destination("mail", "later")], delay_ms=600_000)

    def of_a_take() -> dict[str, int]:
        queue.publish([Destination("orders", "1")])
        queue.redis.config_resetstat()
        (one,) = anna.take()
        found = commands(queue)
        anna.exchange(ack(one.id, one.fence), count=0)
        return found

    # when nothing is paused, then nothing is read for it; one command says so besides other things
    before = of_a_take()
    assert before.get("cmdstat_exists") == 1
    assert "cmdstat_smembers" not in before
    # and while another queue is paused, it is one command more
    queue.pause(["mail"])
    after = of_a_take()
    assert after.pop("cmdstat_smembers") == 1
    assert after == before
