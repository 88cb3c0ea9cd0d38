"""The relay gives each event to each subscription's queue, whatever is killed meanwhile."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import false, text

from cqrs_celery.app.celery_destination import CeleryDestination
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.backends.redis.unhandled import PlacesGiven
from cqrs_celery.backends.sql import leading, relay_rows
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.errors import BrokerConflict
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import LetterPolicy, ack, bury, give_back, later
from cqrs_celery.store.events import START, Lease, Place, StoredEvent, Subscriber
from cqrs_celery.store.refusals import ClaimLost
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import BOLT, NUT, append, event, events
from cqrs_celery.workers.relay import Relay
from tests.conftest import RedisFactory
from tests.mssql import NEEDS_MSSQL, make_tables_anew
from tests.mssql import URL as MSSQL_URL
from tests.nodes import REPOSITORY, RedisNode
from tests.postgres import DRIVERS, PostgresNode, with_driver
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
        self.parts = self.parts_of("inventory")
        self.store.on_commit = self.destination.wake

    def parts_of(self, application: str) -> RelayParts:
        """Return what a relay of an application is made of; each has a claim of its own."""
        leadership = self.store.leadership(application, broker="redis")
        return RelayParts(self.store, self.destination, application, leadership)

    def give(self, *stored: StoredEvent, token: str = "", after: int = 0) -> int | None:
        """Give events to the queues, as a relay with that token does."""
        return self.destination.enqueue(token, after, stored)

    def subscribe(self) -> None:
        for queue in QUEUES:
            self.parts.register(subscriber(queue))

    @contextmanager
    def relaying(self, count: int = 1) -> Iterator[None]:
        with serving(self, *["inventory"] * count):
            yield

    def noted(self) -> int:
        """Return up to where everything is noted as handled."""
        place = self.parts.leadership.checkpoint()
        return 0 if place is None else int(place.position)

    def forget(self, lost: Sequence[StoredEvent]) -> None:
        """Delete events, as a store does that is restored from a backup of before."""
        with self.store.engine.begin() as connection:
            for one in lost:
                connection.execute(
                    text("DELETE FROM cqrs_events WHERE event_id = :event_id"),
                    {"event_id": one.event.event_id},
                )
                connection.execute(
                    text(
                        "UPDATE cqrs_streams SET version = :version"
                        " WHERE stream_key = :key AND version > :version"
                    ),
                    {"version": one.version - 1, "key": one.stream.key},
                )
            if self.store.engine.dialect.name == "postgresql":
                connection.execute(
                    text(
                        "SELECT setval(pg_get_serial_sequence('cqrs_events', 'global_position'),"
                        " :position, false)"
                    ),
                    {"position": lost[0].global_position},
                )

    def wait(self) -> None:
        """Wait until everything that is committed is given."""
        last = self.store.outbox.place_before(self.store.outbox.last_position() + 1)
        store_id = self.store.outbox.store_id

        def is_given() -> bool:
            known: Any = self.client.hget("cq:relay", store_id) or b""
            return known.split(b"|")[:2] == [str(last.position).encode(), last.event_id.encode()]

        wait_until(is_given, 30, "the relay")

    def wait_given(self, queues: Sequence[str]) -> None:
        """Wait until everything that is committed is on the queues, whatever may be taken."""
        stored = len(self.store.read_all(limit=100_000))
        reliable = ReliableQueue(self.client)
        wait_until(
            lambda: all(reliable.count(queue).in_sequences >= stored for queue in queues),
            30,
            "the relay",
        )

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


@pytest.fixture(params=[*DRIVERS, "sqlite", pytest.param("sqlserver", marks=NEEDS_MSSQL)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path / 'events.db'}"
    if request.param in DRIVERS:
        url = with_driver(request.getfixturevalue("postgres_url"), request.param)
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
    bench.destination.take_over("first", START)
    last = read[-1].global_position
    assert bench.give(*read, token="first") == last
    # when another relay gives it again, from where it was, and from the middle
    assert bench.destination.take_over("second") == Place(last, read[-1].event.event_id)
    assert bench.give(*read, token="second") == last
    assert bench.give(*read[2:], token="second", after=read[1].global_position) == last
    # then it is there once
    bench.check()


def test_what_a_relay_gives_counts_nothing_once_another_one_has_taken_over(bench: Bench) -> None:
    # given a relay that has read what is next, and another one that has taken over since
    write(bench, 3)
    read = bench.store.read_all()
    bench.destination.take_over("first", START)
    assert bench.destination.take_over("second") == START
    # when the first gives it
    assert bench.give(*read, token="first") == 0
    # then nothing is there, and the second gives it
    assert bench.take_all("left") == []
    assert bench.give(*read, token="second") == read[-1].global_position
    bench.check()


def test_what_is_given_again_is_not_noted_as_handled_for_what_was_given_before(
    bench: Bench,
) -> None:
    # given events on the queues that nobody has handled, and a relay that went back to the start
    write(bench, 5)
    read = bench.store.read_all()
    bench.destination.take_over("first", START)
    bench.give(*read[2:], token="first")
    bench.destination.take_over("first", START)
    # when it gives all of them, and another relay takes over
    bench.give(*read, token="first")
    bench.destination.take_over("second")
    # then the oldest that is not handled is the first
    assert bench.destination.lowest_unhandled() == read[0].global_position


def test_a_position_of_an_earlier_version_is_gone_on_from(bench: Bench) -> None:
    # given what a relay of an earlier version has left: a position alone
    write(bench, 3)
    read = bench.store.read_all()
    bench.client.hset("cq:relay", bench.store.outbox.store_id, str(read[0].global_position))
    # when a relay runs
    with bench.relaying():
        bench.wait()
    # then it gives what stands behind it
    given = {event_id for _, event_id in bench.take_all("left")}
    assert given == {one.event.event_id for one in read[1:]}


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
        wait_until(lambda: bench.noted() == half, message="the note")
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


@pytest.mark.parametrize("is_dead", [False, True], ids=["waits for a retry", "a dead letter"])
def test_what_was_retried_and_all_behind_it_is_given_again_in_order_when_the_queue_loses_its_data(
    bench: Bench, is_dead: bool
) -> None:
    # given an event that one subscriber retries, or that is its dead letter after that
    reliable = ReliableQueue(bench.client)
    reliable.letters.set_policy("left", LetterPolicy())
    reliable.beat("worker", 60_000, register=True)
    append(bench.store, BOLT, 0, event())
    with bench.relaying():
        bench.wait()
        [first] = reliable.settle_and_take("worker", queues=["left"], count=1).taken
        [stored] = bench.store.read_all()
        headers = {"id": stored.event.event_id, "cqrs_position": stored.global_position}
        head = json.dumps({"headers": headers})
        reliable.settle_and_take(
            "worker", [later(first.id, first.fence, 1 if is_dead else 60_000, head + "\n[]")]
        )
        if is_dead:

            def taken_again() -> Any:
                return reliable.settle_and_take("worker", queues=["left"], count=1).taken

            [again] = wait_until(taken_again, 10, "the retry")
            reliable.settle_and_take("worker", [bury(again.id, again.fence, "{}")])
        # and later events of its aggregate, which wait, and of others, which are handled
        append(bench.store, BOLT, ANY_VERSION, *events(2))
        append(bench.store, NUT, 0, *events(2))
        bench.wait()
        for queue in QUEUES:
            taken = reliable.settle_and_take("worker", queues=[queue], count=100, run=100).taken
            assert {one.sequence for one in taken} == {NUT.key, BOLT.key} - (
                {BOLT.key} if queue == "left" else set()
            )
            reliable.settle_and_take("worker", [ack(one.id, one.fence) for one in taken])
        # then it is the oldest that is not handled
        assert bench.destination.lowest_unhandled() == stored.global_position
    # when Redis loses everything
    bench.client.flushall()
    with bench.relaying():
        bench.wait()
    # then it comes again, and before those behind it
    bench.check()


def end(reliable: ReliableQueue, queue: str, events: Sequence[StoredEvent]) -> None:
    """Handle these events of a queue, and nothing else."""
    reliable.beat("worker", 60_000, register=True)
    taken = reliable.settle_and_take("worker", queues=[queue], count=1000, run=1000).taken
    ids = {one.event.event_id for one in events}
    is_one = [one.payload.split(b'"')[3].decode() in ids for one in taken]
    assert sum(is_one) == len(events)
    settlements = [
        (ack if one else give_back)(t.id, t.fence) for t, one in zip(taken, is_one, strict=True)
    ]
    reliable.settle_and_take("worker", settlements)


def is_noted(bench: Bench, position: int) -> bool:
    return bench.noted() == position


@pytest.fixture
def other(bench: Bench, tmp_path: Path) -> Iterator[Bench]:
    """Another store, whose relay gives to the same queues."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    store = open_event_store(url)
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    yield Bench(store, url, bench.redis_url)
    store.close()


