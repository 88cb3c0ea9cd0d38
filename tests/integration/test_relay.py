"""The relay gives each event to each subscription's queue, whatever is killed meanwhile."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import ack
from cqrs_celery.store.events import Lease, Subscriber
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import BOLT, NUT, append, event, events
from cqrs_celery.workers.relay import Relay
from tests.mssql import NEEDS_MSSQL, make_tables_anew
from tests.mssql import URL as MSSQL_URL
from tests.nodes import REPOSITORY, RedisNode
from tests.postgres import PostgresNode
from tests.waiting import wait_until

QUEUES = ("left", "right")


def subscriber(queue: str) -> Subscriber:
    head = ('{"id":"', '","again":"', '","root":"', '","parent":"', '"}')
    return Subscriber(f"task-{queue}", ("inventory.items_checked_in",), queue, head)


@dataclass
class Bench:
    """A store, a Redis, and relays between them."""

    store: SqlEventStore
    url: str
    redis_url: str

    def __post_init__(self) -> None:
        self.client = redis.Redis.from_url(self.redis_url)
        store = self.store
        self.destination = RelayQueue(
            lambda: self.client, store_id=lambda: store.outbox.store_id, body=("[[", "],{},{}]")
        )
        self.parts = RelayParts(self.store, self.store.outbox, self.destination)
        self.store.on_commit = self.destination.wake

    def subscribe(self) -> None:
        for queue in QUEUES:
            self.parts.register(subscriber(queue))

    @contextmanager
    def relaying(self, count: int = 1) -> Iterator[None]:
        relays = [Relay(self.parts, batch=10, note_s=0.05) for _ in range(count)]
        threads = [threading.Thread(target=relay.run) for relay in relays]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            for relay in relays:
                relay.stop()
            for thread in threads:
                thread.join(30)

    def wait(self) -> None:
        """Wait until everything that is committed is given."""
        last = self.store.outbox.last_position()
        wait_until(lambda: self.destination.position() == last, 30, "the relay")

    def take_all(self, queue: str) -> list[tuple[str, str]]:
        """Take what is on a queue; return the sequence and event id of each, in order."""
        reliable = ReliableQueue(self.client)
        reliable.beat("taker", 60_000, register=True)
        taken = reliable.settle_and_take("taker", queues=[queue], count=10_000, run=10_000).taken
        return [(one.sequence, one.payload.split(b'"')[3].decode()) for one in taken]

    def check(self) -> None:
        """Check that each queue has each event once, and each stream's in order."""
        stored = self.store.read_all(limit=100_000)
        for queue in QUEUES:
            taken = self.take_all(queue)
            assert Counter(event_id for _, event_id in taken) == Counter(
                one.event.event_id for one in stored
            )
            for stream in {one.stream for one in stored}:
                assert [event_id for key, event_id in taken if key == stream.key] == [
                    one.event.event_id for one in stored if one.stream == stream
                ]


