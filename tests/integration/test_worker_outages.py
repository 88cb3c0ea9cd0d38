"""Servers and workers die, freeze and come back: nothing is lost, and no effect is there twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from cqrs_celery import CQRS
from cqrs_celery.errors import PublishFailed, StoreUnavailable
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.stream import StreamName
from tests import depot
from tests.depot import FillBox, FillBoxSlowly
from tests.integration.conftest import WorkerFactory
from tests.nodes import RedisNode, WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

#: Seconds; a dead worker's messages come back within this and ten more.
LEASE_S = 1.5

#: Starts a worker of the depot; takes the keyword arguments of `WorkerNode`.
StartWorker = Callable[..., WorkerNode]


@pytest.fixture
def start_worker(fresh_redis_node: RedisNode, worker_factory: WorkerFactory) -> StartWorker:
    """Start workers on a server of the test's own, which forces every write to the disk."""

    def start(**options: Any) -> WorkerNode:
        return worker_factory(
            "from tests.depot import app",
            arguments=["--without-mingle", "--without-gossip"],
            env={
                "DEPOT_URL": fresh_redis_node.url,
                "DEPOT_OPTIONS": json.dumps({"lease_s": LEASE_S}),
            },
            **options,
        )

    return start


@pytest.fixture
def cqrs(fresh_redis_node: RedisNode) -> Iterator[CQRS]:
    """Give a client of the depot."""
    retries = {"retry_policy": {"max_retries": 1, "interval_max": 0.1}}
    with depot.connected(fresh_redis_node.url, result_backend_transport_options=retries) as cqrs:
        yield cqrs


@pytest.fixture
def data(fresh_redis_node: RedisNode) -> Iterator[redis.Redis]:
    """Give a client of the depot's server."""
    with fresh_redis_node.client() as client:
        yield client


def counts(cqrs: CQRS, id: str) -> list[int]:
    """Return what a box was filled with, oldest first."""
    stream = StreamName("depot", "DepotBox", id)
    return [json.loads(stored.event.data)["count"] for stored in cqrs.store.read_stream(stream)]


def starts(data: redis.Redis, gate: str) -> list[int]:
    """Return the process ids that have started a task that waits at a gate."""
    found: Any = data.lrange(f"{gate}:started", 0, -1)
    return [int(pid) for pid in found]


def wait_until_nothing_is_left(data: redis.Redis) -> None:
    queue, names = ReliableQueue(data), ("depot.commands", "depot.shelf", "depot.order_more_boxes")

    def left() -> dict[str, Any]:
        return {name: found for name in names if any(found := queue.count(name))}

    wait_until(lambda: not left(), 20, lambda: f"the end of {left()}")
    wait_until(lambda: not in_flight(data), 10, "nothing to be in flight")


def test_a_worker_waits_for_a_server_that_is_away_at_its_start(
    fresh_redis_node: RedisNode, start_worker: StartWorker, cqrs: CQRS
) -> None:
    # given a server with a command in it, that is away
    cqrs.send_command(FillBox(id="early"))
    fresh_redis_node.kill()
    # when a worker starts
    worker = start_worker(pool="solo", is_started=False)
    worker.start()
    wait_until(lambda: "Trying again in" in worker.logs(), 15, worker.log_tail)
    assert worker.status == "running"
    # then it works as soon as the server is there
    fresh_redis_node.start()
    worker.wait_ready()
    wait_until(lambda: counts(cqrs, "early") == [1], 10, "the command")