def test_what_one_of_several_stores_on_one_redis_has_given_is_handled_when_nothing_older_is_left(
    bench: Bench, other: Bench
) -> None:
    # given two stores that give to the same queues
    reliable = ReliableQueue(bench.client)
    for one in (bench, other):
        one.destination.take_over("it", START)
    append(bench.store, BOLT, 0, *events(3))
    first = bench.store.read_all()
    bench.give(*first, token="it")
    append(other.store, NUT, 0, *events(2))
    others = other.store.read_all()
    # when the first one's events are handled, then that is known
    assert bench.destination.lowest_unhandled() == 1
    for queue in QUEUES:
        end(reliable, queue, first)
    known = first[-1].global_position
    assert bench.destination.lowest_unhandled() == known + 1
    # when one of the other is left, then what is given later is not known to be handled
    other.give(*others, token="it")
    append(bench.store, BOLT, 3, *events(2))
    later_ones = bench.store.read_all(after_position=known)
    bench.give(*later_ones, token="it", after=known)
    for queue in QUEUES:
        end(reliable, queue, later_ones)
    end(reliable, "left", others)
    assert bench.destination.lowest_unhandled() == known + 1
    assert other.destination.lowest_unhandled() == 1
    # and when that is handled too, then all is
    end(reliable, "right", others)
    for one, last in ((bench, later_ones[-1]), (other, others[-1])):
        assert one.destination.lowest_unhandled() == last.global_position + 1


