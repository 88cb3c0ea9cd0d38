"""Many publishes in one round trip."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import Destination, Publish
from tests.queues import QueueCase, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_many_messages_are_published_in_order(queue: QueueCase) -> None:
    count = queue.publish_many([Publish([Destination("orders", str(n))]) for n in range(250)])
    assert count == 250
    assert texts(queue.worker().take(300)) == [str(n) for n in range(250)]


def test_a_repeated_batch_stores_only_what_is_missing(queue: QueueCase) -> None:
    # given a batch of which one message has arrived
    publishes = [Publish([Destination("orders", str(n))], publish_id=f"p{n}") for n in range(3)]
    queue.publish_many(publishes[1:2])
    # when it is published
    assert queue.publish_many(publishes) == 2
    # then nothing is there twice
    assert sorted(texts(queue.worker().take(10))) == ["0", "1", "2"]


def test_a_server_that_has_forgotten_its_scripts_gets_the_whole_batch(queue: QueueCase) -> None:
    queue.redis.script_flush()
    assert queue.publish_many([Publish([Destination("orders", n)]) for n in "123"]) == 3
    assert texts(queue.worker().take(10)) == ["1", "2", "3"]


def test_a_batch_with_a_forbidden_queue_name_sends_nothing(queue: QueueCase) -> None:
    with pytest.raises(ValueError, match="cq:"):
        queue.publish_many(
            [Publish([Destination("orders", "1")]), Publish([Destination("cq:x", "2")])]
        )
    assert queue.worker().take(10) == []


def test_an_empty_batch_is_nothing(queue: QueueCase) -> None:
    assert queue.publish_many([]) == 0
    assert queue.publish_many([Publish([])]) == 0
