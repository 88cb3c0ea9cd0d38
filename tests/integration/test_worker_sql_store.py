"""Workers whose events are in a SQL database: the relay in them reaches every subscription."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery

from benchmarks.transport import RabbitNode
from cqrs_celery.backends.sql.choosing import open_sql_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.errors import LeaseLost
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.events import Lease, StreamAppend
from cqrs_celery.store.stream import StreamName
from cqrs_celery.testing.event_store_contract import events
from tests import yard
from tests.conftest import RedisFactory
from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY, RedisNode, WorkerNode, free_port
from tests.postgres import PostgresNode, with_driver
from tests.waiting import wait_until

ALONE = ("--without-mingle", "--without-gossip")
APPLICATION = "from tests.yard import app"

Yard = Callable[..., "Place"]


class Place:
    """An application with its broker and store, and the workers that run it."""

    def __init__(
        self, tmp_path: Path, workers: WorkerFactory, broker: str, store: str, *, is_stock: bool
    ) -> None:
        self.out = tmp_path / "handled"
        self.env = {
            "YARD_BROKER": broker,
            "YARD_STORE": store,
            "YARD_OUT": str(self.out),
            "YARD_STOCK": "1" if is_stock else "",
        }
        self._workers = workers
        os.environ.update(YARD_OUT=str(self.out), YARD_STOCK=self.env["YARD_STOCK"])
        self.app: Celery = yard.make_app(broker, store)
        found = self.app.cqrs.store
        assert isinstance(found, SqlEventStore)
        self.store = found
        create_schema(found)

    def start(self, **options: object) -> WorkerNode:
        options.setdefault("env", self.env)
        return self._workers(APPLICATION, arguments=ALONE, **options)

    def grow(self, count: int, *, seed: int = 1) -> None:
        chance = random.Random(seed)
        for _ in range(count):
            self.app.cqrs.send_command(yard.GrowHeap(id=str(chance.randrange(4))))

    def event_ids(self) -> list[str]:
        return [stored.event.event_id for stored in self.store.read_all(limit=100_000)]

    def wait(self, events: int, deadline_s: float = 60) -> None:
        """Wait until so many events are there, and handled by both subscriptions."""

        def is_done() -> bool:
            seen = {(line.subscription, line.event_id) for line in yard.handled(self.out)}
            return len(self.event_ids()) >= events and len(seen) == 2 * len(self.event_ids())

        wait_until(
            is_done,
            deadline_s,
            lambda: (
                f"{events} events; there are {len(self.event_ids())}, and"
                f" {len(yard.handled(self.out))} were handled"
            ),
        )

    def status(self) -> dict[str, object]:
        found = subprocess.run(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.yard:app"),
                *("cqrs", "outbox", "status", "--json"),
            ],
            cwd=REPOSITORY,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(json.loads(found.stdout))


@pytest.fixture
def yards(
    tmp_path: Path, worker_factory: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Yard]:
    monkeypatch.setenv("YARD_OUT", "")
    monkeypatch.setenv("YARD_STOCK", "")
    places = []

    def make(broker: str, store: str = "", *, is_stock: bool = False) -> Place:
        place = Place(
            tmp_path,
            worker_factory,
            broker,
            store or f"sqlite:///{tmp_path / 'events.db'}",
            is_stock=is_stock,
        )
        places.append(place)
        return place

    yield make
    for place in places:
        place.store.close()
        place.app.close()


@pytest.mark.parametrize(
    ("driver", "pool"),
    [
        ("psycopg2", "prefork"),
        ("psycopg2", "solo"),
        ("psycopg2", "threads"),
        ("psycopg", "prefork"),
    ],
)
def test_a_worker_with_postgresql_handles_each_event_once_in_order(
    yards: Yard, redis_url: str, postgres_url: str, driver: str, pool: str
) -> None:
    # given a worker, and nothing to do yet
    place = yards(redis_url, with_driver(postgres_url, driver))
    place.start(pool=pool, concurrency=2 if pool != "solo" else 1)
    # when commands come
    place.grow(30)
    # then each event is handled once by each subscription
    place.wait(30)
    yard.check(place.out, place.event_ids())
    # and the relay is not behind
    wait_until(lambda: place.status()["events_behind"] == 0, message="the relay")
    assert place.status()["last"] == place.status()["relayed"]


def test_a_worker_with_sqlite_handles_each_event_once_in_order(yards: Yard, redis_url: str) -> None:
    place = yards(redis_url)
    place.start(concurrency=2)
    place.grow(20)
    place.wait(20)
    yard.check(place.out, place.event_ids())


def test_what_was_committed_while_no_worker_ran_arrives_later(yards: Yard, redis_url: str) -> None:
    # given subscriptions that a worker has registered once
    place = yards(redis_url)
    place.start(name="first").stop()
    # when events are committed without a worker
    for size in range(5):
        place.app.cqrs.execute(yard.GrowHeap(id="1", by=size))
    assert place.status()["events_behind"] == 5
    # then the next one relays them
    place.start(name="second")
    place.wait(5)
    yard.check(place.out, place.event_ids())


def test_another_worker_relays_when_the_one_that_does_is_killed(
    yards: Yard, redis_url: str, postgres_url: str
) -> None:
    # given two workers, of which one relays
    place = yards(redis_url, postgres_url)
    workers = [place.start(name=f"worker-{n}") for n in (1, 2)]
    place.grow(5)
    place.wait(5)
    # when the one is killed, and then the other one instead
    for number in (0, 1):
        workers[number].kill()
        place.grow(5, seed=number)
        place.wait(10 + 5 * number)
        workers[number].start()
        workers[number].wait_ready()
    # then nothing was lost; what was being handled may have been handled twice
    yard.check(place.out, place.event_ids(), is_once=False)


@pytest.mark.parametrize("is_dead", [False, True], ids=["waits for a retry", "a dead letter"])
def test_when_redis_loses_all_what_was_retried_comes_again_before_what_waits_behind_it(
    yards: Yard, redis_url: str, is_dead: bool
) -> None:
    # given an event whose handler fails, until it waits for a retry, or is a dead letter
    place = yards(redis_url)
    worker = place.start(name="first")
    queue = ReliableQueue(redis.Redis.from_url(redis_url))
    yard.break_heap(place.out, "9")
    place.app.cqrs.execute(yard.GrowHeap(id="9"))

    def is_set_aside() -> bool:
        count = queue.count("yard.left")
        return bool(count.dead if is_dead else count.retrying)

    wait_until(is_set_aside, 60, "the failure")
    # and others, which are handled, and one that waits behind it
    for heap in ("1", "9"):
        place.app.cqrs.execute(yard.GrowHeap(id=heap))
    wait_until(lambda: len(yard.handled(place.out)) == 4, 20, "the others")
    destination = place.app.cqrs.relay.destination
    assert destination.lowest_unhandled() == 1
    # when the worker is killed, and Redis loses everything
    worker.kill()
    queue.client.flushall()
    yard.mend_heaps(place.out)
    place.start(name="second")
    # then it comes again, and then those behind it
    place.wait(3)
    yard.check(place.out, place.event_ids(), is_once=False)
    queue.client.close()


def test_a_worker_with_a_second_broker_ends_and_names_both(
    yards: Yard, redis_url: str, redis_factory: RedisFactory
) -> None:
    # given a worker, whose relay is active
    place = yards(redis_url)
    first = place.start(name="first")
    wait_until(lambda: place.status()["active_relay"], 20, "the relay")
    # when one of the same application starts with another broker
    other = redis_factory().url
    second = place.start(name="second", is_started=False, env={**place.env, "YARD_BROKER": other})
    second.start()
    # then it ends, and says why
    wait_until(lambda: second.status == "exited", 60, "its end")
    assert "'yard' relays the events of sqlite:///" in second.logs()
    for url in (redis_url, other):
        assert f"127.0.0.1:{urlsplit(url).port}/0" in second.logs()
    assert first.status == "running"


def test_a_commit_asks_the_queue_whether_its_lease_is_held(yards: Yard, redis_url: str) -> None:
    place = yards(redis_url)
    stored = [StreamAppend(StreamName("yard", "YardHeap", "1"), 0, events(1))]
    with pytest.raises(LeaseLost):
        place.store.append(stored, lease=Lease("nobody", 1, 1))
    assert place.event_ids() == []


@pytest.mark.parametrize("is_stock", [False, True], ids=["our broker", "another broker"])
def test_events_that_are_older_than_the_first_worker_reach_its_subscriptions(
    yards: Yard, redis_url: str, *, is_stock: bool
) -> None:
    # given events in a store that no relay has ever read
    place = yards(redis_url, is_stock=is_stock)
    for size in range(5):
        place.app.cqrs.execute(yard.GrowHeap(id="1", by=size))
    # when the first worker starts
    place.start()
    # then it gets them all
    place.wait(5)
    yard.check(place.out, place.event_ids())


@pytest.mark.parametrize("engine", ["postgresql", "sqlite"])
def test_a_broker_that_is_not_ours_gets_one_task_per_subscription(
    yards: Yard, redis_url: str, engine: str, request: pytest.FixtureRequest
) -> None:
    # given Celery's own Redis transport
    store = request.getfixturevalue("postgres_url") if engine == "postgresql" else ""
    place = yards(redis_url, store, is_stock=True)
    place.start()
    # when commands come, then each event is handled by each subscription
    place.grow(20)
    place.wait(20)
    yard.check(place.out, place.event_ids())


@pytest.mark.parametrize("pool", ["solo", "prefork"])
@pytest.mark.parametrize("is_stock", [False, True], ids=["our broker", "another broker"])
def test_a_broker_s_outage_does_not_fill_the_log(
    yards: Yard, fresh_redis_node: RedisNode, pool: str, *, is_stock: bool
) -> None:
    # given a worker whose broker dies
    place = yards(fresh_redis_node.url, is_stock=is_stock)
    worker = place.start(pool=pool)
    place.grow(1)
    place.wait(1)
    before = len(worker.logs().splitlines())
    fresh_redis_node.kill()
    # when an event is committed, which its relay tries to give in vain, for more than four seconds
    place.app.cqrs.execute(yard.GrowHeap(id="1"))
    wait_until(lambda: "(failure 8)" in worker.logs(), 30, worker.log_tail)
    # then that is no more than Celery's own traceback, and one of the relay's
    lines = worker.logs().splitlines()[before:]
    assert len(lines) < 280, "\n".join(lines)
    # and it is said when it is over
    fresh_redis_node.start()
    place.wait(2)
    wait_until(lambda: "subscribers again after" in worker.logs(), 20, worker.log_tail)


def start_worker(
    worker_factory: WorkerFactory, tmp_path: Path, broker: str, store: str = "", **env: str
) -> WorkerNode:
    """Start a worker that can't become ready."""
    store = store or f"sqlite:///{tmp_path / 'events.db'}"
    env |= {"YARD_BROKER": broker, "YARD_STORE": store}
    worker = worker_factory(APPLICATION, env=env, arguments=ALONE, pool="solo", is_started=False)
    worker.start()
    return worker