def test_stores_on_one_redis_each_note_what_is_handled(bench: Bench, other: Bench) -> None:
    # given a Redis in which events of a Redis store are, and a SQL store gave that is no more
    bench.client.hset("cq:relay", "dropped", "77|some-event|token|0")
    bench.client.rpush("cq:all", "shop:Order:1\x1f1")
    reliable = ReliableQueue(bench.client)
    write(bench, 10)
    write(other, 5)
    with bench.relaying(), other.relaying():
        for one in (bench, other):
            one.wait()
        # when everything is handled, then both stores note it
        for queue in QUEUES:
            end(reliable, queue, [*bench.store.read_all(), *other.store.read_all()])
        for one in (bench, other):
            last = one.store.outbox.last_position()
            wait_until(partial(is_noted, one, last), message="the note")
        noted = bench.noted()
        write(bench, 3)
        bench.wait()
    # when Redis loses everything
    bench.client.flushall()
    with bench.relaying(), other.relaying():
        bench.wait()
        wait_until(lambda: other.destination.position() == other.noted(), message="the other")
    # then what was not handled comes again, and no more
    for queue in QUEUES:
        given = Counter(event_id for _, event_id in bench.take_all(queue))
        assert given == Counter(
            one.event.event_id for one in bench.store.read_all(after_position=noted)
        )


def test_places_given_are_handled_when_all_numbers_up_to_theirs_are() -> None:
    places = PlacesGiven()
    assert places.handled_before(1_000_000) == 0
    # given many places, of which some are forgotten
    for position in range(1, 2_001):
        places.remember(position, 10 * position)
        places.remember(position, 10 * position + 5)
    # when all before a number is handled, then what is known is not too much
    answers = [places.handled_before(number) for number in range(1, 20_002)]
    assert answers == sorted(answers)
    assert all(10 * position < number for number, position in enumerate(answers, 1) if position)
    # and not much too little
    assert answers[10_000] > 950
    assert answers[-1] == 2_000
    # when the relay goes back, then nothing is known
    places.forget()
    assert places.handled_before(1_000_000) == 0


def test_a_queue_that_loses_its_data_while_the_relay_runs_gets_it_again(bench: Bench) -> None:
    write(bench, 5)
    with bench.relaying():
        bench.wait()
        bench.client.flushall()
        bench.wait()
    bench.check()


