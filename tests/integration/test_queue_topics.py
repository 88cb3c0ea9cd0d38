"""What is published to a topic goes to each of its subscribers, or to none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery.queue.values import FullQueue, ack
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


PIECES = ("a(", ")b(", ")c(", ")d(", ")e")


def publish(queue: QueueCase, body: str = "body", **options: Any) -> int | FullQueue | None:
    """Publish to the topic of these tests."""
    topic = options.pop("topic", "placed")
    return queue.publish_topic(topic, body, message_id="m", root_id="r", parent_id="p", **options)


def test_each_subscriber_gets_the_body_behind_its_own_head(queue: QueueCase) -> None:
    # given two subscribers
    queue.subscribe("stock.book", ["placed"], queue="stock", pieces=PIECES)
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces="<|||>")
    # when something is published
    assert publish(queue) == 2
    # then each has its head, its gaps filled
    taken = queue.worker("anna", "stock", "mail").take()
    assert [(one.queue, one.payload, one.body) for one in taken] == [
        ("stock", b"a(m)b(m)c(r)d(p)e", b"body"), ("mail", b"<m|m|r|p>", b"body"),
    ]  # fmt: skip


def test_a_topic_without_subscribers_stores_nothing(queue: QueueCase) -> None:
    assert publish(queue) == 0
    assert leftovers(queue.client) == []


def test_a_repeated_publish_id_is_stored_once(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)

    counts = [publish(queue, publish_id="p") for _ in range(2)]

    assert counts == [1, None]
    assert queue.count_of("mail") == {"ready": 1}


def test_two_subscribers_of_one_queue_both_get_it(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)
    queue.subscribe("mail.count", ["placed"], queue="mail", pieces=PIECES)

    publish(queue)

    anna = queue.worker("anna", "mail")
    taken = anna.take()
    anna.end(ack, taken)
    assert len(taken) == 2
    assert leftovers(queue.client) == []


def test_a_subscriber_of_several_topics_gets_each(queue: QueueCase) -> None:
    assert queue.subscribe("mail.send", ["placed", "paid"], queue="mail", pieces=PIECES) == 2

    assert (publish(queue), publish(queue, topic="paid")) == (1, 1)


def test_a_subscription_made_anew_replaces_the_old_one(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)

    assert queue.subscribe("mail.send", ["placed"], queue="post", pieces=PIECES) == 0

    publish(queue)
    assert (queue.count_of("mail"), queue.count_of("post")) == ({}, {"ready": 1})


def test_a_subscriber_that_unsubscribed_gets_no_more_and_keeps_what_it_has(
    queue: QueueCase,
) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)
    publish(queue)

    assert queue.unsubscribe("mail.send", ["placed", "paid"]) == 1

    assert publish(queue) == 0
    assert queue.count_of("mail") == {"ready": 1}


def test_a_subscriber_that_unsubscribed_leaves_no_trace(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed", "paid"], queue="mail", pieces=PIECES)

    queue.unsubscribe("mail.send", ["placed", "paid"])

    assert list(queue.redis.scan_iter()) == [b"{t}.cq:queues"]


def test_a_subscription_to_other_topics_ends_those_before(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed", "paid"], queue="mail", pieces=PIECES)

    assert queue.subscribe("mail.send", ["paid", "sent"], queue="mail", pieces=PIECES) == 1

    assert [publish(queue, topic=topic) for topic in ("placed", "paid", "sent")] == [0, 1, 1]


def test_a_topics_messages_keep_the_order_of_their_sequence(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces="<|||>")
    for body in "123":
        publish(queue, body, sequence="Item-1")

    taken = queue.worker("anna", "mail").take(run=3)

    assert [one.body for one in taken] == [b"1", b"2", b"3"]
    assert queue.count_of("mail") == {"in_sequences": 3}


def test_a_subscriber_may_have_a_priority(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES, priority=9)
    publish(queue)
    queue.send("urgent", to="mail")

    assert [one.priority for one in queue.worker("anna", "mail").take()] == [0, 9]


def test_a_subscribers_queue_is_listed(queue: QueueCase) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)

    assert queue.queues() == ["mail"]


def test_a_head_has_five_pieces(queue: QueueCase) -> None:
    with pytest.raises(ValueError, match="5 pieces"):
        queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES[1:])


def test_bytes_and_names_of_any_kind_pass_through(queue: QueueCase) -> None:
    topic = "ünï|codé\n{x}"
    queue.subscribe("a|b", [topic], queue="mail", pieces=("é", "\n", "@", "=", "\x00"))

    queue.publish_topic(topic, b"\xff\x00", message_id="☃", root_id="|", parent_id="")

    (taken,) = queue.worker("anna", "mail").take()
    assert (taken.payload, taken.body) == ("é☃\n☃@|=\x00".encode(), b"\xff\x00")


def test_a_thousand_subscribers_get_one_body(queue: QueueCase) -> None:
    for n in range(1_000):
        queue.subscribe(f"handler-{n}", ["placed"], queue="mail", pieces="<|||>")

    assert publish(queue) == 1_000

    anna = queue.worker("anna", "mail")
    taken = anna.take(1_000)
    assert queue.redis.hlen(queue.key("body")) == 1
    anna.end(ack, taken)
    assert (len(texts(taken)), leftovers(queue.client)) == (1_000, [])


# Capacity


def test_with_a_capacity_a_full_queue_is_named_and_nobody_gets_the_message(
    queue: QueueCase,
) -> None:
    # given two subscribers, one of whose queues is full
    queue.subscribe("stock.book", ["placed"], queue="stock", pieces=PIECES)
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)
    queue.send("0", "1", to="mail")
    # when something is published, then it says which, and how many wait
    assert publish(queue, capacity=2, publish_id="p") == FullQueue("mail", 2)
    assert queue.count_of("stock") == {}
    # and the publish may be repeated, and is remembered only then
    assert publish(queue, capacity=3, publish_id="p") == 2
    assert publish(queue, capacity=3, publish_id="p") is None


def test_a_capacity_counts_whatever_waits_at_every_priority_delayed_and_in_sequences(
    queue: QueueCase,
) -> None:
    queue.subscribe("mail.send", ["placed"], queue="mail", pieces=PIECES)
    # given 2 of a higher step, 1 delayed, 3 in a ready sequence, 2 behind one that is delayed
    queue.send("0", "1", to="mail", priority=3)
    queue.send("2", to="mail", delay_ms=60_000)
    queue.send("3", "4", "5", to="mail", sequence="ready")
    queue.send("6", to="mail", sequence="later", delay_ms=60_000)
    queue.send("7", to="mail", sequence="later")
    assert publish(queue, capacity=9) == 1
    assert publish(queue, capacity=9) == FullQueue("mail", 9)
    # when one worker takes all that it may, then only what it does not hold counts
    worker = queue.worker("anna", "mail")
    assert len(worker.take(run=2)) >= 4
    held = len(queue.in_flight("anna"))
    assert publish(queue, capacity=9 - held) == FullQueue("mail", 9 - held)
    assert publish(queue, capacity=9 - held + 1) == 1