def test_a_server_that_is_killed_in_the_middle_loses_and_doubles_nothing(
    fresh_redis_node: RedisNode, start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given a worker in the middle of many commands
    start_worker(concurrency=2)
    boxes, everything = ["one", "two", "three"], list(range(1, 61))
    for n in everything:
        for name in boxes:
            cqrs.send_command(FillBox(id=name, count=n), ignore_result=True)
    wait_until(lambda: len(counts(cqrs, "one")) >= 10, 20, "the first commands")
    assert len(counts(cqrs, "three")) < 60
    # when the server is killed and comes back
    fresh_redis_node.kill()
    fresh_redis_node.start()
    # then every command has its effect once, in order
    wait_until(lambda: all(len(counts(cqrs, name)) >= 60 for name in boxes), 30, "the rest")
    wait_until_nothing_is_left(data)
    for name in boxes:
        assert counts(cqrs, name) == everything
        # and the subscriber has seen each event, one or two again after the interruption
        seen = depot.seen(data, "shelf", name)
        assert list(dict.fromkeys(seen)) == everything
        assert len(seen) <= 62
    assert not list(ReliableQueue(data).letters.all("depot.commands"))


def test_a_sender_and_an_executor_are_told_that_the_server_is_away(
    fresh_redis_node: RedisNode, cqrs: CQRS, start_worker: StartWorker
) -> None:
    # given a server that is away
    _ = cqrs.store
    fresh_redis_node.kill()
    # when a command is sent, with a result or without, then the error names the message
    fill = FillBox(id="away")
    with pytest.raises(PublishFailed, match=r"depot\.fill_box \[filling-1\] .* broker") as caught:
        cqrs.send_command(fill, task_id="filling-1", ignore_result=True)
    assert caught.value.message_id == "filling-1"
    with pytest.raises(PublishFailed, match="the result backend does not answer") as caught:
        cqrs.send_command(fill)
    # and has the driver's reason, not Celery's, which asks for a restart
    assert "onnect" in str(caught.value)
    assert "restart" not in str(caught.value)
    # and with what to repeat it
    error = caught.value
    assert error.repeat_with == {"task_id": error.message_id}
    assert str(error).endswith(
        "). Start it, or correct result_backend; then send it again with"
        f" task_id='{error.message_id}': the error has that as repeat_with."
    )
    chosen = {"task_id": "t-1", "idempotency_key": "note-1"}
    for send in (fill.delay, partial(cqrs.app.tasks["depot.fill_box"].delay, fill)):
        with pytest.raises(PublishFailed) as caught:
            send(**chosen)
        assert caught.value.repeat_with == chosen
    # when one is executed, then the error says what could not be done
    with pytest.raises(StoreUnavailable, match=r"read DepotBox-away: redis://.* does not answer"):
        cqrs.execute(FillBox(id="away"))
    # when the server is back, and the command is sent again under its id, by mistake twice
    fresh_redis_node.start()
    for _ in range(2):
        FillBox(id="away").delay(task_id="filling-1")
    start_worker(pool="solo")
    cqrs.send_command(FillBox(id="away", count=2)).get(timeout=20)
    # then it has its effect once
    assert counts(cqrs, "away") == [1, 2]


def test_a_killed_workers_message_comes_back_at_its_place_and_runs_once_more(
    start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given a worker in the middle of a task, with another one behind it, and a second worker
    first = start_worker(concurrency=2)
    cqrs.send_command(FillBoxSlowly(id="box", gate="gate"))
    after = cqrs.send_command(FillBox(id="box", count=2))
    wait_until(lambda: starts(data, "gate"), 10, "the task to start")
    start_worker(concurrency=2)
    # when the first one is killed
    first.kill()
    # then the second one starts the task within the lease and ten seconds
    wait_until(lambda: len(starts(data, "gate")) == 2, LEASE_S + 10, "the task to start again")
    # and it has its effect once, before the one behind it
    data.rpush("gate", "go")
    assert after.get(timeout=10)["value"] == 3
    assert counts(cqrs, "box") == [1, 2]
    assert len(starts(data, "gate")) == 2
    wait_until_nothing_is_left(data)


def test_a_frozen_workers_commit_is_refused_and_the_other_ones_stands(
    start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given a worker that is frozen in the middle of a task, beyond its lease
    frozen = start_worker(concurrency=1)
    cqrs.send_command(FillBoxSlowly(id="box", gate="gate"))
    wait_until(lambda: starts(data, "gate"), 10, "the task to start")
    frozen.freeze()
    # when another one has taken the task over, and the frozen one goes on first
    start_worker(concurrency=1)
    wait_until(lambda: len(starts(data, "gate")) == 2, LEASE_S + 10, "the task to start again")
    data.rpush(f"gate:{starts(data, 'gate')[0]}", "go")
    frozen.thaw()
    # then its commit is refused, and it is told
    wait_until(lambda: "lease lost, commit refused" in frozen.logs(), 10, frozen.log_tail)
    told = "lease lost: its messages were given to others"
    wait_until(lambda: told in frozen.logs(), 10, frozen.log_tail)
    assert counts(cqrs, "box") == []
    # and the other one's stands, once
    data.rpush("gate", "go")
    wait_until(lambda: counts(cqrs, "box"), 10, "the effect")
    wait_until_nothing_is_left(data)
    assert counts(cqrs, "box") == [1]
    # and the frozen one works on
    for n in range(10):
        cqrs.send_command(FillBox(id=f"later-{n}"), ignore_result=True)
    wait_until_nothing_is_left(data)
    assert frozen.status == "running"
    assert [counts(cqrs, f"later-{n}") for n in range(10)] == [[1]] * 10


def test_a_task_of_five_leases_runs_once_in_a_solo_worker_and_in_a_pool(
    start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given a solo worker in the middle of a task, and another one with a pool
    start_worker(pool="solo")
    cqrs.send_command(FillBoxSlowly(id="solo", gate="solo"))
    wait_until(lambda: starts(data, "solo"), 10, "the first task to start")
    start_worker(concurrency=2)
    cqrs.send_command(FillBoxSlowly(id="pool", gate="pool"))
    wait_until(lambda: starts(data, "pool"), 10, "the second task to start")
    # when they take five leases
    end = time.monotonic() + 5 * LEASE_S
    wait_until(lambda: time.monotonic() > end, 6 * LEASE_S)
    data.rpush("solo", "go")
    data.rpush("pool", "go")
    # then each has run once
    wait_until(lambda: counts(cqrs, "solo") == counts(cqrs, "pool") == [1], 10, "the effects")
    wait_until_nothing_is_left(data)
    assert len(starts(data, "solo")) == len(starts(data, "pool")) == 1