@pytest.mark.parametrize("goes_on", [False, True], ids=["shorter", "with other events there"])
def test_a_store_that_went_back_gives_what_is_not_known_to_be_handled_and_what_comes(
    bench: Bench, caplog: pytest.LogCaptureFixture, goes_on: bool
) -> None:
    # given a queue that has come further than the store, which has lost its last events
    write(bench, 5)
    with bench.relaying():
        bench.wait()
        lost = bench.store.read_all()[-2:]
        bench.forget(lost)
        if goes_on:
            append(bench.store, NUT, ANY_VERSION, *events(4))
        # when the relay runs on, or begins anew, and more is written
        with caplog.at_level(logging.ERROR):
            append(bench.store, BOLT, ANY_VERSION, *events(2))
            wait_until(lambda: "the store went back" in caplog.text, message="the relay")
            bench.wait()
    # then it is said, and everything that the store has was given, from what is known to be handled
    # on: the beginning. What it lost had been given, too
    last = lost[-1]
    assert f"no event {last.event.event_id} at position {last.global_position}" in caplog.text
    stored = [one.event.event_id for one in bench.store.read_all()]
    given = Counter(event_id for _, event_id in bench.take_all("left"))
    assert given.keys() == {*stored, *(one.event.event_id for one in lost)}


def freeze(process: subprocess.Popen[str], bench: Bench) -> None:
    """Freeze a relay's process; on SQLite not in the middle of a write, which would hold up all."""
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        if bench.store.engine.dialect.name != "sqlite":
            return
        file = sqlite3.connect(bench.store.engine.url.database or "", timeout=0.5)
        with closing(file), suppress(sqlite3.OperationalError):
            file.execute("BEGIN IMMEDIATE")
            return
        os.kill(process.pid, signal.SIGCONT)


def test_of_a_frozen_leader_another_relay_takes_over_and_what_it_gives_when_thawed_counts_nothing(
    bench: Bench,
) -> None:
    # given a relay that leads, in a process of its own, and is frozen while it has work
    with running(RELAY, [bench.url, bench.redis_url]) as process:
        write(bench, 5)
        bench.wait()
        led = bench.parts.leadership.led()
        assert led is not None
        assert led.leader.endswith(f":{process.pid}")
        writing = threading.Thread(target=write, args=(bench, 20))
        writing.start()
        freeze(process, bench)
        writing.join(30)
        # when events are committed, and another relay is there
        with bench.relaying():
            write(bench, 20)
            began_at = time.monotonic()
            bench.wait()
            # then it goes on within 10 seconds, and after the thaw each event is there once
            assert time.monotonic() - began_at < 10
            os.kill(process.pid, signal.SIGCONT)
            write(bench, 20)
            bench.wait()
    bench.check()


def test_two_applications_on_one_database_have_relays_of_their_own(
    bench: Bench, redis_factory: RedisFactory
) -> None:
    # given another application on the same store, with a Redis of its own and one subscriber there
    other = Bench(bench.store, bench.url, redis_factory().url)
    other.parts = other.parts_of("sales")
    other.parts.register(subscriber("left"))
    write(bench, 5)
    # when both relay
    relay = Relay(other.parts_of("sales"), batch=10)
    thread = threading.Thread(target=relay.run)
    thread.start()
    with bench.relaying():
        write(bench, 20)
        bench.wait()
        wait_until(lambda: other.destination.position() == bench.destination.position(), 30)
    relay.stop()
    thread.join(30)
    # then each has everything, and one that loses its data gets its own subscribers again
    bench.check()
    assert {event_id for _, event_id in other.take_all("left")} == {
        one.event.event_id for one in bench.store.read_all()
    }
    assert [one.name for one in bench.store.outbox.subscribers("sales")] == ["task-left"]
    assert len(bench.store.outbox.subscribers("inventory")) == 2
    other.client.close()


def test_applications_with_one_broker_have_one_active_relay_and_share_what_it_remembers(
    bench: Bench,
) -> None:
    # given two applications on one store and one Redis, of which one leads
    write(bench, 5)
    first, second = (bench.parts_of(name).leadership for name in ("inventory", "sales"))
    broker_id = bench.destination.broker_id()
    assert first.claim(broker_id)
    # then the other stands by, and knows how far all is handled
    assert not second.claim(broker_id)
    place = bench.store.outbox.place_before(4)
    assert first.save_checkpoint(place)
    assert second.checkpoint() == place
    # and leads when the first has ended
    first.release()
    assert second.claim(broker_id)