def refused_worker(
    worker_factory: WorkerFactory, tmp_path: Path, broker: str, store: str = "", **env: str
) -> WorkerNode:
    """Start a worker that ends by itself; return it when it has."""
    worker = start_worker(worker_factory, tmp_path, broker, store, **env)
    wait_until(lambda: worker.status == "exited", 30, worker.log_tail)
    assert "Traceback" not in worker.logs()
    return worker


def test_a_worker_without_tables_ends_with_one_line_that_says_how_to_make_them(
    redis_url: str, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    logs = refused_worker(worker_factory, tmp_path, redis_url).logs().splitlines()
    [line] = [line for line in logs if "CRITICAL" in line]
    assert "the worker can't start: could not register" in line
    assert "celery -A <app> cqrs schema create" in line
    assert logs[-1] == line


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("/no_such_database", 'database "no_such_database" does not exist'),
        ("nobody", 'role "nobody" does not exist'),
    ],
)
def test_a_worker_whose_url_no_postgresql_accepts_ends_with_one_line(
    redis_url: str,
    worker_factory: WorkerFactory,
    tmp_path: Path,
    postgres_url: str,
    driver: str,
    change: str,
    reason: str,
) -> None:
    # given the URL of a database, or of a user, that the server does not have
    parts = urlsplit(with_driver(postgres_url, driver))
    if change.startswith("/"):
        url = parts._replace(path=change).geturl()
    else:
        url = parts._replace(netloc=f"{change}@127.0.0.1:{parts.port}").geturl()
    # then a worker says so, and ends
    assert reason in only_line(refused_worker(worker_factory, tmp_path, redis_url, url))


