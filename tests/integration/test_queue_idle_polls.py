"""An idle consumer finds by itself what no wake-up has told it of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cqrs_celery.queue.polling import MOST_QUEUES, IdlePoll
from tests.queues import Ears, QueueCase, Worker, counted, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


#: Of consumers: so few that all of their queues are looked at in one poll, or more.
COUNTS = [1, MOST_QUEUES, 3 * MOST_QUEUES]

#: Of polls, in which every queue is looked at.
ROUND = 3


def named(count: int) -> list[str]:
    return [f"queue-{n}" for n in range(count)]


def idle(queue: QueueCase, name: str, *queues: str) -> tuple[Worker, IdlePoll]:
    """Start a consumer that found nothing and waits."""
    worker = queue.worker(name, *queues)
    assert worker.take() == []
    return worker, IdlePoll(queue, name)


@pytest.mark.parametrize("count", COUNTS)
def test_where_nothing_is_a_poll_finds_nothing(queue: QueueCase, count: int) -> None:
    worker, poll = idle(queue, "anna", *named(count))
    queue.send("1", to="elsewhere")
    queue.send("2", to="elsewhere", delay_ms=60_000)

    assert not any(poll.may_take(worker.queues) for _ in range(2 * ROUND))


def test_a_poll_of_few_queues_is_one_command(queue: QueueCase) -> None:
    worker, poll = idle(queue, "anna", *named(MOST_QUEUES))

    with counted(queue) as calls:
        assert not poll.may_take(worker.queues)

    assert calls == {"exists": 1}


def test_a_poll_costs_the_same_however_many_queues_there_are(queue: QueueCase) -> None:
    worker, poll = idle(queue, "anna", *named(2_000))
    queue.send("1", to="elsewhere", delay_ms=60_000)
    assert not poll.may_take(worker.queues)

    with counted(queue) as calls:
        assert not poll.may_take(worker.queues)

    assert sum(calls.values()) == 8, calls


@pytest.mark.parametrize("count", COUNTS)
def test_what_is_due_is_found_whose_ever_it_is(queue: QueueCase, count: int) -> None:
    # given something that is due in a queue without consumers, and in one of somebody else's
    worker, poll = idle(queue, "anna", *named(count))
    queue.send("1", to="elsewhere", delay_ms=60_000)
    assert not poll.may_take(worker.queues)
    queue.make_due()
    # when it is looked for
    assert poll.may_take(worker.queues)
    # then a take puts it in line
    assert worker.take(was_idle=True) == []
    assert queue.count_of("elsewhere") == {"ready": 1}
    assert not poll.may_take(worker.queues)


@pytest.mark.parametrize("count", COUNTS)
def test_what_somebody_was_woken_for_who_never_came_is_found(queue: QueueCase, count: int) -> None:
    # given consumers that were stopped, and one that was not, all of which wait
    queues = named(count)
    stopped = [f"stopped-{n}" for n in range(20)]
    ears = Ears(queue, *stopped)
    for name in stopped:
        idle(queue, name, *queues)
    worker, poll = idle(queue, "anna", *queues)
    # when something comes, and one of those that were stopped is woken
    tag = 0
    while not ears.heard():
        worker.take(was_idle=True)
        assert worker.take() == []
        queue.send(str(tag := tag + 1), to=queues[-1])
    # then the other one finds it
    assert poll.may_take(worker.queues)
    assert texts(worker.take(was_idle=True)) == [str(tag)]
    assert worker.take() == []
    assert not any(poll.may_take(worker.queues) for _ in range(ROUND))
    ears.close()


@pytest.mark.parametrize("step", [0, 3, 6, 9])
@pytest.mark.parametrize("count", COUNTS)
def test_what_a_stock_producer_pushed_is_found_in_a_round_of_polls(
    queue: QueueCase, count: int, step: int
) -> None:
    queues = named(count)
    worker, poll = idle(queue, "anna", *queues)

    queue.push_raw("{}", to=queues[count // 2] + (f"\x06\x16{step}" if step else ""))

    polls = 1 if count <= MOST_QUEUES else ROUND
    assert any(poll.may_take(worker.queues) for _ in range(polls))
    # at the second take, where nobody knew that such a queue has priorities
    first = worker.exchange(was_idle=True)
    assert texts(first.taken) == ["{}"] if step == 0 else first.due_in_ms == 0
    assert step == 0 or texts(worker.take(was_idle=True)) == ["{}"]


def test_a_queue_that_stock_producers_use_is_looked_at_in_each_poll(queue: QueueCase) -> None:
    # given a queue of very many in which a message of a stock producer was found
    queues = named(20 * MOST_QUEUES)
    worker, poll = idle(queue, "anna", *queues)
    queue.push_raw("1", to=queues[-1])
    assert texts(worker.take(was_idle=True)) == ["1"]
    assert worker.take() == []
    assert not poll.may_take(worker.queues)
    # when one more comes
    queue.push_raw("2", to=queues[-1])
    # then the next poll finds it
    assert poll.may_take(worker.queues)


def test_one_of_many_queues_who_did_not_hear_its_wake_up_looks(queue: QueueCase) -> None:
    # given a consumer of very many queues, woken for something that somebody else has taken
    queues = named(3 * MOST_QUEUES)
    worker, poll = idle(queue, "anna", *queues)
    ears = Ears(queue, "anna")
    queue.send("1", to=queues[0])
    assert ears.heard() == [("anna", queues[0])]
    assert texts(queue.worker("berta", *queues).take()) == ["1"]
    # when it has not heard of that
    assert poll.may_take(worker.queues)
    # then it looks, and waits again
    assert worker.take(was_idle=True) == []
    assert not poll.may_take(worker.queues)
    ears.close()


@pytest.mark.parametrize("count", COUNTS)
def test_what_was_taken_costs_the_next_poll_and_no_other(queue: QueueCase, count: int) -> None:
    # given a consumer that was woken for something that a busy one has taken
    queues = named(count)
    ears = Ears(queue, "anna")
    worker, poll = idle(queue, "anna", *queues)
    queue.send("1", to=queues[0])
    assert len(queue.worker("berta", *queues).take()) == 1
    assert worker.take(was_idle=True) == []
    # when it polls
    assert not poll.may_take(worker.queues)
    # then that is forgotten
    assert not queue.redis.exists(queue.key("called"))
    ears.close()


def expire(queue: QueueCase) -> None:
    queue.redis.zadd(queue.key("expiring"), {"replies": 1})
    assert queue.delete_expired() == ["replies"]


@pytest.mark.parametrize("end", [lambda queue: queue.delete("replies"), expire])
def test_of_a_queue_that_is_gone_nothing_is_kept(
    queue: QueueCase, end: Callable[[QueueCase], None]
) -> None:
    # given a queue for which a consumer was woken, with messages of a stock producer
    queue.declare("replies", expires_ms=1_000)
    ears = Ears(queue, "anna")
    worker, _ = idle(queue, "anna", "replies")
    queue.push_raw("1", to="replies")
    queue.send("2", to="replies")
    assert len(worker.take(was_idle=True)) == 2
    queue.send("3", to="replies")
    assert worker.take() != []
    assert worker.take() == []
    queue.send("4", to="replies")
    assert ears.heard() == [("anna", "replies")]
    assert queue.redis.exists(queue.key("called"), queue.key("raw")) == 2
    # when its consumer has left, and it is deleted
    queue.leave("anna")
    end(queue)
    # then nothing names it
    for name in ("called", "raw", "queues", "idle:replies"):
        assert not queue.redis.exists(queue.key(name)), name
    ears.close()