def test_of_applications_that_claim_one_broker_at_the_same_moment_one_leads_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two applications that have both looked whether another one leads, and seen none
    first, second = (
        bench.store.leadership(name, broker="redis") for name in ("inventory", "sales")
    )
    broker_id = bench.destination.broker_id()
    is_there = second.rows.is_there
    looks: list[bool] = []

    def look_before_the_first_claims(query: Any) -> bool:
        found = is_there(query)
        if not looks:
            looks.append(found)
            assert first.claim(broker_id)
        return found

    monkeypatch.setattr(second.rows, "is_there", look_before_the_first_claims)
    # when the second claims all the same, by a statement that did not see the first one's
    monkeypatch.setattr(relay_rows, "exists", lambda query: false() if looks == [False] else query)
    assert not second.claim(broker_id)
    # then it has withdrawn
    assert looks == [False]
    assert first.holds()
    assert not second.claim(broker_id)


def test_what_a_former_leader_remembers_changes_nothing_for_other_applications_either(
    bench: Bench,
) -> None:
    # given a relay that serves another application too, and one that has taken its place
    write(bench, 5)
    early, late = bench.store.outbox.place_before(3), bench.store.outbox.place_before(5)
    broker_id = bench.destination.broker_id()
    former, present, other = (
        bench.parts_of(name).leadership for name in ("inventory", "inventory", "sales")
    )
    assert former.claim(broker_id)
    assert not other.claim(broker_id)
    end_leases(bench)
    assert present.claim(broker_id)
    assert present.save_checkpoint(early)
    # when the former one goes on
    assert not former.save_checkpoint(late)
    former.former_broker_id, former.broker_id = broker_id, "another"
    former.note_new_broker_id()
    # then nobody's row is its
    assert other.checkpoint() == present.checkpoint() == early
    assert [led.broker_id for led in (other.led(), present.led()) if led] == [broker_id] * 2


def test_a_lease_that_has_ended_is_not_renewed_since_another_application_may_lead(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "RENEW_S", 0)
    # given a leader that was frozen until its lease had ended, and another application's since then
    first, second = (bench.parts_of(name).leadership for name in ("inventory", "sales"))
    broker_id = bench.destination.broker_id()
    assert first.claim(broker_id)
    end_leases(bench)
    assert second.claim(broker_id)
    # when it goes on, then it leads no more
    assert not first.holds()
    assert second.holds()


def test_a_lease_of_a_clock_that_ran_ahead_has_ended(bench: Bench) -> None:
    # given a lease that ends in an hour, by the clock of a server that was the primary
    first, second = (bench.parts_of("inventory").leadership for _ in range(2))
    broker_id = bench.destination.broker_id()
    assert first.claim(broker_id)
    with bench.store.engine.begin() as connection:
        connection.execute(text("UPDATE cqrs_relays SET lease_until_ms = lease_until_ms + 3600000"))
    # then another one leads at once
    assert second.claim(broker_id)


def test_a_checkpoint_is_not_written_onto_a_store_that_has_no_such_event(bench: Bench) -> None:
    # given a relay that is about to note an event, of a store that goes back meanwhile
    write(bench, 5)
    leadership = bench.parts_of("inventory").leadership
    assert leadership.claim(bench.destination.broker_id())
    assert leadership.save_checkpoint(bench.store.outbox.place_before(3))
    lost = bench.store.read_all(after_position=2)
    place = Place(lost[-1].global_position, lost[-1].event.event_id)
    bench.forget(lost)
    # then what was noted before stays, also when another event has that position
    known = bench.store.outbox.place_before(3)
    assert not leadership.save_checkpoint(place)
    write(bench, 9)
    assert not leadership.save_checkpoint(place)
    assert leadership.checkpoint() == known


