"""A store that is restored from a backup, or whose lagging replica is promoted, delivers all."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import psycopg2.errors
import pytest
import redis

from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.errors import StoreUnavailable
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.events import Subscriber
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import append, events
from cqrs_celery.workers.relay import Relay
from tests.postgres import DRIVERS, PostgresNode
from tests.waiting import wait_until

HEAD = ('{"id":"', '","again":"', '","root":"', '","parent":"', '"}')
SUBSCRIBER = Subscriber("task", ("inventory.items_checked_in",), "queue", HEAD)


class Line:
    """A store, a relay, and a queue that one subscriber reads."""

    def __init__(self, url: str, redis_url: str) -> None:
        self._given: set[str] = set()
        opened = open_event_store(url)
        assert isinstance(opened, SqlEventStore)
        store = self.store = opened
        self.client = redis.Redis.from_url(redis_url)
        queue = RelayQueue(
            lambda: self.client, store_id=lambda: store.outbox.store_id, body=("[[", "],{},{}]")
        )
        leadership = store.leadership("inventory", broker="redis")
        self.parts = RelayParts(store, queue, "inventory", leadership)
        self.written = 0

    def write(self, count: int) -> None:
        """Commit so many events, of streams whose names never come again."""
        for _ in range(count):
            self.written += 1
            append(
                self.store,
                StreamName("inventory", "Item", f"{self.written}"),
                ANY_VERSION,
                *events(1),
            )

    @contextmanager
    def relaying(self) -> Iterator[None]:
        relay = Relay(self.parts, batch=10, note_s=0.1)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            yield
        finally:
            relay.stop()
            thread.join(30)

    def stored(self) -> set[str]:
        return {one.event.event_id for one in self.store.read_all(limit=100_000)}

    def given(self) -> set[str]:
        """Return the ids of all events that were put on the queue, each of its own sequence."""
        reliable = ReliableQueue(self.client)
        reliable.beat("taker", 60_000, register=True)
        for one in reliable.settle_and_take(
            "taker", queues=["queue"], count=10_000, run=10_000
        ).taken:
            self._given.add(one.payload.split(b'"')[3].decode())
        return self._given

    def wait_all_given(self) -> None:
        """Wait until everything that the store has was put on the queue."""
        wait_until(lambda: self.stored() <= self.given(), 30, "all events to be given")


@pytest.fixture
def open_line(redis_url: str) -> Iterator[Callable[[str], Line]]:
    lines = []

    def open_it(url: str) -> Line:
        lines.append(Line(url, redis_url))
        return lines[-1]

    yield open_it
    for line in lines:
        line.client.close()
        line.store.close()


def test_a_database_restored_from_a_base_backup_delivers_what_it_has_and_what_comes(
    fresh_postgres_node: PostgresNode,
    open_line: Callable[[str], Line],
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = fresh_postgres_node
    line = open_line(node.create_database("shop"))
    create_schema(line.store)
    line.parts.register(SUBSCRIBER)
    with caplog.at_level(logging.ERROR), line.relaying():
        # given a backup, and events that were delivered before and after it
        line.write(10)
        line.wait_all_given()
        backup = node.back_up()
        line.write(10)
        line.wait_all_given()
        # when it is restored under the running relay, and more is written than was lost
        node.kill()
        node.restore(backup)
        node.start()
        assert len(line.stored()) == 10
        line.write(25)
        # then everything is delivered, and it is said
        line.wait_all_given()
        assert len(line.stored()) == 35
    assert "the store went back: it has no event" in caplog.text


def test_a_replica_that_lagged_is_promoted_and_delivers_what_it_has_and_what_comes(
    fresh_postgres_node: PostgresNode,
    open_line: Callable[[str], Line],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    primary = fresh_postgres_node
    primary.create_database("shop")
    replica = primary.stand_by(tmp_path / "replica")
    try:
        line = open_line(
            f"postgresql+psycopg2://postgres@/shop?host=127.0.0.1:{primary.port}"
            f"&host=127.0.0.1:{replica.port}&target_session_attrs=read-write"
        )
        create_schema(line.store)
        line.parts.register(SUBSCRIBER)
        with caplog.at_level(logging.ERROR), line.relaying():
            # given a replica that has stopped to follow, and events that were delivered since
            line.write(10)
            line.wait_all_given()
            wait_until(lambda: is_there(replica, line), 20, "the replica to have them")
            replica.cut_off()
            line.write(10)
            line.wait_all_given()
            # when the primary is lost, and the replica is promoted
            primary.kill()
            replica.promote()
            wait_until(lambda: has_written(line), 30, "the new primary")
            line.write(15)
            # then everything that it has is delivered, and it is said
            line.wait_all_given()
            assert 26 <= len(line.stored()) <= 27
        assert "the store went back: it has no event" in caplog.text
    finally:
        replica.teardown()


@pytest.mark.parametrize("driver", DRIVERS)
def test_relays_go_on_at_the_promoted_replica_of_a_primary_that_is_frozen(
    fresh_postgres_node: PostgresNode,
    open_line: Callable[[str], Line],
    tmp_path: Path,
    driver: str,
) -> None:
    primary = fresh_postgres_node
    primary.create_database("shop")
    replica = primary.stand_by(tmp_path / "replica")
    url = (
        f"postgresql+{driver}://postgres@/shop?host=127.0.0.1:{primary.port}"
        f"&host=127.0.0.1:{replica.port}&target_session_attrs=read-write&connect_timeout=2"
    )
    try:
        # given two relays, and a process with connections in its pool
        line, other = open_line(url), open_line(url)
        create_schema(line.store)
        line.parts.register(SUBSCRIBER)
        with line.relaying(), other.relaying():
            line.write(10)
            line.wait_all_given()
            wait_until(lambda: is_there(replica, line), 20, "the replica to have them")
            # when the primary is frozen, and the replica is promoted
            with frozen(primary):
                replica.promote()
                later = open_line(url)
                later.written = line.written
                wait_until(lambda: has_written(later), 30, "the new primary")
                # then a relay goes on there
                wait_until(lambda: later.stored() <= line.given(), 30, "all to be given")
                # and what waits for the old one in a process that was there gives up
                with line.store.limited(0.5):
                    assert len(line.stored()) == 11
                primary.kill()
    finally:
        replica.teardown()


@contextmanager
def frozen(node: PostgresNode) -> Iterator[None]:
    """Let no process of a server run, as on a host that hangs; its kernel still answers."""
    processes = [psutil.Process(node.pid)]
    processes[0].suspend()
    processes += processes[0].children(recursive=True)
    for one in processes[1:]:
        one.suspend()
    try:
        yield
    finally:
        for one in processes:
            with suppress(psutil.NoSuchProcess):
                one.resume()


def test_a_database_that_is_made_anew_under_running_workers_is_taken_for_a_new_one(
    fresh_postgres_node: PostgresNode,
    open_line: Callable[[str], Line],
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = fresh_postgres_node
    url = node.create_database("shop")
    line = open_line(url)
    create_schema(line.store)
    line.parts.register(SUBSCRIBER)
    with line.relaying():
        # given a database whose events were delivered
        line.write(10)
        line.wait_all_given()
        before = line.store.outbox.store_id
        # when it is dropped and made anew under the running relay
        node.drop_database("shop")
        node.create_database("shop")
        anew = open_line(url)
        create_schema(anew.store)
        anew.written = line.written
        anew.write(5)
        # then what is committed there is delivered, and its subscribers are registered there
        wait_until(lambda: anew.stored() <= line.given(), 30, "the new events to be given")
        assert anew.store.outbox.subscribers("inventory") == [SUBSCRIBER]
        # and how far it is relayed, each process finds under its id
        assert line.store.outbox.store_id == anew.store.outbox.store_id != before
        wait_until(lambda: anew.parts.destination.position() == 5, 10, "its position")
    # and a relay that is started anew says nothing of lost data
    with caplog.at_level(logging.ERROR), anew.relaying():
        anew.write(1)
        wait_until(lambda: anew.stored() <= line.given(), 30, "the new event to be given")
    assert "the queue has lost its data" not in caplog.text


def test_a_subscriber_that_a_restored_backup_does_not_know_is_registered_again(
    tmp_path: Path, open_line: Callable[[str], Line]
) -> None:
    file = tmp_path / "events.db"
    line = open_line(f"sqlite:///{file}")
    create_schema(line.store)
    # given a backup of before a subscriber was registered
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "b")) as copy:
        source.backup(copy)
    line.parts.register(SUBSCRIBER)
    with line.relaying():
        line.write(3)
        line.wait_all_given()
        # when it is restored under the running relay
        with (
            closing(sqlite3.connect(tmp_path / "b")) as source,
            closing(sqlite3.connect(file)) as copy,
        ):
            source.backup(copy)
        # then the database knows the subscriber, for when the queue loses its data
        wait_until(
            lambda: line.store.outbox.subscribers("inventory") == [SUBSCRIBER],
            30,
            "the subscriber to be registered",
        )


def is_there(replica: PostgresNode, line: Line) -> bool:
    with closing(replica.connect("shop")) as connection, connection.cursor() as cursor:
        try:
            cursor.execute("SELECT count(*) FROM cqrs_events")
        except psycopg2.errors.UndefinedTable:
            return False
        return bool(cursor.fetchone()[0] == line.written)


def has_written(line: Line) -> bool:
    try:
        line.write(1)
    except StoreUnavailable:
        return False
    return True


def test_an_sqlite_file_that_is_put_back_delivers_what_it_has_and_what_comes(
    tmp_path: Path, open_line: Callable[[str], Line], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "events.db"
    line = open_line(f"sqlite:///{file}")
    create_schema(line.store)
    line.parts.register(SUBSCRIBER)
    # given a copy of the file, and events that were delivered before and after it
    with line.relaying():
        line.write(10)
        line.wait_all_given()
    line.store.close()
    shutil.copy(file, tmp_path / "copy.db")
    with line.relaying():
        line.write(10)
        line.wait_all_given()
    line.store.close()
    # when it is put back while nothing runs, and more is written than was lost
    shutil.copy(tmp_path / "copy.db", file)
    assert len(line.stored()) == 10
    line.write(25)
    with caplog.at_level(logging.ERROR), line.relaying():
        # then everything is delivered, and it is said
        line.wait_all_given()
    assert len(line.stored()) == 35
    assert "the store went back: it has no event" in caplog.text
