"""The thread that renews a lease survives whatever its other duties raise."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import redis

from cqrs_celery.queue.values import Beat, Exchange, Recovered, Taken
from cqrs_celery.transport import envelope
from cqrs_celery.transport.consumer import lease, lease_log, lease_threads, redriving
from cqrs_celery.transport.consumer.deliveries import tag_of
from cqrs_celery.transport.consumer.lease import LeasedConsumer
from cqrs_celery.transport.consumer.lease_threads import REST_S
from tests.waiting import wait_until

LEASE_S = 0.5

#: Stands for gevent's, which is no Exception either.
GreenletExit = type("GreenletExit", (BaseException,), {})


class Queue:
    """A queue of no server, whose operations fail where a test says so."""

    def __init__(self) -> None:
        self.client = self
        self.letters = object()
        self.errors: dict[str, BaseException] = {}
        self.counts: dict[str, int] = {}
        self.beats: list[float] = []
        self.registered = 0
        self.taken: list[Taken] = []
        self.is_exchanging, self.may_answer = threading.Event(), threading.Event()
        self.may_answer.set()
        self.may_recover = threading.Event()
        self.may_recover.set()
        self.may_beat = threading.Event()
        self.may_beat.set()
        self.answer = Beat(is_held=True, first_end_ms=0, now_ms=0)
        self.ends: dict[str, float] = {}

    def _do(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
        if name in self.errors:
            raise self.errors[name]

    def beat(self, name: str, lease_ms: int, *, register: bool = False) -> Beat:
        self._do("register" if register else "beat")
        self.beats.append(time.monotonic())
        if not register:
            assert self.may_beat.wait(30)
        return self.answer._replace(now_ms=time.time_ns() // 1_000_000)

    def consume(self, name: str, queues: Any, *, about: Any = None) -> None:
        self._do("consume")

    def settle_and_take(self, name: str, settlements: Any, **options: Any) -> Exchange:
        self._do("settle_and_take")
        self.is_exchanging.set()
        assert self.may_answer.wait(30)
        taken, self.taken = self.taken, []
        return Exchange(is_known=True, taken=taken)

    def in_flight(self, name: str) -> dict[int, int]:
        return {}

    def delete_expired(self) -> None:
        self._do("delete_expired")

    def forget_gone(self) -> None:
        self._do("forget_gone")

    def paused(self) -> list[str]:
        return []

    def recover(self, *, most_tries: int, ended: Any) -> list[Recovered]:
        self._do("recover")
        assert self.may_recover.wait(30)
        return [Recovered(name, 1, 0) for name in ended]

    def key(self, name: str) -> str:
        return name

    def time(self) -> tuple[int, int]:
        return time.time_ns() // 1_000_000_000, time.time_ns() // 1_000 % 1_000_000

    def lease_ends(self, **bounds: float) -> dict[str, float]:
        self._do("lease_ends")
        return dict(self.ends)

    def hmget(self, key: str, names: list[str]) -> list[None]:
        return [None for _ in names]

    def leave(self, name: str) -> None:
        self._do("leave")

    def close(self) -> None:
        self._do("close")


def wait_for_beats(queue: Queue, count: int = 4) -> None:
    """Wait for so many more beats, none of them later than the lease lasts."""
    at = len(queue.beats)
    wait_until(lambda: len(queue.beats) >= at + count, 20, "the lease to be renewed")
    recent = queue.beats[at:]
    assert max(b - a for a, b in pairwise(recent)) < LEASE_S


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def make_consumer(queue: Queue) -> Iterator[Callable[..., LeasedConsumer]]:
    made: list[LeasedConsumer] = []

    def make(**options: Any) -> LeasedConsumer:
        consumer: Any = LeasedConsumer(queue, lease_s=LEASE_S, max_deliveries=3, **options)  # type: ignore[arg-type]
        made.append(consumer)
        consumer.consume(["orders"])
        return consumer

    yield make
    queue.errors.clear()
    for consumer in made:
        consumer.close()


def take_one(queue: Queue, consumer: LeasedConsumer, id: int = 1) -> str:
    queue.taken = [Taken(id, 1, "orders", "", 0, 0, b"{}", b"")]
    consumer.exchange(["orders"], count=1, run=1, was_idle=False)
    taken = consumer.deliveries.next_ready()
    assert taken is not None
    return tag_of(taken)


@pytest.mark.parametrize(
    "error",
    [ValueError("a bug"), SystemExit(3), redis.ResponseError("ERR a script's bug")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("duty", ["delete_expired", "look_after", "recover"])
def test_the_lease_is_renewed_though_another_duty_fails_each_time(
    queue: Queue,
    make_consumer: Callable[..., LeasedConsumer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    duty: str,
    error: BaseException,
) -> None:
    # given a consumer for which there is something to do at each beat, which fails
    calls = []

    def look_after(letters: Any) -> None:
        calls.append(letters)
        if duty == "look_after":
            raise error

    monkeypatch.setattr(redriving, "look_after", look_after)
    if duty != "look_after":
        queue.errors[duty] = error
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1, expired_queues=1, letters_due=1)
    queue.ends = {"dead": 1.0}
    caplog.set_level(logging.INFO)
    consumer = make_consumer()
    # when it beats
    wait_for_beats(queue, 6)
    wait_until(lambda: "could not" in caplog.text, message="the failure")
    # then its thread lives, the other duties are done, and the error is told with its traceback
    assert consumer.threads.renewing is not None
    assert consumer.threads.renewing.is_alive()
    assert calls
    assert queue.counts["delete_expired"] > 1
    told = [one for one in caplog.records if "could not" in one.message]
    assert told[0].message.endswith(f"(failure 1): {type(error).__name__}: {error}")
    assert bool(told[0].exc_info) is not isinstance(error, redis.RedisError)
    assert not any(one.exc_info for one in told[1:])
    # and when it works again, that is told too
    queue.errors.clear()
    duty = ""
    wait_until(lambda: "again after" in caplog.text, message="the good news")


def test_what_is_refused_each_time_keeps_nobody_from_finding_the_dead(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a full server, which refuses one of the duties at each beat
    def look_after(letters: Any) -> None:
        raise redis.exceptions.OutOfMemoryError("used memory > 'maxmemory'")

    monkeypatch.setattr(redriving, "look_after", look_after)
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1, letters_due=1)
    queue.ends = {"dead": 1.0}
    # when a consumer is dead, then it is recovered all the same
    make_consumer()
    wait_until(lambda: queue.counts.get("recover"), message="the recovery")


def test_the_lease_is_renewed_while_a_recovery_takes_long(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given a consumer that recovers what a dead one held, which does not end
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1)
    queue.ends = {"dead": 1.0}
    queue.may_recover.clear()
    make_consumer()
    wait_until(lambda: queue.counts.get("recover"), message="the recovery")
    # then its beats come on time
    try:
        wait_for_beats(queue, 6)
        assert queue.counts["recover"] == 1
    finally:
        queue.may_recover.set()


def test_the_lease_is_renewed_while_a_settlement_gets_no_answer(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given something that is done, and a queue that does not answer when it is told so
    consumer = make_consumer()
    tag = take_one(queue, consumer)
    queue.is_exchanging.clear()
    queue.may_answer.clear()
    consumer.deliveries.ack(tag)
    assert queue.is_exchanging.wait(30)
    # then its beats come on time
    try:
        wait_for_beats(queue, 6)
    finally:
        queue.may_answer.set()


def test_a_beat_that_fails_is_repeated_soon(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given a consumer with a long lease whose beat has failed
    consumer: Any = LeasedConsumer(queue, lease_s=6, max_deliveries=3)  # type: ignore[arg-type]
    queue.errors["beat"] = redis.ConnectionError("away")
    consumer.consume(["orders"])
    try:
        wait_until(lambda: queue.counts.get("beat"), 20, "the beat")
        tried = time.monotonic()
        # when the server is back
        queue.errors.clear()
        # then it is not waited for the next regular one
        wait_until(lambda: len(queue.beats) > 1, 20, "the next beat")
        assert time.monotonic() - tried < consumer.lease_s / 4
    finally:
        consumer.close()


def test_a_consumer_that_leaves_ends_what_it_is_recovering(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given a consumer in the midst of a recovery
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1)
    queue.ends = {"dead": 1.0}
    queue.may_recover.clear()
    consumer = make_consumer()
    wait_until(lambda: queue.counts.get("recover"), message="the recovery")
    # when it is closed
    closing = threading.Thread(target=consumer.close)
    closing.start()
    wait_until(consumer.threads.stop.is_set, message="the end")
    # then its client is closed after the recovery
    assert "close" not in queue.counts
    queue.may_recover.set()
    closing.join(30)
    assert queue.counts["close"] == 1


def test_what_others_held_is_recovered_though_the_letters_cannot_be_looked_after(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "look_after", lambda letters: 1 / 0)
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1, letters_due=1)
    queue.ends = {"dead": 1.0}
    make_consumer()
    wait_until(lambda: queue.counts.get("recover"), message="the recovery")


def test_the_lease_is_renewed_while_very_many_letters_are_due(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given many slices of letters, each of which takes a while, and all together a lease
    slices = iter(range(20))
    beats_before: list[int] = []

    def look_after(letters: Any) -> bool:
        beats_before.append(len(queue.beats))
        threading.Event().wait(LEASE_S / 20)
        return next(slices, None) is not None

    monkeypatch.setattr(redriving, "look_after", look_after)
    queue.answer = Beat(is_held=True, first_end_ms=10**9, now_ms=0, letters_due=1)
    make_consumer()
    # when they are looked after
    wait_until(lambda: len(beats_before) > 20, 20, "the letters")
    # then several follow one beat, and the lease is renewed in between
    assert max(Counter(beats_before).values()) > 1
    assert len(set(beats_before)) > 1
    wait_for_beats(queue)


@pytest.mark.parametrize("error", [ValueError("a bug"), redis.ResponseError("ERR no such thing")])
def test_the_lease_is_renewed_though_settlements_cannot_be_sent_and_they_are_sent_in_the_end(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], error: Exception
) -> None:
    # given something that is done, which the queue does not take
    consumer = make_consumer()
    tag = take_one(queue, consumer)
    queue.errors["settle_and_take"] = error
    consumer.deliveries.ack(tag)
    # when time passes
    wait_for_beats(queue)
    # then the lease is renewed, and the settlement is sent once the queue takes it
    assert consumer.deliveries.settled_at is not None
    queue.errors.clear()
    wait_until(lambda: consumer.deliveries.settled_at is None, message="the settlement")


def test_the_lease_is_renewed_though_the_event_loop_cannot_be_told(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise AttributeError("the connection is closed")

    # given two messages, of which one is done, and an event loop that is not to be reached
    consumer = make_consumer()
    tag = take_one(queue, consumer)
    queue.taken = [Taken(2, 1, "orders", "", 0, 0, b"{}", b"")]
    consumer.exchange(["orders"], count=1, run=1, was_idle=False)
    consumer.deliveries.ack(tag)
    consumer.deliveries.on_settled = fail
    # when the thread has sent that
    wait_until(lambda: "tell the event loop" in caplog.text, message="the failure")
    # then it goes on
    wait_for_beats(queue)


def test_the_lease_is_renewed_though_nothing_can_be_logged(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a logger that fails, and much to log
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("the log's disk is full")

    for module in (lease, lease_log, lease_threads):
        for name in ("log", "info", "warning", "error", "critical"):
            monkeypatch.setattr(module.logger, name, fail)
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=1, expired_queues=1)
    queue.errors["delete_expired"] = ValueError("a bug")
    make_consumer()
    wait_for_beats(queue, 6)


def test_a_lost_lease_is_taken_anew_though_what_was_lost_cannot_be_logged(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a message whose task can't be told
    def fail(taken: Taken) -> str:
        raise TypeError("no task")

    monkeypatch.setattr(envelope, "task_of", fail)
    consumer = make_consumer()
    take_one(queue, consumer)
    assert queue.counts["register"] == 1
    # when the lease is lost
    queue.answer = Beat(is_held=False, first_end_ms=0, now_ms=0)
    # then the consumer registers again
    wait_until(lambda: queue.counts["register"] > 1, message="the new lease")
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=0)
    wait_for_beats(queue)


def test_a_loss_that_is_heard_of_again_before_there_is_a_new_lease_is_one_error(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    # given a consumer that holds a message, and can't register
    caplog.set_level(logging.INFO)
    consumer = make_consumer()
    tag = take_one(queue, consumer)
    queue.errors["register"] = redis.TimeoutError("no answer")
    # when it hears of its loss more than once
    queue.answer = Beat(is_held=False, first_end_ms=0, now_ms=0)
    wait_until(lambda: queue.counts["register"] > 3, message="attempts to register")
    # then one error says what was lost
    told = [one for one in caplog.records if one.message.startswith("lease lost: ")]
    assert [one.levelname for one in told][:2] == ["ERROR", "INFO"]
    assert {one.levelname for one in told[1:]} == {"INFO"}
    assert "held 1" in told[0].message
    assert not consumer.deliveries.has(tag)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_something_has_ended_is_told_of_and_started_again(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    # given a thread that was ended by what only means to end it
    consumer = make_consumer()
    thread = consumer.threads.renewing
    assert thread is not None
    queue.errors["beat"] = GreenletExit()
    wait_until(lambda: not thread.is_alive(), message="the end of the thread")
    assert "was ended" in caplog.text
    # when the loop turns
    queue.errors.clear()
    consumer.exchange(["orders"], count=1, run=1, was_idle=False)
    # then there is another, without a new registration
    wait_for_beats(queue)
    assert queue.counts["register"] == 1


def test_without_a_thread_nothing_is_taken_and_the_next_turn_tries_again(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a machine that has no thread left
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        # when a consumer is to consume, then it raises what counts as an error of the connection
        with pytest.raises(OSError, match="no thread could be started"):
            make_consumer()
    # and has left again, and the next one can
    assert queue.counts["leave"] == 1
    assert "settle_and_take" not in queue.counts
    make_consumer()
    wait_for_beats(queue)


def test_the_thread_does_not_leave_while_what_is_given_back_at_the_end_is_being_sent(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given a channel that is being closed, and gives back what has not begun
    consumer = make_consumer()
    take_one(queue, consumer)
    thread = consumer.threads.renewing
    assert thread is not None
    queue.is_exchanging.clear()
    queue.may_answer.clear()
    closing = threading.Thread(target=consumer.close)
    closing.start()
    assert queue.is_exchanging.wait(30)
    # when the lease's thread, for which nothing is left to do, looks meanwhile
    wait_until(
        lambda: not (consumer.deliveries or consumer.deliveries.settled_at), message="an empty hand"
    )
    consumer.threads.stop.wait(2 * REST_S)
    # then the connection is left open until the queue has answered, and closed once
    assert "leave" not in queue.counts
    assert "close" not in queue.counts
    queue.may_answer.set()
    closing.join(30)
    thread.join(30)
    assert queue.counts["leave"] == queue.counts["close"] == 1


def test_what_the_queue_could_not_be_told_after_a_loss_it_is_told_with_the_next_beat(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer]
) -> None:
    # given a consumer that has lost its lease, and registers while the queue hears no more of it
    consumer = make_consumer()
    consumer.consume(["orders"])
    told = queue.counts["consume"]
    queue.errors["consume"] = redis.TimeoutError("no answer")
    queue.answer = Beat(is_held=False, first_end_ms=0, now_ms=0)
    wait_until(lambda: queue.counts["register"] > 1, message="the new lease")
    wait_until(lambda: queue.counts["consume"] > told, message="an attempt to tell the queue")
    queue.answer = Beat(is_held=True, first_end_ms=0, now_ms=0)
    # when the queue answers again
    del queue.errors["consume"]
    tried = queue.counts["consume"]
    # then it is told what the consumer is
    wait_until(lambda: queue.counts["consume"] > tried, message="the news")


def test_a_beat_under_way_as_its_consumer_leaves_finds_no_loss(
    queue: Queue, make_consumer: Callable[..., LeasedConsumer], caplog: pytest.LogCaptureFixture
) -> None:
    # given a beat that has reached a queue which the consumer has just left
    caplog.set_level(logging.INFO)
    consumer = make_consumer()
    queue.may_beat.clear()
    wait_until(lambda: "beat" in queue.counts, message="a beat under way")
    thread = consumer.threads.renewing
    assert thread is not None
    consumer.close()
    assert queue.counts["leave"] == 1
    # when it is answered
    queue.answer = Beat(is_held=False, first_end_ms=0, now_ms=0)
    queue.may_beat.set()
    thread.join(30)
    # then nothing is said to be lost
    assert "lease lost" not in caplog.text
    assert consumer.deliveries.losses == 0
