"""What is published is stored on all its queues or on none, and once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.values import (
    PRIORITY_STEPS,
    Destination,
    Taken,
    ack,
    bury,
    later,
    priority_step,
)
from tests.queues import QueueCase, leftovers, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def test_a_message_comes_out_as_it_went_in(queue: QueueCase) -> None:
    # given a worker on two queues
    anna = queue.worker("anna", "orders", "stock")
    # when two messages are published, one of them with everything
    count = queue.publish([Destination("orders", b"\x00\xff\n", "Item-1", 3)])
    queue.publish([Destination("stock", "é☃")])
    # then they come out with all that was said of them
    assert count == 1
    assert anna.take() == [
        Taken(1, 2, "orders", "Item-1", 3, 0, b"\x00\xff\n", b"", take=2),
        Taken(2, 4, "stock", "", 0, 0, "é☃".encode(), b"", take=2),
    ]


def test_messages_come_out_in_the_order_of_their_publishing(queue: QueueCase) -> None:
    queue.send(*map(str, range(50)))

    assert texts(queue.worker().take(50)) == list(map(str, range(50)))


def test_a_publish_to_no_queue_stores_nothing_and_uses_up_no_publish_id(queue: QueueCase) -> None:
    # when something is published to nobody, then to somebody under the same id
    nobody = queue.publish([], publish_id="p")
    somebody = queue.publish([Destination("orders", "1")], publish_id="p")
    # then only the second counts
    assert (nobody, somebody) == (0, 1)


def test_a_repeated_publish_id_is_stored_once(queue: QueueCase) -> None:
    # given a publish whose answer was lost
    to = [Destination("orders", "1"), Destination("stock", "1", "Item-1")]
    assert queue.publish(to, publish_id="p") == 2
    # when it is repeated
    assert queue.publish(to, publish_id="p") == 0
    # then each queue has it once
    assert len(queue.worker("anna", "orders", "stock").take()) == 2


def test_a_repeated_publish_id_is_refused_after_the_message_is_done_too(queue: QueueCase) -> None:
    # given a message that is done
    anna = queue.worker()
    queue.send("1", publish_id="p")
    anna.end(ack, anna.take())
    # when its publish is repeated
    queue.send("1", publish_id="p")
    # then it does not run again
    assert anna.take() == []


def test_a_publish_id_is_forgotten_after_its_time(queue: QueueCase) -> None:
    queue.send("1", publish_id="p")

    ttl_ms = queue.redis.pttl(queue.key("dedup:p"))

    assert 110_000 < ttl_ms <= 120_000


def test_publishes_without_an_id_are_never_duplicates(queue: QueueCase) -> None:
    queue.send("1", "1", "1")

    assert texts(queue.worker().take()) == ["1", "1", "1"]


def test_a_more_urgent_message_is_taken_first(queue: QueueCase) -> None:
    # given messages of every step, the least urgent first
    for step in reversed(PRIORITY_STEPS):
        queue.send(f"{step}a", f"{step}b", priority=step)
    # when all are taken
    taken = queue.worker().take()
    # then the steps come in their order, and within a step the first published
    assert texts(taken) == ["0a", "0b", "3a", "3b", "6a", "6b", "9a", "9b"]


def test_a_priority_counts_as_the_next_lower_step():
    assert [priority_step(n) for n in range(11)] == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9]


@pytest.mark.parametrize("payload", ["", "@", "@1", "@1\nx", "@\n", "=x", "{", "17", "\n"])
def test_a_payload_may_look_like_anything(queue: QueueCase, payload: str) -> None:
    # given a message whose payload looks like something that the queue writes
    anna = queue.worker()
    queue.send(payload)
    # when it is taken, delayed with the same payload anew, and taken again
    (first,) = anna.take()
    anna.end(later, [first], 1, payload)
    queue.make_due()
    (second,) = anna.take()
    # then it is what it was
    assert texts([first, second]) == [payload, payload]


@pytest.mark.parametrize("name", ["cq:msg", "a\x1fb", "a\x06\x163"])
def test_a_name_that_collides_with_the_queues_own_keys_is_refused(
    queue: QueueCase, name: str
) -> None:
    with pytest.raises(ValueError, match="cannot name a queue"):
        queue.send("1", to=name)
    with pytest.raises(ValueError, match="cannot name a queue"):
        queue.subscribe("mailer", ["placed"], queue=name, pieces="<|||>")

    assert queue.redis.keys() == []


def test_a_message_pushed_by_a_stock_producer_is_taken_in_its_turn(queue: QueueCase) -> None:
    # given one message of ours, one of stock Kombu's, one of ours
    anna = queue.worker()
    queue.send("1")
    queue.push_raw('{"body": "2"}')
    queue.send("3")
    # when they are taken and acknowledged
    taken = anna.take()
    anna.end(ack, taken)
    # then each came in its turn and nothing is left
    assert texts(taken) == ["1", '{"body": "2"}', "3"]
    assert leftovers(queue.client) == []


def test_an_idle_worker_finds_the_priorities_of_a_stock_producer(queue: QueueCase) -> None:
    # given a stock producer that uses a step which no publish of ours ever used
    anna = queue.worker()
    queue.push_raw('{"body": "1"}', to="orders\x06\x166")
    # when a worker that has gone idle asks twice
    anna.take(was_idle=True)
    taken = anna.take(was_idle=True)
    # then it has it
    assert [one.priority for one in taken] == [6]


@pytest.mark.parametrize("element", ["hello", "@1\nx", "", "-1", "0x10", "1e3", "[1]"])
def test_an_element_that_is_no_message_is_delivered_as_it_is(
    queue: QueueCase, element: str
) -> None:
    # given somebody who pushes rubbish onto the list, and a worker that dies of it
    queue.push_raw(element)
    assert texts(queue.worker("anna").take()) == [element]
    queue.end_lease("anna")
    # when it is recovered
    queue.recover()
    # then the next one can settle it
    berta = queue.worker("berta")
    taken = berta.take()
    berta.end(ack, taken)
    assert texts(taken) == [element]
    assert leftovers(queue.client) == []


def test_virtual_hosts_with_different_prefixes_do_not_see_each_other(
    queue: QueueCase, redis_url: str
) -> None:
    with opened(redis_url) as other:
        other.prefix = "{u}."
        queue.send("1")

        assert other.worker().take() == []
        assert queue.count("orders").ready == 1


def test_keys_carry_the_prefix_every_one(queue: QueueCase) -> None:
    # given something of everything
    anna = queue.worker("anna", "orders", "stock")
    queue.send_shared("body", "orders", "stock", sequence="Item-1", publish_id="p")
    queue.send("1", priority=3)
    queue.send("2", delay_ms=60_000)
    queue.declare("orders")
    # when some of it is taken
    anna.take(1)
    # then every key begins with the prefix, so that one hash tag holds them all
    assert all(key.startswith(b"{t}.") for key in queue.redis.scan_iter())


def test_a_client_whose_server_forgot_the_scripts_goes_on(queue: QueueCase) -> None:
    queue.send("1")
    queue.redis.script_flush()

    queue.send("2")

    assert texts(queue.worker().take()) == ["1", "2"]


@pytest.mark.parametrize("element", ["99999", "0", "007", "9" * 400, "=nobody", "="])
def test_a_number_or_a_sequence_of_nobody_that_somebody_pushed_is_a_message_of_its_own(
    queue: QueueCase, element: str
) -> None:
    # given messages, and among them what looks like the queue's own but names nothing
    queue.send("one")
    queue.push_raw(element)
    queue.send("two")
    worker = queue.worker()
    # then it comes in its place, as it is
    taken = worker.take()
    assert texts(taken) == ["one", element, "two"]
    assert len({one.id for one in taken}) == 3
    # and can be set aside, or done, like any other
    worker.end(bury, taken[1:2], '{"reason":"unreadable envelope"}')
    (letter,) = queue.letters.all("orders")
    assert letter.payload.decode() == element
    queue.letters.discard("orders", letter.id)
    worker.end(ack, [taken[0], taken[2]])
    assert not leftovers(queue.redis)


def test_the_number_of_a_message_that_is_in_line_already_is_not_that_message_again(
    queue: QueueCase,
) -> None:
    # given a message, and its number, pushed by somebody
    number = str(queue.send("one"))
    queue.push_raw(number)
    # when both are taken, then the message comes once
    assert texts(queue.worker().take()) == ["one", number]
