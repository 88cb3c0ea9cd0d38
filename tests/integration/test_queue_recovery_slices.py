"""What a dead consumer held comes back in slices; a recovery that breaks off is gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from cqrs_celery.queue import recovery
from cqrs_celery.queue.values import Recovered, ack
from tests.queues import LEASE_MS, QueueCase, opened, texts


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


class Calls:
    """The slices that were given back, which may be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, most: int = 1_000_000) -> None:
        self.most = most
        self.sizes: list[int] = []
        self._run = recovery._recover
        monkeypatch.setattr(recovery, "_recover", self)

    def __call__(self, client: Any, keys: list[str], args: list[Any]) -> Any:
        if len(self.sizes) >= self.most:
            raise redis.ConnectionError("away")
        flat: Any = self._run(client, keys, args)
        self.sizes.append(sum(map(int, flat[1::3])))
        return flat


def remainder(queue: QueueCase) -> str:
    """Return the name of the one consumer that is left of a recovery."""
    (name,) = [name for name in queue.lease_ends() if "+" in name]
    return name


def test_no_script_gives_back_more_than_a_slice(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that holds many slices of plain messages and sequences
    queue.send_many(3_000)
    for number in range(100):
        queue.send("a", "b", to="stock", sequence=f"Item-{number}")
    anna = queue.worker("anna", "orders", "stock", slots=1)
    anna.take(5_000, run=2)
    queue.end_lease("anna")
    calls = Calls(monkeypatch)
    # when it is recovered
    assert queue.recover() == [Recovered("anna", 3_200, 0)]
    # then each call has given back a few, all of them stand in their order, and no trace is left
    assert max(calls.sizes) <= recovery.SLICE
    assert sum(calls.sizes) == 3_200
    taken = queue.worker("berta").take(5_000)
    assert texts(taken) == [str(n) for n in range(3_000)]
    assert [one.tries for one in taken] == [1] + [0] * 2_999
    queue.leave("berta")
    assert "anna" not in "".join(map(str, queue.redis.keys()))


def test_two_dead_workers_messages_mix_in_their_order_over_many_slices(queue: QueueCase) -> None:
    # given two workers that hold every other message of many slices
    queue.send_many(3_000)
    anna, berta = queue.worker("anna"), queue.worker("berta")
    for _ in range(15):
        anna.take(100)
        berta.take(100)
    queue.end_lease("anna", "berta")
    # when both are recovered
    queue.recover()
    # then all stand as they were published
    assert texts(queue.worker("clara").take(3_000)) == [str(n) for n in range(3_000)]


def test_whoever_finds_a_recovery_broken_off_goes_on_with_it(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a recovery that has given back one slice of four, and then its server was away
    queue.send_many(2_000)
    anna = queue.worker("anna", slots=1)
    taken = anna.take(2_000)
    queue.end_lease("anna")
    with monkeypatch.context() as broken:
        Calls(broken, most=1)
        with pytest.raises(redis.ConnectionError):
            queue.recover(most_tries=2)
    # then the consumer is gone, what is left is held by the remainder, and nobody else takes it yet
    assert anna.end(ack, taken[:1]).refused == (taken[0].id,)
    assert queue.recover() == []
    assert len(queue.in_flight(remainder(queue))) == 2_000 - recovery.SLICE
    # when somebody finds that the remainder has ended
    queue.end_lease(remainder(queue))
    assert queue.recover(most_tries=2) == [Recovered("anna", 2_000 - recovery.SLICE, 0)]
    # then each message is there once, in order, and the first alone has counted
    again = queue.worker("berta").take(3_000)
    assert texts(again) == [str(n) for n in range(2_000)]
    assert [one.tries for one in again] == [1] + [0] * 1_999


def test_a_recovery_that_broke_off_charges_nobody_else_when_it_goes_on(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a recovery that has charged the oldest of two queues, and broke off behind its sequence
    queue.send("a", to="stock", sequence="Item-1")
    anna = queue.worker("anna", "orders", "stock", slots=1)
    anna.take(1, queues=["stock"])
    queue.send_many(1_000)
    anna.take(1_000)
    queue.end_lease("anna")
    with monkeypatch.context() as broken:
        Calls(broken, most=1)
        with pytest.raises(redis.ConnectionError):
            queue.recover()
    assert queue.redis.hgetall(queue.key("tries")) == {b"1": b"1"}
    # when another one goes on with what is left, of which another message is the oldest
    queue.end_lease(remainder(queue))
    queue.recover()
    # then nothing else counts
    assert queue.redis.hgetall(queue.key("tries")) == {b"1": b"1"}


def test_what_two_recover_at_once_comes_back_once(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a dead worker with many slices
    queue.send_many(1_200)
    queue.worker("anna", slots=1).take(1_200)
    queue.end_lease("anna")
    run = recovery._recover
    others: list[Recovered | None] = []

    def interrupted(client: Any, keys: list[str], args: list[Any]) -> Any:
        flat = run(client, keys, args)
        if not others:
            # when somebody else takes the remainder over in the midst
            others.append(None)
            queue.end_lease(remainder(queue))
            others.extend(queue.recover())
        return flat

    monkeypatch.setattr(recovery, "_recover", interrupted)
    (mine,) = queue.recover()
    # then both together have given back each message once, and one was charged once
    assert mine.messages == recovery.SLICE
    assert others[1:] == [Recovered("anna", 1_200 - recovery.SLICE, 0)]
    taken = queue.worker("berta").take(3_000)
    assert texts(taken) == [str(n) for n in range(1_200)]
    assert [one.tries for one in taken] == [1] + [0] * 1_199


def test_a_lease_that_was_renewed_since_it_was_seen_to_end_is_left_alone(queue: QueueCase) -> None:
    # given a worker whose lease was seen to have ended
    queue.send("1")
    anna = queue.worker("anna")
    taken = anna.take()
    queue.end_lease("anna")
    seen = queue.lease_ends()
    # when it beats before it is recovered
    queue.beat("anna", LEASE_MS)
    # then it keeps what it holds
    assert queue.recover(ended=seen) == []
    assert anna.end(ack, taken).refused == ()


def test_what_leaves_with_many_slices_counts_nothing_though_it_breaks_off(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that leaves, and whose server is away in the midst of that
    queue.send_many(1_200)
    queue.worker("anna", slots=1).take(1_200)
    with monkeypatch.context() as broken:
        Calls(broken, most=1)
        with pytest.raises(redis.ConnectionError):
            queue.leave("anna")
    # when another one goes on
    queue.end_lease(remainder(queue))
    queue.recover()
    # then nothing counts a delivery
    assert not queue.redis.exists(queue.key("tries"))
    assert len(queue.worker("berta").take(3_000)) == 1_200


def test_a_worker_that_was_ended_holds_nothing_of_it_under_its_new_lease(
    queue: QueueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a recovery that broke off before it gave anything back
    queue.send_many(1_200)
    anna = queue.worker("anna")
    anna.take(1_200)
    queue.end_lease("anna")
    with monkeypatch.context() as broken:
        Calls(broken, most=0)
        with pytest.raises(redis.ConnectionError):
            queue.recover()
    # when the worker was only frozen, is told, and registers again
    assert not queue.beat("anna", LEASE_MS).is_held
    queue.beat("anna", LEASE_MS, register=True)
    # then what it had is none of its own, and comes to it as to anybody
    assert queue.in_flight("anna") == {}
    queue.end_lease(remainder(queue))
    queue.recover()
    assert len(anna.take(3_000)) == 1_200
