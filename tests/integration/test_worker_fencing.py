"""A worker that has lost its lease begins nothing, commits nothing, and says what it has lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.stream import StreamName
from tests import depot
from tests.depot import FillBox, FillBoxSlowly
from tests.integration.conftest import WorkerFactory
from tests.nodes import RedisNode, WorkerNode
from tests.proxy import Proxy
from tests.queues import in_flight
from tests.telling import Said, read_said
from tests.waiting import wait_until

LEASE_S = 1.5

QUEUE = "depot.commands"

POOLS = ("prefork", "solo", "threads", "gevent")

LOST = "lease lost: its messages were given to others"

SOURCE = """
    from tests.depot import app
    from tests.telling import tell_more

    tell_more()
"""

StartWorker = Callable[..., WorkerNode]


@pytest.fixture
def start_worker(fresh_redis_node: RedisNode, worker_factory: WorkerFactory) -> StartWorker:
    """Start a worker; `broker` is another way to the server, for its messages and commits."""

    def start(broker: str = "", **options: Any) -> WorkerNode:
        settings = {"worker_prefetch_multiplier": 4}
        return worker_factory(
            SOURCE,
            arguments=["--without-mingle", "--without-gossip"],
            queues=[QUEUE],
            env={
                "DEPOT_URL": fresh_redis_node.url,
                "DEPOT_BROKER": broker,
                "DEPOT_OPTIONS": json.dumps({"lease_s": LEASE_S}),
                "DEPOT_SETTINGS": json.dumps(settings),
            },
            **options,
        )

    return start


@pytest.fixture
def cqrs(fresh_redis_node: RedisNode) -> Iterator[CQRS]:
    """Give a client of the depot."""
    with depot.connected(fresh_redis_node.url) as cqrs:
        yield cqrs


@pytest.fixture
def data(fresh_redis_node: RedisNode) -> Iterator[redis.Redis]:
    """Give a client of the depot's server."""
    with fresh_redis_node.client() as client:
        yield client


def said(worker: WorkerNode, text: str) -> list[Said]:
    return [one for one in read_said(worker.logs()) if one.text.startswith(text)]


def fillings(cqrs: CQRS, id: str) -> int:
    return len(cqrs.store.read_stream(StreamName("depot", "DepotBox", id)))


def starts(data: redis.Redis) -> int:
    length: Any = data.llen("gate:started")
    return int(length)


def waiting(data: redis.Redis) -> int:
    """Return how many tasks wait at the gate, by the server's word."""
    facts: Any = data.info("clients")
    return int(facts["blocked_clients"])


def send(cqrs: CQRS) -> str:
    """Send a command that waits at a gate, and six others; returns the first one's task id."""
    first = cqrs.send_command(FillBoxSlowly(id="slow", gate="gate"))
    for n in range(6):
        cqrs.send_command(FillBox(id=f"box-{n}"), ignore_result=True)
    return str(first.id)


def check_told(worker: WorkerNode, task_id: str) -> None:
    """Check that a worker's log names what it has lost, and the commit that was refused."""
    (refused,) = said(worker, "lease lost, commit refused")
    assert (refused.facts["task"], refused.facts["task_id"]) == ("depot.fill_box_slowly", task_id)
    (lost,) = said(worker, LOST)
    assert refused.facts["message_id"] in lost.facts["messages"]
    assert f"depot.fill_box_slowly[{task_id}]" in lost.facts["tasks"]
    assert len(lost.facts["tasks"]) == len(lost.facts["messages"])
    # What it had not begun, it has not begun later either.
    begun = [one.facts["task"] for one in said(worker, "lease lost, not started")]
    assert set(begun) <= {"depot.fill_box"}
    assert len(begun) < len(lost.facts["messages"])


def check_once(cqrs: CQRS, data: redis.Redis, *names: str) -> None:
    """Check that each box was filled once, and that nothing is left to do."""
    wait_until(lambda: not any(ReliableQueue(data).count(QUEUE)), 20, "the queue to be empty")
    wait_until(lambda: not in_flight(data), 20, "nothing to be in flight")
    assert {name: fillings(cqrs, name) for name in names} == dict.fromkeys(names, 1)


BOXES = ("slow", *(f"box-{n}" for n in range(6)))


