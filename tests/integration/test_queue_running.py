"""What is shown as running is what would count a delivery if its worker died now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cqrs_celery.queue.inspection import About, QueueInspector, read_about
from cqrs_celery.queue.values import ack
from tests.queues import QueueCase, opened

Setting = Callable[[QueueCase], None]


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def plain_ones(queue: QueueCase) -> None:
    queue.send(*"12345")
    queue.worker("anna", slots=2).take(5)


def no_known_slots(queue: QueueCase) -> None:
    queue.send(*"123")
    queue.worker("anna").take(3)


def the_next_of_a_sequence(queue: QueueCase) -> None:
    queue.send("a1", "a2", "a3", sequence="A")
    anna = queue.worker("anna", slots=1)
    first, *_ = anna.take(1, run=3)
    anna.end(ack, [first])


def two_sequences_and_no_known_slots(queue: QueueCase) -> None:
    for sequence in "AB":
        queue.send("1", "2", sequence=sequence)
    queue.worker("anna").take(2, run=2)


def a_batch_and_a_plain_one_behind(queue: QueueCase) -> None:
    queue.send(*"123", to="many")
    queue.send("plain")
    anna = queue.worker("anna", "many", "orders", slots=1, batches={"many": 3})
    anna.take(2, queues=["many", "orders"], batches={"many": 3})


def a_plain_one_and_a_batch_behind(queue: QueueCase) -> None:
    queue.send("plain")
    queue.send(*"123", to="many")
    anna = queue.worker("anna", "orders", "many", slots=1, batches={"many": 3})
    anna.take(2, queues=["orders", "many"], batches={"many": 3})


def a_batch_whose_messages_were_delivered_before(queue: QueueCase) -> None:
    queue.send(*"123", to="many")
    queue.worker("berta", "many").take(3)
    queue.end_lease("berta")
    queue.recover()
    anna = queue.worker("anna", "many", slots=1, batches={"many": 3})
    anna.take(1, batches={"many": 3})


@pytest.mark.parametrize(
    "setting",
    [
        plain_ones,
        no_known_slots,
        the_next_of_a_sequence,
        two_sequences_and_no_known_slots,
        a_batch_and_a_plain_one_behind,
        a_plain_one_and_a_batch_behind,
        a_batch_whose_messages_were_delivered_before,
    ],
)
def test_running_is_what_a_death_would_count(queue: QueueCase, setting: Setting) -> None:
    # given a worker that holds messages
    setting(queue)
    (anna,) = (one for one in QueueInspector(queue).holdings() if one.consumer == "anna")
    before = {int(one): int(n) for one, n in queue.redis.hgetall(queue.key("tries")).items()}
    queues = {
        int(one): entry.split(b"|", 3)[3].partition(b"\x1f")[0].decode()
        for one, entry in queue.redis.hgetall(queue.key("flight:anna")).items()
    }
    # when it dies
    queue.end_lease("anna")
    queue.recover()
    # then what counts a delivery was shown as running
    after = {int(one): int(n) for one, n in queue.redis.hgetall(queue.key("tries")).items()}
    counted = [one for one, tries in after.items() if tries > before.get(one, 0)]
    assert counted
    assert anna.messages.total() == len(queues)
    assert anna.running == {
        name: sum(queues[one] == name for one in counted) for name in {*map(queues.get, counted)}
    }
    for name, lowest in anna.oldest_running.items():
        assert lowest == min(one for one in counted if queues[one] == name)
    prefetched = queues.keys() - counted
    assert anna.oldest_prefetched == {
        name: min(one for one in prefetched if queues[one] == name)
        for name in {queues[one] for one in prefetched}
    }


def test_what_waits_behind_what_is_held_is_found(queue: QueueCase) -> None:
    queue.send("plain")
    second = queue.send("a1", "a2", "a3", sequence="A") - 1
    queue.send("b1", "b2", sequence="B")
    queue.worker("anna").take(3, run=1)
    (anna,) = QueueInspector(queue).holdings()
    assert anna.oldest_behind == {"orders": second}


@pytest.mark.parametrize("about", ["", "[]", "{", '"x"', '{"slots": "x", "batches": 3, "pid": {}}'])
def test_what_is_known_of_a_consumer_may_be_anything(queue: QueueCase, about: str) -> None:
    # given a consumer of which nothing is known that can be read
    queue.send(*"12")
    queue.worker("anna", slots=1).take(2)
    queue.redis.hset(queue.key("about"), "anna", about)
    # then all that it holds counts as running
    (anna,) = QueueInspector(queue).holdings()
    assert (anna.about, anna.running) == (About(), {"orders": 2})


def test_what_can_be_read_of_a_consumer_is() -> None:
    told = b'{"worker":"w@h","host":"h","pid":7,"slots":2,"batches":{"a":3,"b":"x"},"more":1}'
    assert read_about(told) == About("w@h", "h", 7, 2, {"a": 3})


def test_a_consumer_whose_lease_has_ended_consumes_nothing(queue: QueueCase) -> None:
    queue.worker("anna")
    (anna,) = QueueInspector(queue).holdings()
    assert (anna.is_live, anna.consumes("orders"), anna.consumes("mail")) == (True, True, False)
    queue.end_lease("anna")
    (anna,) = QueueInspector(queue).holdings()
    assert (anna.is_live, anna.consumes("orders")) == (False, False)
