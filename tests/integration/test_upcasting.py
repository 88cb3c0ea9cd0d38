"""What old code appends to Redis reaches the subscriptions of what it has become, in a worker."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner

from cqrs_celery import (
    CQRS,
    Event,
    EventData,
    RecordedEvent,
    open_event_store,
    subscribes,
    upcaster,
)
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli import cqrs as command
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.handler import task_of
from cqrs_celery.messages.metadata import new_id, utc_now
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.events import NewEvent, StreamAppend
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.transport.envelope import BODY
from cqrs_celery.workers.registration import subscriber_of

pytestmark = pytest.mark.integration

got: list[Any] = []


class PartMoved(Event, name="oldcode.part_moved", aliases=("oldcode.part_shifted",)):
    place: str


class PartNamed(Event, name="oldcode.part_named"):
    name: str


@upcaster("oldcode.part_changed", 1, into=(PartMoved, PartNamed))
def split(data: dict[str, Any]) -> list[EventData]:
    return [
        EventData("oldcode.part_moved", 1, {"place": data["place"]}),
        EventData("oldcode.part_named", 1, {"name": data["name"]}),
    ]


@subscribes(PartMoved, subscription="oldcode.list")
def old_code_moved(event: PartMoved, recorded: RecordedEvent[PartMoved]) -> None:
    got.append((event.place, recorded.version, recorded.part))


@subscribes(PartNamed, subscription="oldcode.names")
def old_code_named(event: PartNamed, recorded: RecordedEvent[PartNamed]) -> None:
    got.append((event.name, recorded.version, recorded.part))


@pytest.mark.parametrize("engine", ["redis", "sqlite", "postgresql"])
def test_every_store_is_checked_to_its_end(
    request: pytest.FixtureRequest, tmp_path: Path, engine: str
) -> None:
    # given old events, some of which nothing leads from
    if engine == "redis":
        client = redis.Redis.from_url(request.getfixturevalue("redis_url"))
        store: Any = RedisEventStore(lambda: client, body=BODY)
    else:
        is_sqlite = engine == "sqlite"
        url = f"sqlite:///{tmp_path}/x.db" if is_sqlite else request.getfixturevalue("postgres_url")
        store = open_event_store(url)
        create_schema(store)
    for name, data in (
        ("oldcode.part_shifted", b'{"place":"A"}'),
        ("oldcode.part_changed", b'{"place":"B","name":"bolt"}'),
        ("oldcode.part_changed", b'{"place":"B"}'),
        ("oldcode.part_lost", b"{}"),
    ):
        event = NewEvent(new_id(), name, 1, utc_now(), data)
        store.append([StreamAppend(StreamName("oldcode", "Part", "7"), ANY_VERSION, [event])])
    app = Celery("oldcode")
    app.kept = CQRS(app, store=store)
    # when
    obj = SimpleNamespace(app=app)
    result = CliRunner().invoke(command, ["events", "check", "--json"], obj=obj)
    # then
    assert result.exit_code == 1
    rows = [(f["type"], f["outcome"], f["events"]) for f in json.loads(result.stdout)["findings"]]
    assert rows == [
        ("oldcode.part_changed", "UpcastFailed", 1),
        ("oldcode.part_lost", "UnknownMessageType", 1),
        ("oldcode.part_changed", "upcast", 1),
        ("oldcode.part_shifted", "read", 1),
    ]
    store.close()


def test_what_old_code_appends_reaches_the_subscriptions_of_what_it_has_become(
    redis_url: str,
) -> None:
    # given subscriptions that are registered as a worker does it
    client = redis.Redis.from_url(redis_url)
    store: Any = RedisEventStore(lambda: client, body=BODY)
    cqrs = CQRS(Celery("oldcode"), store=store)
    mine = [d for d in definitions.all() if d.function.__name__.startswith("old_code_")]
    for definition in mine:
        store.register(subscriber_of(definition, cqrs.runtime))
    # when old code appends under old names
    for name, data in (
        ("oldcode.part_shifted", {"place": "A"}),
        ("oldcode.part_changed", {"place": "B", "name": "bolt"}),
    ):
        event = NewEvent(new_id(), name, 1, utc_now(), json.dumps(data).encode())
        stream = StreamName("oldcode", "Part", "7")
        store.append([StreamAppend(stream, ANY_VERSION, [event])])
    # then each queue has what its function takes a part of, and the tasks get the parts
    queue = ReliableQueue(client)
    queue.beat("me", 60_000, register=True)
    for definition in mine:
        task = task_of(cqrs.app, definition)
        exchange = queue.settle_and_take("me", queues=[task.home_queue], count=10, run=10)
        for taken in exchange.taken:
            (arguments, _, _) = json.loads(taken.body)
            task.apply(arguments, throw=True)
    assert got == [("A", 1, 1), ("B", 2, 1), ("bolt", 2, 2)]
