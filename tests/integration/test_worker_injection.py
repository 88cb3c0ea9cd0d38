"""What handlers are given in workers of each pool: values of their own, closed after a commit."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import bureau
from tests.bureau import Blot, BlotSoon, Write, WriteSoon
from tests.integration.conftest import WorkerFactory
from tests.nodes import WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

#: How many commands of each kind are sent.
MANY = 8

WELL = ("opened", "used", "closed well after a commit")
COMMANDS = {"tests.bureau.write", "tests.bureau.write_soon"}
COPIES = {"tests.bureau.copy", "tests.bureau.copy_soon"}
BATCHES = {"tests.bureau.file_copies", "tests.bureau.file_copies_soon"}

pools = pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
kinds = pytest.mark.parametrize("cls", [Write, WriteSoon])


@pytest.fixture
def client(redis_url: str) -> Iterator[CQRS]:
    """Give a client of the bureau."""
    with bureau.connected(redis_url) as cqrs:
        yield cqrs


def start(factory: WorkerFactory, url: str, pool: str, **options: Any) -> WorkerNode:
    return factory(
        "from tests.bureau import app",
        pool=pool,
        concurrency=2,
        arguments=("--without-mingle", "--without-gossip"),
        env={"BUREAU_URL": url},
        **options,
    )


def pens(data: Any) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """Return what happened to each pen, by handler, message and id."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = defaultdict(tuple)
    for line in map(json.loads, data.lrange("bureau:story", 0, -1)):
        found[line["handler"], line["cause"], line["pen"]] += (line["what"],)
    return found


def of(data: Any, handlers: set[str]) -> list[tuple[str, ...]]:
    """Return what happened to each pen of some handlers."""
    return [story for (handler, _, _), story in pens(data).items() if handler in handlers]


def waiting(data: Any) -> list[str]:
    """Return which of the batches' queues hold what no worker has taken."""
    queue = ReliableQueue(data)
    return [name for name in BATCHES if any(queue.count(name.removeprefix("tests.")))]


@pools
def test_each_handling_has_values_of_its_own_that_are_closed_after_its_commit(
    pool: str, redis_url: str, client: CQRS, data: Any, worker_factory: WorkerFactory
) -> None:
    # given commands to handlers that are sync, and async with two values
    worker = start(worker_factory, redis_url, pool)
    kinds = (Write, WriteSoon)
    sent = [client.send_command(cls(id=f"{cls.__name__}{n}")) for cls in kinds for n in range(MANY)]
    # when they are carried out, their events handled twice, and what that commits filed in batches
    used = [result.get(timeout=40)["value"] for result in sent]
    wait_until(lambda: len(of(data, COPIES)) == 2 * MANY * 3, 30, "the subscriptions")
    wait_until(lambda: all(len(one) == 3 for one in of(data, COPIES | COMMANDS)), 20, "their ends")
    # then each has had a value for itself
    assert len(set(used)) == len(sent)
    assert Counter(of(data, COMMANDS)) == {WELL: MANY + 2 * MANY}
    # as the subscriptions have, sync and async
    assert Counter(of(data, COPIES)) == {WELL: 2 * MANY * 3}
    # and the batches, which commit nothing
    wait_until(lambda: not waiting(data), 20, "the batches to be taken")
    wait_until(lambda: not in_flight(data), 20, "the end of the batches")
    assert {handler for handler, _, _ in pens(data)} == COMMANDS | COPIES | BATCHES
    assert set(of(data, BATCHES)) == {("opened", "used", "closed well without a commit")}
    # and nothing went wrong
    worker.stop()
    assert "Traceback" not in worker.logs()
    assert not [line for line in worker.logs().splitlines() if "ERROR" in line], worker.logs()


@pools
@kinds
def test_what_a_handler_raises_is_told_to_its_values_and_nothing_is_committed(
    pool: str,
    cls: type[Write],
    redis_url: str,
    client: CQRS,
    data: Any,
    worker_factory: WorkerFactory,
) -> None:
    start(worker_factory, redis_url, pool)
    with pytest.raises(LookupError, match="a: out of ink"):
        client.send_command(cls(id="a", fails=True)).get(timeout=20)
    number = 2 if cls is WriteSoon else 1
    assert (
        of(data, COMMANDS) == [("opened", "used", "closed LookupError without a commit")] * number
    )
    # and the next one goes on, with others
    assert client.send_command(cls(id="a")).get(timeout=20)["position"] == 1
    assert Counter(of(data, COMMANDS))[WELL] == number


@pools
@kinds
def test_a_repetition_after_a_conflict_has_values_of_its_own(
    pool: str,
    cls: type[Write],
    redis_url: str,
    client: CQRS,
    data: Any,
    worker_factory: WorkerFactory,
) -> None:
    # given a command that others get ahead of, twice
    start(worker_factory, redis_url, pool)
    sent = client.send_command(cls(id="a", rivals=2))
    # when it is carried out at the third time
    value = sent.get(timeout=20)["value"]
    # then each time has had its own, and the last ones alone have seen a commit
    number = 2 if cls is WriteSoon else 1
    lost = ("opened", "used", "closed ConcurrencyError without a commit")
    assert Counter(of(data, COMMANDS)) == {lost: 2 * number, WELL: number}
    assert pens(data)[handler_of(cls), sent.id, value] == WELL


@pytest.mark.parametrize("cls", [Blot, BlotSoon])
def test_a_soft_time_limit_while_a_value_is_closed_leaves_the_commit_as_it_is(
    cls: type[Blot], redis_url: str, client: CQRS, data: Any, worker_factory: WorkerFactory
) -> None:
    # given a value that takes too long to close
    worker = start(worker_factory, redis_url, "prefork")
    # when its handler has committed, the result says so, and the log what was raised
    assert client.send_command(cls(id="a")).get(timeout=20)["position"] == 1
    text = "raised SoftTimeLimitExceeded at closing; its commit stands"
    wait_until(lambda: text in worker.logs(), 10, "the line in the log")
    # and when it has committed nothing, that is the command's outcome
    with pytest.raises(Exception, match="SoftTimeLimitExceeded"):
        client.send_command(cls(id="a", commits=False)).get(timeout=20)
    assert worker.logs().count(text) == 1
    if cls is BlotSoon:
        assert [story[-1] for story in pens(data).values() if len(story) == 2] == ["cleaned up"] * 2
    # and the process goes on
    assert client.send_command(Write(id="b")).get(timeout=20)["position"] is not None


def handler_of(cls: type[Write]) -> str:
    return f"tests.bureau.{'write' if cls is Write else 'write_soon'}"
