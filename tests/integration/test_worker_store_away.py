"""A store that does not answer is no fault of the message: it waits, and is tried again."""

from __future__ import annotations

import re

import pytest
import redis
from celery import Celery

from tests.integration.conftest import WorkerFactory
from tests.waiting import wait_until

#: A store that is away for its first appends, as many as the test says.
SOURCE = """
    import os

    import redis
    from celery import Celery

    from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler
    from cqrs_celery.errors import StoreUnavailable

    URL = os.environ["TEST_URL"]
    counters = redis.Redis.from_url(URL)

    class Noted(Event, name="note.noted"):
        pass

    class Note(Aggregate):
        pass

    class TakeNote(Command, name="note.take", aggregate=Note, key="id"):
        id: str

    @command_handler(TakeNote)
    def take_note(command: TakeNote, session: Session) -> str:
        note = Note(command.id)
        note.record(Noted())
        session.add(note)
        counters.incr("attempts")
        return "taken"

    app = Celery("note", broker=URL, backend=URL)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    app.conf.broker_transport_options = {"max_deliveries": 2}
    app.conf.broker_connection_retry_on_startup = True
    cqrs = CQRS(app)

    real = cqrs.store.append

    def append(*args, **options):
        if counters.decr("away_for") >= 0:
            raise StoreUnavailable("the store is away")
        return real(*args, **options)

    cqrs.store.append = append
"""


def test_a_command_waits_for_its_store_longer_than_it_may_be_redelivered(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a store that is away three times, and messages that may come back once
    client = redis.Redis.from_url(redis_url)
    client.set("away_for", 3)
    worker_factory(SOURCE, pool="solo", env={"TEST_URL": redis_url})
    app = Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    # when a command is sent
    plain = {"type": "note.take", "version": 1, "data": {"id": "7"}}
    result = app.send_task("note.take", (plain,), queue="note.commands")
    # then it is carried out when the store is back
    assert result.get(timeout=20)["value"] == "taken"
    assert client.get("attempts") == b"4"
    assert client.llen("cq:stream:note:Note:7") == 1
    # and nothing became a dead letter
    assert not client.exists("cq:dead:note.commands")


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_messages_that_wait_for_their_store_are_counted_and_not_logged_one_by_one(
    redis_url: str, worker_factory: WorkerFactory, pool: str
) -> None:
    # given a store that is away for twenty times, and ten commands to ten aggregates
    client = redis.Redis.from_url(redis_url)
    client.set("away_for", 20)
    worker = worker_factory(SOURCE, pool=pool, env={"TEST_URL": redis_url})
    app = Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    # when they wait for it, and are carried out
    for number in range(10):
        plain = {"type": "note.take", "version": 1, "data": {"id": f"{number}"}}
        app.send_task("note.take", (plain,), queue="note.commands")
    wait_until(lambda: client.get("attempts") == b"30", 30, "all commands to be carried out")
    # then one line says why, others how often, and none is a traceback
    lines = [line for line in worker.logs().splitlines() if "could not handle a message" in line]
    counts = [int(found) for found in re.findall(r"\(failure (\d+)\)", "".join(lines))]
    assert counts == [1, 2, 4, 8, 16]
    assert "WARNING" in lines[0]
    assert "StoreUnavailable: the store is away" in lines[0]
    assert "Traceback" not in worker.logs()
    assert "requeue=True" not in worker.logs()
    app.close()


#: Subscriptions that can't be registered for the first times, as many as the test says.
SUBSCRIBER = (
    SOURCE
    + """
    from cqrs_celery import subscribes

    @subscribes(Noted)
    def see(event: Noted) -> None:
        counters.incr("seen")

    register = type(cqrs.store).register

    def register_late(self, subscriber):
        if counters.decr("no_registrations_for") >= 0:
            raise StoreUnavailable("the store is away")
        return register(self, subscriber)

    type(cqrs.store).register = register_late
"""
)


def test_a_worker_outlives_a_store_that_is_away_when_it_registers_its_subscriptions(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a store that is away when a worker connects, as at its restart with everything else
    client = redis.Redis.from_url(redis_url)
    client.set("no_registrations_for", 2)
    # when the worker starts, then it comes to be ready, since it tries again
    worker = worker_factory(SUBSCRIBER, pool="solo", env={"TEST_URL": redis_url})
    assert worker.logs().count(" not registered, tries again: ") == 2
    # and it is subscribed
    app = Celery("sender", broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    plain = {"type": "note.take", "version": 1, "data": {"id": "7"}}
    app.send_task("note.take", (plain,), queue="note.commands")
    wait_until(lambda: client.get("seen") == b"1", 20, "the event to be handled")
    app.close()
