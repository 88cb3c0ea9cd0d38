"""The upkeep of the queues is done by one consumer, in short steps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import redis

from cqrs_celery.queue.upkeep import FORMAT, UpkeepTurn
from cqrs_celery.transport.consumer.upkeep import ROUND_S, QueueUpkeep


class Queue:
    """Queues of no server: what each recount answers, and what it was asked."""

    def __init__(self) -> None:
        self.upkeep = self
        self.turn: UpkeepTurn | Exception = UpkeepTurn(is_ours=True, old_consumers=0)
        self.format = FORMAT
        self.answers: dict[str, list[int | None]] = {}
        self.recounted: list[str] = []
        self.asked = 0

    def take(self, consumer: str, for_ms: int) -> UpkeepTurn:
        self.asked += 1
        if isinstance(self.turn, Exception):
            raise self.turn
        return self.turn

    def raise_format(self) -> int:
        return self.format

    def queues(self) -> list[str]:
        return ["mail", "orders"]

    def recount(self, queue: str, *, fresh_ms: int) -> int | None:
        self.recounted.append(queue)
        answers = self.answers.get(queue)
        return answers.pop(0) if answers else 0


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr("cqrs_celery.transport.consumer.upkeep.time.monotonic", lambda: now[0])
    return now


def keeper(queue: Any) -> QueueUpkeep:
    return QueueUpkeep(queue)


def test_each_queue_is_counted_in_a_round_and_a_round_begins_when_it_is_time(
    queue: Queue, clock: list[float]
) -> None:
    one = keeper(queue)

    for _ in range(3):
        one.step("anna")
    assert (queue.asked, queue.recounted) == (1, ["mail", "orders"])

    clock[0] += ROUND_S
    one.step("anna")
    assert (queue.asked, queue.recounted) == (2, ["mail", "orders"] * 2)


def test_a_step_ends_when_its_time_is_over_and_the_next_goes_on_there(
    queue: Queue, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a queue that takes many slices, and slices that take long
    queue.answers["mail"] = [None] * 5 + [0]
    recount = queue.recount

    def slow(name: str, *, fresh_ms: int) -> int | None:
        clock[0] += 0.15
        return recount(name, fresh_ms=fresh_ms)

    monkeypatch.setattr(queue, "recount", slow)
    one = keeper(queue)
    # when steps are made
    one.step("anna")
    assert queue.recounted == ["mail"] * 2
    for _ in range(3):
        one.step("anna")
    # then all is counted in the end
    assert queue.recounted == ["mail"] * 6 + ["orders"]


def test_nobody_counts_where_another_one_does_or_an_old_consumer_is_there(
    queue: Queue, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    one = keeper(queue)
    with caplog.at_level(logging.INFO):
        for turn in (UpkeepTurn(False, 0), UpkeepTurn(True, 2), UpkeepTurn(True, 2)):
            queue.turn = turn
            one.step("anna")
            clock[0] += ROUND_S

    assert queue.recounted == []
    (record,) = caplog.records
    assert record.getMessage().startswith("2 consumers of an older release are there")
    queue.turn = UpkeepTurn(True, 0)
    one.step("anna")
    assert queue.recounted == ["mail", "orders"]


def test_counts_that_were_off_are_logged(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    queue.answers["orders"] = [7]

    keeper(queue).step("anna")

    (record,) = caplog.records
    assert "counts of queue orders were off by 7" in record.getMessage()


def test_a_later_release_s_format_ends_the_upkeep_with_a_line(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.format = FORMAT + 1

    keeper(queue).step("anna")

    assert queue.recounted == []
    assert f"format {FORMAT + 1}" in caplog.text
    assert f"1 to {FORMAT}" in caplog.text


def test_a_full_server_is_left_alone_and_other_errors_are_not_hidden(queue: Queue) -> None:
    queue.turn = redis.OutOfMemoryError("OOM")
    keeper(queue).step("anna")
    assert queue.recounted == []

    queue.turn = redis.ConnectionError("cut")
    with pytest.raises(redis.ConnectionError):
        keeper(queue).step("anna")