@pytest.mark.parametrize("pool", POOLS)
def test_a_frozen_worker_begins_and_commits_nothing_of_what_it_has_lost(
    pool: str, start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given a worker that is frozen in the middle of a task, with others behind it
    frozen = start_worker(pool=pool)
    task_id = send(cqrs)
    wait_until(lambda: waiting(data) == 1, 10, "the task to wait at the gate")
    frozen.freeze()
    # when another one has taken all over, and the frozen one goes on
    start_worker(pool="threads", concurrency=2)
    wait_until(lambda: waiting(data) == 2, LEASE_S + 10, "the task to wait there again")
    wait_until(lambda: all(fillings(cqrs, name) for name in BOXES[1:]), 10, "the others")
    frozen.thaw()
    wait_until(lambda: said(frozen, LOST), 10, frozen.log_tail)
    data.rpush("gate", "go")  # whoever has waited longest gets it: the frozen one
    # then its commit is refused, and its log says what it has lost
    wait_until(lambda: said(frozen, "lease lost, commit refused"), 10, frozen.log_tail)
    check_told(frozen, task_id)
    # and the other one's stands
    assert fillings(cqrs, "slow") == 0
    data.rpush("gate", "go")
    wait_until(lambda: fillings(cqrs, "slow"), 10, "the effect")
    check_once(cqrs, data, *BOXES)
    # and the frozen one works on
    later = [f"later-{n}" for n in range(10)]
    for name in later:
        cqrs.send_command(FillBox(id=name), ignore_result=True)
    check_once(cqrs, data, *later)
    assert frozen.status == "running"


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_was_cut_off_longer_than_its_lease_commits_nothing_of_what_it_has_lost(
    pool: str,
    start_worker: StartWorker,
    fresh_redis_node: RedisNode,
    cqrs: CQRS,
    data: redis.Redis,
) -> None:
    with Proxy(fresh_redis_node.port) as proxy:
        # given a worker in the middle of a task, with others behind it, which is cut off
        lonely = start_worker(proxy.url(), pool=pool)
        task_id = send(cqrs)
        wait_until(lambda: starts(data) == 1, 10, "the task to start")
        proxy.refuse()
        # when another one has taken all over, and the first one is back
        start_worker(pool="threads", concurrency=2)
        wait_until(lambda: starts(data) == 2, LEASE_S + 10, "the task to start again")
        wait_until(lambda: all(fillings(cqrs, name) for name in BOXES[1:]), 10, "the others")
        proxy.accept()
        wait_until(lambda: said(lonely, LOST), 20, lonely.log_tail)
        data.rpush("gate", "go")
        # then its commit is refused, and its log says what it has lost
        wait_until(lambda: said(lonely, "lease lost, commit refused"), 10, lonely.log_tail)
        check_told(lonely, task_id)
        # and the other one's stands
        data.rpush("gate", "go")
        wait_until(lambda: fillings(cqrs, "slow"), 10, "the effect")
        check_once(cqrs, data, *BOXES)
        assert lonely.status == "running"


def test_what_the_server_has_forgotten_to_have_given_is_begun_with_again_in_its_order(
    start_worker: StartWorker, cqrs: CQRS, data: redis.Redis
) -> None:
    # given three commands to one box, of which a worker is at the first and has the others
    cqrs.send_command(FillBoxSlowly(id="slow", gate="gate"), ignore_result=True)
    for count in (2, 3):
        cqrs.send_command(FillBox(id="slow", count=count), ignore_result=True)
    before = {key: data.dump(key) for key in [*data.scan_iter("cq:*"), QUEUE]}
    worker = start_worker(pool="solo")
    wait_until(lambda: starts(data) == 1, 10, "the task to start")
    # when the server comes back without its last writes, as after a power cut
    data.delete(*in_flight(data))
    for key, dumped in before.items():
        assert dumped is not None
        data.restore(key, 0, dumped, replace=True)
    data.rpush("gate", "go")
    wait_until(lambda: said(worker, "lease lost, commit refused"), 10, worker.log_tail)
    cqrs.send_command(FillBox(id="box-0"), ignore_result=True)  # it looks again
    # then the first is refused, and begun with again before any of the others
    wait_until(lambda: starts(data) == 2, 10, worker.log_tail)
    assert len(said(worker, "lease lost, commit refused")) == 1
    data.rpush("gate", "go")
    wait_until(lambda: fillings(cqrs, "slow") == 3, 10, worker.log_tail)
    stored = cqrs.store.read_stream(StreamName("depot", "DepotBox", "slow"))
    assert [json.loads(one.event.data)["count"] for one in stored] == [1, 2, 3]