@pytest.fixture(params=["postgresql", "sqlite", pytest.param("sqlserver", marks=NEEDS_MSSQL)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    if request.param == "sqlserver":
        url = MSSQL_URL
    store = open_event_store(url)
    assert isinstance(store, SqlEventStore)
    if request.param == "sqlserver":
        make_tables_anew(store)
    create_schema(store)
    made = Bench(store, url, redis_url)
    made.subscribe()
    yield made
    made.client.close()
    store.close()


def write(bench: Bench, count: int) -> None:
    chance = random.Random(count)
    for _ in range(count):
        stream = StreamName("inventory", "InventoryItem", str(chance.randrange(5)))
        append(bench.store, stream, ANY_VERSION, *events(chance.choice((1, 1, 3))))


def test_events_are_given_to_every_subscriber_once_and_in_order(bench: Bench) -> None:
    write(bench, 10)
    with bench.relaying():
        write(bench, 40)
        bench.wait()
    bench.check()


def test_a_message_is_what_the_redis_store_would_have_made(bench: Bench) -> None:
    append(bench.store, BOLT, 0, event())
    with bench.relaying():
        bench.wait()
    reliable = ReliableQueue(bench.client)
    reliable.beat("taker", 60_000, register=True)
    [taken] = reliable.settle_and_take("taker", queues=["left"], count=1).taken
    [stored] = bench.store.read_all()
    assert taken.sequence == BOLT.key
    assert taken.body.startswith(
        b'[[{"stream":"inventory:InventoryItem:bolt","position":%d,"version":1,"event_id":"%s'
        % (stored.global_position, stored.event.event_id.encode())
    )
    assert taken.body.endswith(b"],{},{}]")


def test_of_two_relays_one_is_active_and_nothing_is_given_twice(bench: Bench) -> None:
    with bench.relaying(count=3):
        write(bench, 40)
        bench.wait()
    bench.check()


def test_a_relay_that_believes_to_be_active_gives_nothing_twice(bench: Bench) -> None:
    # given a batch that was given
    write(bench, 5)
    read = bench.store.read_all()
    bench.destination.start_at(0)
    last = read[-1].global_position
    assert bench.destination.enqueue(0, read) == last
    # when another relay gives it again, from where it was, and from the middle
    assert bench.destination.enqueue(0, read) == last
    assert bench.destination.enqueue(read[1].global_position, read[2:]) == last
    # then it is there once
    bench.check()


@pytest.mark.alone  # measures time
def test_a_commit_wakes_the_relay(bench: Bench) -> None:
    with bench.relaying():
        append(bench.store, BOLT, ANY_VERSION, event())
        bench.wait()
        # when it is idle, and one commit after the other comes
        took = []
        for _ in range(5):
            began = time.monotonic()
            append(bench.store, BOLT, ANY_VERSION, event())
            bench.wait()
            took.append(time.monotonic() - began)
    # then it does not sleep until it would look by itself
    assert sorted(took)[2] < 0.3


def test_events_that_nobody_subscribes_to_are_passed(bench: Bench) -> None:
    append(bench.store, NUT, 0, event(type="inventory.other"))
    append(bench.store, BOLT, 0, event())
    with bench.relaying():
        bench.wait()
    assert len(bench.take_all("left")) == 1


def test_a_queue_that_has_lost_its_data_gets_what_is_not_known_to_be_handled(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # given events, of which those of the first half are handled, and noted as such
    write(bench, 10)
    with bench.relaying():
        bench.wait()
        for queue in QUEUES:
            reliable = ReliableQueue(bench.client)
            reliable.beat("worker", 60_000, register=True)
            taken = reliable.settle_and_take("worker", queues=[queue], count=1000, run=1000).taken
            reliable.settle_and_take("worker", [ack(one.id, one.fence) for one in taken])
        half = bench.store.outbox.last_position()
        wait_until(lambda: bench.store.outbox.checkpoint() == half, message="the note")
        write(bench, 10)
        bench.wait()
    # when Redis loses everything, the subscribers too
    bench.client.flushall()
    with caplog.at_level(logging.ERROR), bench.relaying():
        bench.wait()
    # then the second half is there again, for every subscriber, and it is said
    assert "the queue has lost its data" in caplog.text
    later = [one.event.event_id for one in bench.store.read_all(after_position=half)]
    for queue in QUEUES:
        assert sorted(event_id for _, event_id in bench.take_all(queue)) == sorted(later)


def test_a_queue_that_loses_its_data_while_the_relay_runs_gets_it_again(bench: Bench) -> None:
    write(bench, 5)
    with bench.relaying():
        bench.wait()
        bench.client.flushall()
        bench.wait()
    bench.check()


def test_a_database_that_is_behind_the_queue_goes_on_from_its_last_event(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    # given a queue that has come further than the database, which was restored from a backup
    write(bench, 5)
    bench.destination.start_at(0)
    ahead = bench.store.outbox.last_position() + 1_000
    bench.destination.go_back(ahead)
    # when the relay begins, and more is written
    with caplog.at_level(logging.ERROR), bench.relaying():
        wait_until(lambda: bench.destination.position() != ahead, message="the relay")
        append(bench.store, BOLT, ANY_VERSION, *events(2))
        bench.wait()
    # then that is given
    assert "the database is behind the queue" in caplog.text
    assert len(bench.take_all("left")) == 2


def test_a_lease_is_looked_up_where_the_message_is_held(bench: Bench) -> None:
    append(bench.store, BOLT, 0, event())
    with bench.relaying():
        bench.wait()
    reliable = ReliableQueue(bench.client)
    reliable.beat("worker", 60_000, register=True)
    [taken] = reliable.settle_and_take("worker", queues=["left"], count=1).taken
    lease = Lease("worker", taken.id, taken.fence)
    assert bench.destination.is_held(lease)
    assert not bench.destination.is_held(lease._replace(fence=taken.fence + 1))
    reliable.leave("worker")
    assert not bench.destination.is_held(lease)


#: A relay in a process of its own, which is killed.
RELAY = """
import sys
import redis
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.workers.relay import Relay

store = open_event_store(sys.argv[1])
client = redis.Redis.from_url(sys.argv[2])
queue = RelayQueue(lambda: client, store_id=lambda: store.outbox.store_id, body=("[[", "],{},{}]"))
print("running", flush=True)
Relay(RelayParts(store, store.outbox, queue), batch=10).run()
"""

#: A process that commits without an end, saying what it has committed.
WRITER = """
import random, sys
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import append, events

store = open_event_store(sys.argv[1])
def write():
    stream = StreamName("inventory", "InventoryItem", str(random.randrange(5)))
    append(store, stream, ANY_VERSION, *events(random.choice((1, 3))))

# To connect may take longer than the process lives after that.
write()
print("running", flush=True)
while True:
    write()
"""


def kill_after(source: str, arguments: list[str], moment_s: float) -> None:
    """Run a program, and kill it with -9 a moment after it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        threading.Event().wait(moment_s)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_relays_and_writers_that_are_killed_at_random_lose_nothing_and_repeat_nothing(
    bench: Bench,
) -> None:
    # given writers and relays that are killed, again and again
    chance = random.Random(5)
    for _ in range(4):
        threads = [
            threading.Thread(target=kill_after, args=(source, arguments, chance.uniform(0, 0.4)))
            for source, arguments in ((WRITER, [bench.url]), (RELAY, [bench.url, bench.redis_url]))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    # when a relay runs in the end
    with bench.relaying():
        write(bench, 3)
        bench.wait()
    # then every event that is stored is on every queue, once
    assert len(bench.store.read_all(limit=100_000)) > 10
    bench.check()


def test_the_relay_goes_on_after_its_servers_were_killed(
    fresh_postgres_node: PostgresNode, fresh_redis_node: RedisNode
) -> None:
    # given a relay between two servers of the test's own
    url = fresh_postgres_node.create_database("shop")
    store = open_event_store(url)
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    bench = Bench(store, url, fresh_redis_node.url)
    bench.subscribe()
    kills: list[Callable[[], None]] = [fresh_redis_node.kill, fresh_postgres_node.kill]
    with bench.relaying():
        # when each of them is killed, and comes back
        for kill in kills:
            write(bench, 10)
            kill()
            for node in (fresh_redis_node, fresh_postgres_node):
                if node.status == "exited":
                    node.start()
            write(bench, 10)
            bench.wait()
    # then nothing is lost, and nothing is twice
    bench.check()
    bench.client.close()
    store.close()
