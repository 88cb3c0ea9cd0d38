"""Compressed events in every store: they come back, to aggregates and to subscribers' queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Event, EventStore, applies, open_event_store
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.dispatch.envelope import unpack_events
from cqrs_celery.messages.compression import ALGORITHMS, is_compressed
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.events import Subscriber
from cqrs_celery.store.stream import StreamName
from cqrs_celery.transport.envelope import BODY

pytestmark = pytest.mark.integration

LONG = "all work and no play, ä and \u2028 " * 100


class PageWritten(Event, name="compressing.page_written"):
    text: str


class Page(Aggregate, name="CompressedPage"):
    texts: list[str] = []  # noqa: RUF012

    @applies(PageWritten)
    def _written(self, event: PageWritten) -> None:
        self.texts.append(event.text)


@pytest.fixture(params=["memory", "redis", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    if request.param == "redis":
        client = redis.Redis.from_url(request.getfixturevalue("redis_url"))
        opened: Any = RedisEventStore(lambda: client, body=BODY)
    else:
        url = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path / 'events.db'}"}.get(
            request.param
        ) or request.getfixturevalue("postgres_url")
        opened = open_event_store(url)
        if request.param != "memory":
            create_schema(opened)
    yield opened
    opened.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compressed_events_come_back_from_every_store(store: EventStore, algorithm: str) -> None:
    """ACCEPTANCE 88, 89 and 91."""
    changes = {"cqrs_compression": algorithm}
    cqrs = CQRS(Celery("compressing", changes=changes), store=store)
    with cqrs.session() as session:
        page = Page("7")
        for text in (LONG, "short", LONG):
            page.record(PageWritten(text=text))
        session.add(page)
    stored = store.read_all()
    assert [is_compressed(one.event.data) for one in stored] == [True, False, True]
    assert len(stored[0].event.data) < len(LONG.encode()) / 5
    # when: who reads has no setting
    with CQRS(Celery("compressing"), store=store).session() as session:
        assert session.get(Page, "7").texts == [LONG, "short", LONG]


class Book(Aggregate, name="CompressedBook", snapshot_every=1):
    texts: list[str] = []  # noqa: RUF012

    @applies(PageWritten)
    def _written(self, event: PageWritten) -> None:
        self.texts.append(event.text)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_compressed_snapshots_come_back_from_every_store(store: Any, algorithm: str) -> None:
    """ACCEPTANCE 88 and 91."""
    cqrs = CQRS(Celery("compressing", changes={"cqrs_compression": algorithm}), store=store)
    with cqrs.session() as session:
        book = Book("7")
        book.record(PageWritten(text=LONG))
        session.add(book)
    snapshot = store.snapshots().find(StreamName("compressing", "CompressedBook", "7"))
    assert is_compressed(snapshot.data)
    # when: who reads has no setting
    with CQRS(Celery("compressing"), store=store).session() as session:
        again = session.get(Book, "7")
        assert again.texts == [LONG]
        assert again.__ledger__.snapshot_version == 1


def test_a_subscribers_queue_has_the_event_compressed(redis_url: str) -> None:
    """ACCEPTANCE 88 and 91: the script that delivers joins texts, and a compressed one is one."""
    client = redis.Redis.from_url(redis_url)
    store: Any = RedisEventStore(lambda: client, body=BODY)
    head = ('{"id":"', '","again":"', '","root":"', '","parent":"', '"}')
    store.register(Subscriber("pages", ("compressing.page_written",), "pages", head))
    app = Celery("compressing", changes={"cqrs_compression": "zstd"})
    with CQRS(app, store=store).session() as session:
        page = Page("7")
        page.record(PageWritten(text=LONG))
        session.add(page)
    # then
    queue = ReliableQueue(client)
    queue.beat("me", 60_000, register=True)
    [taken] = queue.settle_and_take("me", queues=["pages"], count=1).taken
    ((argument,), _, _) = json.loads(taken.body)
    assert argument["data"].startswith("cqrs:zstd:")
    (recorded,) = unpack_events(argument, Serializer("compressing"))
    assert recorded.event == PageWritten(text=LONG)