def test_a_worker_whose_sqlite_file_has_no_folder_ends_with_one_line(
    redis_url: str, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/no/events.db"
    line = only_line(refused_worker(worker_factory, tmp_path, redis_url, url))
    assert "unable to open database file" in line


def test_a_worker_whose_replica_is_another_database_ends_with_one_line(
    yards: Yard, redis_url: str, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    # given the store, and another one's file in place of a replica's
    yards(redis_url)
    other = f"sqlite:///{tmp_path}/other.db"
    with closing(open_sql_store(other)) as store:
        create_schema(store)
    # then a worker names both, and ends
    refused = refused_worker(worker_factory, tmp_path, redis_url, YARD_READ_URL=other)
    assert f"{other}, which is no replica of sqlite:///" in only_line(refused)


def only_line(worker: WorkerNode) -> str:
    """Return the line with which a worker has ended, which is its last one."""
    assert worker.exit_code == 1
    logs = worker.logs().splitlines()
    [line] = [line for line in logs if "CRITICAL" in line]
    assert "the worker can't start: " in line
    assert logs[-1] == line
    return line


def test_a_worker_that_starts_without_its_database_waits_for_it_and_says_so(
    redis_url: str,
    worker_factory: WorkerFactory,
    fresh_postgres_node: PostgresNode,
    yards: Yard,
) -> None:
    # given a database that is away
    place = yards(redis_url, fresh_postgres_node.create_database("yard"))
    fresh_postgres_node.kill()
    worker = place.start(is_started=False)
    # when a worker starts, then it says so, in a line now and then, and blames no broker
    worker.start()
    wait_until(lambda: "(failure 4)" in worker.logs(), 60, worker.log_tail)
    lines = [line for line in worker.logs().splitlines() if "could not register" in line]
    assert len(lines) == 3
    assert "the worker could not register its subscriptions, tries again" in lines[0]
    for wrong in ("Traceback", "broker lost", "Frequent restarts", "DeprecationWarning"):
        assert wrong not in worker.logs()
    # and when the database is back, it works
    fresh_postgres_node.start()
    worker.wait_ready(60)
    place.grow(3)
    place.wait(3)


def test_a_worker_that_waits_for_its_database_can_be_stopped(
    redis_url: str, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    url = f"postgresql://postgres@127.0.0.1:{free_port()}/yard"
    worker = start_worker(worker_factory, tmp_path, redis_url, url)
    wait_until(lambda: "(failure 1)" in worker.logs(), 60, worker.log_tail)
    worker.stop()
    assert worker.exit_code == 0
    assert "Traceback" not in worker.logs()


@pytest.mark.parametrize("broker", ["amqp://nobody.invalid//", ""], ids=["named", "by default"])
def test_a_worker_on_rabbitmq_that_confirms_nothing_ends_with_one_line_that_says_what_to_set(
    worker_factory: WorkerFactory, tmp_path: Path, broker: str
) -> None:
    logs = refused_worker(worker_factory, tmp_path, broker, YARD_CONFIRM="0").logs().splitlines()
    [line] = [line for line in logs if "CRITICAL" in line]
    assert "Set broker_transport_options = {'confirm_publish': True}" in line


def test_rabbitmq_gets_one_task_per_subscription(
    yards: Yard, tmp_path: Path, postgres_url: str
) -> None:
    # given RabbitMQ
    places = os.pathsep.join(["/usr/lib/rabbitmq/bin", os.environ["PATH"]])
    binary = shutil.which("rabbitmq-server", path=places)
    if binary is None:
        pytest.skip("no RabbitMQ found: put rabbitmq-server on PATH")
    folder = tmp_path / "rabbitmq"
    folder.mkdir()
    rabbit = RabbitNode(folder, binary)
    rabbit.start()
    try:
        rabbit.wait_ready(60)
        place = yards(rabbit.url, postgres_url)
        worker = place.start()
        # when commands come, and the worker is killed among them
        place.grow(10)
        place.wait(10)
        place.grow(10, seed=2)
        worker.kill()
        worker.start()
        worker.wait_ready()
        # then each event is handled by each subscription, at least once
        place.wait(20)
        yard.check(place.out, place.event_ids(), is_once=False)
    finally:
        rabbit.teardown()


def test_nothing_is_lost_when_everything_is_killed_in_turn(
    yards: Yard, fresh_redis_node: RedisNode, postgres_url: str
) -> None:
    """ACCEPTANCE 70."""
    # given a worker, and a Redis that forces every write to the disk
    place = yards(fresh_redis_node.url, postgres_url)
    worker = place.start(concurrency=2)
    chance = random.Random(3)
    # when one or the other is killed again and again while commands come
    for turn in range(3):
        place.grow(10, seed=turn)
        wait_until(lambda: len(place.event_ids()) > chance.randrange(10), message="some events")
        worker.kill()
        if turn == 1:
            fresh_redis_node.kill()
            fresh_redis_node.start()
        worker.start()
        worker.wait_ready()
        place.wait(10 * (turn + 1))
    # then each command had its effect once, and each event was handled
    assert len(place.event_ids()) == 30
    yard.check(place.out, place.event_ids(), is_once=False)
