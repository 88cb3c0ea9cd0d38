"""With a broker that is not the reliable queue, the relay sends tasks, and remembers how far."""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from cqrs_celery.app import celery_destination
from cqrs_celery.app.celery_destination import CeleryDestination
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql import leading
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.store.events import StoredEvent, Subscriber
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import append, events
from cqrs_celery.workers.relay import Relay
from tests.waiting import wait_until

SUBSCRIBER = Subscriber("task", ("inventory.items_checked_in",), "queue", ("", "", "", "", ""))


class Noting(CeleryDestination):
    """A destination that notes what is sent, and does not send it."""

    sent: Counter[str]

    def _send(
        self, subscriber: Subscriber, stored: StoredEvent, packed: Any, producer: Any
    ) -> None:
        self.sent[stored.event.event_id] += 1
        self.on_send(len(self.sent))

    def on_send(self, number: int) -> None:
        """Do what the test wants to happen while a batch is sent."""


class Line:
    """A store in a file, and a relay that sends its events by a broker that is only noted."""

    def __init__(self, file: Path) -> None:
        opened = open_event_store(f"sqlite:///{file}")
        assert isinstance(opened, SqlEventStore)
        self.store = opened
        create_schema(self.store)
        self.sent: Counter[str] = Counter()
        self.parts = self.make_parts()
        self.parts.register(SUBSCRIBER)

    def make_parts(self) -> RelayParts:
        """Return what a relay is made of; each has a claim of its own."""
        leadership = self.store.leadership("inventory", broker="amqp://somewhere")
        destination = Noting(
            Celery("inventory", broker="memory://", set_as_current=False),
            self.store.outbox,
            leadership,
            "inventory",
        )
        destination.sent = self.sent
        return RelayParts(self.store, destination, "inventory", leadership)

    def write(self, count: int) -> list[str]:
        """Commit so many events; returns their ids."""
        new = events(count)
        append(self.store, StreamName("inventory", "Item", new[0].event_id), ANY_VERSION, *new)
        return [one.event_id for one in new]

    @contextmanager
    def relaying(self, parts: RelayParts) -> Iterator[Relay]:
        relay = Relay(parts)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            yield relay
        finally:
            relay.stop()
            thread.join(30)

    def stored(self) -> set[str]:
        return {one.event.event_id for one in self.store.read_all(limit=100_000)}


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = Line(tmp_path / "events.db")
    yield made
    made.store.close()


def test_a_batch_that_takes_longer_than_a_lease_is_remembered_event_by_event(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_destination, "SENDING_S", 0)
    monkeypatch.setattr(leading, "RENEW_S", 0)
    # given a relay that sends, and looks now and then whether it still leads
    parts = line.make_parts()
    assert parts.leadership.claim("")
    ids = line.write(10)
    seen: list[int] = []

    def look(number: int) -> None:
        seen.append(parts.destination.position() or 0)
        if number == 6:
            # when its lease ends in the middle of the batch
            with line.store.engine.begin() as connection:
                connection.exec_driver_sql("UPDATE cqrs_relays SET lease_until_ms = 0")

    monkeypatch.setattr(parts.destination, "on_send", look)
    found = parts.destination.enqueue(parts.leadership.token, 0, line.store.read_all())
    # then it has remembered each event before that, and sends no more
    assert seen == [0, 1, 2, 3, 4, 5]
    assert found == 5
    assert set(line.sent) == set(ids[:6])


def test_two_relays_whose_batches_take_longer_than_their_leases_come_to_the_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(celery_destination, "SENDING_S", 0.1)
    monkeypatch.setattr(leading, "RENEW_S", 0.1)
    monkeypatch.setattr(leading, "LEASE_S", 0.4)
    # given two relays, and batches that take five times as long as a lease
    pause = threading.Event()
    all_parts = [line.make_parts(), line.make_parts()]
    for parts in all_parts:
        assert isinstance(parts.leadership, leading.Leadership)
        monkeypatch.setattr(parts.leadership.rows, "lease_ms", 400)
        monkeypatch.setattr(parts.destination, "on_send", lambda _: pause.wait(0.02))
    line.write(150)
    with line.relaying(all_parts[0]), line.relaying(all_parts[1]):
        # then all is sent, and nothing twice
        wait_until(
            lambda: all_parts[0].destination.position() == line.store.outbox.last_position(), 30
        )
    assert set(line.sent) == line.stored()
    assert set(line.sent.values()) == {1}


def test_a_store_that_went_back_is_noticed_while_the_relay_runs_and_sends_what_comes(
    line: Line, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a relay that has sent ten events, five of which a copy of the file lacks
    parts = line.make_parts()
    line.write(5)
    line.store.close()
    shutil.copy(tmp_path / "events.db", tmp_path / "copy.db")
    may_go_on, has_come = threading.Event(), threading.Event()

    def wait(timeout_s: float) -> None:
        if parts.destination.position() == 10:
            has_come.set()
            may_go_on.wait(30)

    monkeypatch.setattr(parts.destination, "wait", wait)
    line.write(5)
    with caplog.at_level(logging.ERROR), line.relaying(parts):
        assert has_come.wait(30)
        # when the copy is put back while it sleeps, and more is written than was lost
        line.store.close()
        for name in ("-wal", "-shm"):
            (tmp_path / f"events.db{name}").unlink(missing_ok=True)
        shutil.copy(tmp_path / "copy.db", tmp_path / "events.db")
        line.store.close()
        new = line.write(20)
        may_go_on.set()
        # then all of that is sent, and it is said
        wait_until(lambda: set(new) <= line.sent.keys(), 30, "the new ones")
        wait_until(lambda: "the store went back" in caplog.text, 10, "it to be noticed")