def test_what_an_older_claim_takes_over_counts_nothing_after_a_newer_one_has(bench: Bench) -> None:
    # given a relay that is frozen as it begins, and another one that has begun since
    broker_id = bench.destination.broker_id()
    older, newer = (f"{bench.destination.next_number()}.x" for _ in range(2))
    write(bench, 3)
    place = bench.store.outbox.place_before(3)
    assert bench.destination.take_over(newer, place, broker_id=broker_id) == place
    # when the older one takes over, with or without a place, then it is told that it has lost
    for to in (START, None):
        with pytest.raises(ClaimLost):
            bench.destination.take_over(older, to, broker_id=broker_id)
    assert bench.destination.position() == place.position
    # as is one that was made for a broker that has lost its data since
    bench.client.flushall()
    with pytest.raises(ClaimLost):
        bench.destination.take_over(newer, place, broker_id=broker_id)
    assert bench.destination.position() is None


def end_leases(bench: Bench) -> None:
    """Let all leases have ended."""
    with bench.store.engine.begin() as connection:
        connection.execute(text("UPDATE cqrs_relays SET lease_until_ms = 0"))


@contextmanager
def serving(bench: Bench, *applications: str) -> Iterator[None]:
    """Run a relay for each application."""
    relays = [Relay(bench.parts_of(name), batch=10, note_s=0.05) for name in applications]
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


@pytest.mark.parametrize("leads", ["inventory", "sales"])
def test_a_broker_that_loses_its_data_gets_everything_again_for_all_applications_that_have_it(
    bench: Bench, leads: str
) -> None:
    # given two applications with one broker, one subscriber each, of which one leads
    for name, one in zip(("inventory", "sales"), QUEUES, strict=True):
        bench.store.outbox.unregister("inventory", subscriber(one).name, subscriber(one).topics)
        bench.parts_of(name).register(subscriber(one))
    standby = "sales" if leads == "inventory" else "inventory"
    with serving(bench, leads):
        write(bench, 10)
        bench.wait()
        with serving(bench, standby):
            wait_until(lambda: broker_of(bench, standby), message="it to stand by")
            # when the broker loses its data while events are on its queues
            bench.client.flushall()
            write(bench, 10)
            bench.wait_given(QUEUES)
    # then all that was not handled is on the queues of both, again
    for queue in QUEUES:
        given = {event_id for _, event_id in bench.take_all(queue)}
        assert given == {one.event.event_id for one in bench.store.read_all()}


def test_when_the_leader_is_gone_as_a_broker_loses_its_data_its_events_come_again_too(
    bench: Bench,
) -> None:
    # given two applications with one broker, of which one has led and is gone
    for name, one in zip(("inventory", "sales"), QUEUES, strict=True):
        bench.store.outbox.unregister("inventory", subscriber(one).name, subscriber(one).topics)
        bench.parts_of(name).register(subscriber(one))
    with serving(bench, "inventory"):
        write(bench, 10)
        bench.wait()
        assert not bench.parts_of("sales").leadership.claim(bench.destination.broker_id())
    # when the broker loses its data, and the other one's relay is there alone
    bench.client.flushall()
    with serving(bench, "sales"):
        bench.wait_given(QUEUES)
    # then what was not handled is on the queues of both
    for queue in QUEUES:
        given = {event_id for _, event_id in bench.take_all(queue)}
        assert given == {one.event.event_id for one in bench.store.read_all()}


def broker_of(bench: Bench, application: str) -> str:
    led = bench.parts_of(application).leadership.led()
    return led.broker_id if led is not None else ""


def test_an_application_that_moves_to_another_ones_broker_gets_its_events_there(
    bench: Bench, redis_factory: RedisFactory
) -> None:
    # given an application that has moved, with events that nobody handled at its former broker
    other = Bench(bench.store, bench.url, redis_factory().url)
    moving = other.parts_of("sales")
    other.store.outbox.unregister("inventory", "task-left", subscriber("left").topics)
    other.parts_of("sales").register(subscriber("left"))
    relay = Relay(moving, batch=10)
    thread = threading.Thread(target=relay.run)
    thread.start()
    write(bench, 10)
    wait_until(lambda: other.destination.position() == bench.store.outbox.last_position(), 30)
    relay.stop()
    thread.join(30)
    bench.parts_of("sales").register(subscriber("left"))
    with serving(bench, "inventory"):
        # when it comes to a broker at which another application leads
        bench.wait()
        with serving(bench, "sales"):
            bench.wait_given(("left",))
    # then it has all of them
    given = {event_id for _, event_id in bench.take_all("left")}
    assert given == {one.event.event_id for one in bench.store.read_all()}
    other.client.close()


