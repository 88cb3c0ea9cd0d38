"""Workers give back what they have prefetched of a paused queue, and go on with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.transport import TRANSPORT
from tests.conftest import RedisFactory
from tests.integration.conftest import WorkerFactory
from tests.nodes import WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

WORKER = """
    import redis
    from celery import Celery
    from kombu import Queue

    app = Celery("pausing", broker={url!r})
    app.conf.update(
        broker_transport={transport!r}, broker_transport_options={{"lease_s": 60}},
        task_queues=[Queue("stop"), Queue("go")], task_acks_late={late},
    )
    told = redis.Redis.from_url({url!r}, socket_timeout=None)

    @app.task(name="pausing.work")
    def work(name, waits=False):
        told.rpush("began", name)
        if waits:
            told.blpop("leave", timeout=30)
        told.rpush("ended", name)
"""

POOLS = [("prefork", 1), ("solo", 1), ("threads", 1), ("gevent", 1)]


@pytest.fixture
def sender(redis_url: str) -> Iterator[Celery]:
    app = Celery("pausing", broker=redis_url, set_as_current=False)
    app.conf.broker_transport = TRANSPORT
    yield app
    app.close()


def send(sender: Celery, queue: str, *names: str, waits: bool = False) -> None:
    for name in names:
        sender.send_task("pausing.work", (name, waits), queue=queue)


def listed(data: Any, key: str) -> list[str]:
    return [name.decode() for name in data.lrange(key, 0, -1)]


def start(
    factory: WorkerFactory, url: str, pool: str, concurrency: int, **options: Any
) -> WorkerNode:
    source = WORKER.format(url=url, transport=TRANSPORT, late=options.pop("late", True))
    return factory(source, pool=pool, concurrency=concurrency, **options)


@pytest.mark.parametrize(("pool", "concurrency"), POOLS)
def test_what_runs_ends_what_was_prefetched_goes_back_and_others_go_on(
    pool: str,
    concurrency: int,
    redis_url: str,
    sender: Celery,
    data: redis.Redis,
    queue: ReliableQueue,
    worker_factory: WorkerFactory,
) -> None:
    # given a worker that runs one task, and has prefetched more
    worker = start(worker_factory, redis_url, pool, concurrency)
    send(sender, "stop", "1", waits=True)
    wait_until(lambda: listed(data, "began") == ["1"], 20, worker.log_tail)
    send(sender, "stop", "2", "3", "4")
    send(sender, "go", "a")
    if pool != "solo":
        # A full pool of greenlets holds up the loop that would take more than one.
        left = 2 if pool == "gevent" else 1
        wait_until(lambda: queue.count("stop").ready <= left, 10, "the others to be prefetched")
    # when their queue is paused
    queue.pause(["stop"])
    send(sender, "stop", "5")
    if pool == "prefork":
        # then whoever inspects the worker sees it, as Flower does
        (queues,) = sender.control.inspect(timeout=5).active_queues().values()
        arguments = {one["name"]: one["queue_arguments"] for one in queues}
        assert arguments["stop"] == {"x-paused": True}
        assert not arguments["go"]
    # then what is prefetched goes back although the one that runs holds the pool
    if pool != "solo":
        wait_until(lambda: queue.count("stop").ready == 4, 10, worker.log_tail)
    data.rpush("leave", "now")
    # and the one that runs ends; of the others none begins; the other queue's does
    wait_until(lambda: listed(data, "ended") == ["1", "a"], 20, worker.log_tail)
    wait_until(lambda: queue.count("stop").ready == 4, 10, worker.log_tail)
    send(sender, "go", "b", "c")
    wait_until(lambda: listed(data, "ended") == ["1", "a", "b", "c"], 20, worker.log_tail)
    assert listed(data, "began") == ["1", "a", "b", "c"]
    # when it is resumed, then all of it runs, in its order
    queue.resume(["stop"])
    wait_until(lambda: len(listed(data, "ended")) == 8, 20, worker.log_tail)
    assert listed(data, "ended") == ["1", "a", "b", "c", "2", "3", "4", "5"]
    wait_until(lambda: not in_flight(data), 10, "nothing in flight")
    # and the worker can prefetch as much as before
    send(sender, "stop", "6", waits=True)
    wait_until(lambda: listed(data, "began")[-1] == "6", 20, worker.log_tail)
    if pool not in ("solo", "gevent"):
        send(sender, "go", "d", "e", "f")
        wait_until(lambda: not queue.count("go").ready, 10, worker.log_tail)
    data.rpush("leave", "now")
    wait_until(lambda: listed(data, "ended")[8:9] == ["6"], 20, worker.log_tail)


def test_tasks_that_acknowledge_early_go_back_too(
    redis_url: str,
    sender: Celery,
    data: redis.Redis,
    queue: ReliableQueue,
    worker_factory: WorkerFactory,
) -> None:
    worker = start(worker_factory, redis_url, "prefork", 1, late=False)
    send(sender, "stop", "1", waits=True)
    wait_until(lambda: listed(data, "began") == ["1"], 20, worker.log_tail)
    send(sender, "stop", "2", "3")
    wait_until(lambda: not queue.count("stop").ready, 10, "the others to be prefetched")

    queue.pause(["stop"])
    wait_until(lambda: queue.count("stop").ready == 2, 10, worker.log_tail)
    data.rpush("leave", "now")
    wait_until(lambda: listed(data, "ended") == ["1"], 10, worker.log_tail)

    queue.resume(["stop"])
    wait_until(lambda: listed(data, "ended") == ["1", "2", "3"], 20, worker.log_tail)


def test_a_pause_outlives_restarts_of_workers_and_of_redis(
    redis_factory: RedisFactory, worker_factory: WorkerFactory
) -> None:
    # given a paused queue on a server that forgets nothing
    server = redis_factory(appendfsync="always")
    app = Celery("pausing", broker=server.url, set_as_current=False)
    app.conf.broker_transport = TRANSPORT
    with server.client() as data:
        queue = ReliableQueue(data)
        queue.pause(["stop"])
        send(app, "stop", "1", "2")
        # when Redis is killed and comes back, and a worker starts then
        server.kill()
        server.start()
        worker = start(worker_factory, server.url, "solo", 1)
        send(app, "go", "a")
        # then the worker takes of the other queue alone
        wait_until(lambda: listed(data, "ended") == ["a"], 20, worker.log_tail)
        assert queue.count("stop").ready == 2
        # and of this one when it is resumed
        queue.resume(["stop"])
        wait_until(lambda: listed(data, "ended") == ["a", "1", "2"], 20, worker.log_tail)
    app.close()


def test_an_idle_worker_of_a_paused_queue_asks_a_few_times_a_second_at_most(
    redis_url: str,
    sender: Celery,
    data: redis.Redis,
    queue: ReliableQueue,
    worker_factory: WorkerFactory,
) -> None:
    # given an idle worker whose queue is paused, and holds messages
    queue.pause(["stop"])
    worker = start(worker_factory, redis_url, "prefork", 2)
    send(sender, "stop", *map(str, range(20)))
    send(sender, "go", "a")
    wait_until(lambda: listed(data, "ended") == ["a"], 20, worker.log_tail)

    def exchanges() -> int:
        stats: Any = data.info("commandstats")
        return int(stats["cmdstat_evalsha"]["calls"])

    # when it has nothing else to do for some looks at its queues
    data.config_resetstat()
    glances: Any = data

    def looks() -> int:
        return int(glances.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"])

    wait_until(lambda: looks() >= 8, 20, "some looks")
    # then each look has cost one exchange at most
    assert exchanges() <= looks()
    assert listed(data, "began") == ["a"]
