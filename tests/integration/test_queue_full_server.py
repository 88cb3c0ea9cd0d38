"""A server at its maxmemory refuses what adds messages, and nothing that gets rid of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ResponseError

from cqrs_celery.queue.values import LetterPolicy, ack, bury, give_back, later, requeue
from tests.conftest import RedisFactory
from tests.queues import LEASE_MS, QueueCase, leftovers, opened, texts


@pytest.fixture
def full(redis_factory: RedisFactory) -> Iterator[QueueCase]:
    """Give a queue on a server of its own, for tests that fill it up."""
    with opened(redis_factory(appendonly=False).url) as case:
        yield case


def fill_up(queue: QueueCase) -> None:
    """Let the server refuse every write that needs memory."""
    queue.redis.config_set("maxmemory", "1")


def test_a_publish_is_refused_whole_and_can_be_repeated(full: QueueCase) -> None:
    # given a full server
    fill_up(full)
    # when something is published there
    for sequence, delay_ms in (("", 0), ("Item-1", 0), ("", 60_000)):
        with pytest.raises(ResponseError, match="maxmemory"):
            full.send("1", publish_id="p", sequence=sequence, delay_ms=delay_ms)
    # then nothing of it is stored, and after the lack the same publish id counts
    assert full.redis.keys() == []
    full.redis.config_set("maxmemory", "0")
    full.send("1", publish_id="p")
    assert texts(full.worker().take()) == ["1"]


def test_a_topic_is_refused_whole(full: QueueCase) -> None:
    full.subscribe("mail.send", ["placed"], queue="mail", pieces="<|||>")
    fill_up(full)

    with pytest.raises(ResponseError, match="maxmemory"):
        full.publish_topic("placed", "body", message_id="m", root_id="r")

    assert leftovers(full.client) == []


def test_a_worker_starts_beats_and_goes_idle(full: QueueCase) -> None:
    fill_up(full)

    anna = full.worker("anna", "orders", "stock")

    assert anna.take() == []
    assert full.beat("anna", LEASE_MS).is_held


@pytest.mark.parametrize("sequence", ["", "Item-1"])
def test_what_is_there_can_be_taken_and_done(full: QueueCase, sequence: str) -> None:
    # given a full server with messages that are ready, and some that are due
    full.send("1", "2", sequence=sequence)
    full.send("3", sequence=sequence, delay_ms=60_000)
    full.make_due()
    anna = full.worker()
    fill_up(full)
    # when a worker takes and acknowledges
    done = []
    while taken := anna.take():
        done += texts(taken)
        anna.end(ack, taken)
    # then everything is done
    assert sorted(done) == ["1", "2", "3"]
    assert leftovers(full.client) == []


@pytest.mark.parametrize("sequence", ["", "Item-1"])
@pytest.mark.parametrize(
    "how",
    [
        (ack,),
        (requeue,),
        (give_back,),
        (later, 60_000),
        (later, 60_000, "anew"),
        (bury, "{}"),
    ],
)
def test_every_settlement_counts(full: QueueCase, how: tuple[Any, ...], sequence: str) -> None:
    # given a message in flight on a full server
    full.letters.set_policy("orders", LetterPolicy())
    anna = full.worker()
    full.send("1", "2", sequence=sequence)
    taken = anna.take(1)
    fill_up(full)
    # when it is settled
    answer = anna.end(how[0], taken, *how[1:])
    # then that counts
    assert answer.refused == ()
    assert anna.end(ack, taken).refused == (taken[0].id,)


@pytest.mark.parametrize("sequence", ["", "Item-1"])
def test_a_dead_worker_is_recovered(full: QueueCase, sequence: str) -> None:
    full.send("1", sequence=sequence)
    full.worker("anna").take()
    full.end_lease("anna")
    fill_up(full)

    full.recover()

    assert texts(full.worker("berta").take()) == ["1"]


def test_a_letter_is_redriven_or_discarded_and_a_queue_purged(full: QueueCase) -> None:
    full.send("1", "2")
    anna = full.worker()
    taken = anna.take()
    anna.end(bury, taken, "{}")
    fill_up(full)

    assert full.redrive("orders", taken[0].id)
    assert full.discard("orders", taken[1].id)
    assert full.purge("orders") == 1
    assert leftovers(full.client) == []