def test_a_relay_that_stands_by_for_another_broker_says_so(
    bench: Bench,
    redis_factory: RedisFactory,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cqrs_celery.workers.relay.CONFLICT_S", 0.5)
    # given two relays of one application that have started at once, with two brokers
    other = Bench(bench.store, bench.url, redis_factory().url)
    with bench.relaying(), caplog.at_level(logging.ERROR):
        write(bench, 1)
        bench.wait()
        relay = Relay(other.parts_of("inventory"), batch=10)
        thread = threading.Thread(target=relay.run)
        thread.start()
        # then the one that stands by names both
        wait_until(
            lambda: "'inventory' relays the events of" in caplog.text, 20, message="a log line"
        )
        relay.stop()
        thread.join(30)
    other.client.close()


def test_a_broker_without_an_id_is_a_second_one_where_the_first_one_has_one(bench: Bench) -> None:
    with bench.relaying():
        write(bench, 1)
        bench.wait()
        destination = CeleryDestination(
            Celery("other", set_as_current=False),
            bench.store.outbox,
            bench.parts.leadership,
            "inventory",
            where="amqp://elsewhere",
        )
        parts = RelayParts(bench.store, destination, "inventory", bench.parts.leadership)
        with pytest.raises(BrokerConflict, match="not to amqp://elsewhere"):
            parts.check_broker()


def test_a_second_broker_of_one_application_is_refused_while_relays_to_the_first_are_alive(
    bench: Bench, redis_factory: RedisFactory
) -> None:
    # given an application whose relay is active
    other = Bench(bench.store, bench.url, redis_factory().url)
    with bench.relaying():
        write(bench, 1)
        bench.wait()
        # when a worker with another broker starts, then it is told both
        with pytest.raises(BrokerConflict, match=r"'inventory' relays the events of .* to redis"):
            other.parts.check_broker()
        # and one with the same starts
        bench.parts.check_broker()
    # when they have ended, then the broker may be moved: it gets what is not known to be handled
    other.parts.check_broker()
    relay = Relay(other.parts_of("inventory"), batch=10)
    thread = threading.Thread(target=relay.run)
    thread.start()
    wait_until(lambda: other.destination.position() == bench.store.outbox.last_position(), 30)
    relay.stop()
    thread.join(30)
    other.check()
    other.client.close()


def test_a_broker_that_has_lost_its_data_is_no_second_one(bench: Bench) -> None:
    with bench.relaying():
        write(bench, 1)
        bench.wait()
        # when it loses them, its id as well, and a worker starts
        bench.client.flushall()
        bench.parts_of("inventory").check_broker()
        bench.wait()
    bench.check()


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


def test_an_outage_is_logged_once_in_full_then_by_its_count_and_its_end_is_too(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a broker that does not answer a hundred times, by an error with a long traceback
    monkeypatch.setattr("cqrs_celery.workers.relay.RETRY_S", 0.001)
    append(bench.store, BOLT, 0, event())
    tries = 0
    enqueue = bench.destination.enqueue

    def refuse(token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        nonlocal tries
        tries += 1
        if tries <= 100:
            raise ConnectionRefusedError("the broker does not answer")
        return enqueue(token, after_position, events)

    monkeypatch.setattr(bench.destination, "enqueue", refuse)
    # when a relay has come over that
    with caplog.at_level(logging.INFO, "cqrs_celery.workers.relay"), bench.relaying():
        bench.wait()
        wait_until(lambda: "again after 100 failures" in caplog.text, message="the last line")
    # then there is one traceback, a line at the powers of two, and one at the end
    assert len([record for record in caplog.records if record.exc_info]) == 1
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.args[2] for record in failures if isinstance(record.args, tuple)] == [
        1, 2, 4, 8, 16, 32, 64,
    ]  # fmt: skip
    assert len(caplog.records) == 9  # with one that says that it is active
    assert bench.store.where in caplog.text


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
leadership = store.leadership("inventory", broker="redis")
Relay(RelayParts(store, queue, "inventory", leadership), batch=10).run()
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
    with running(source, arguments):
        threading.Event().wait(moment_s)


@contextmanager
def running(source: str, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program that says when it has begun; in the end it is killed with -9."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
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
