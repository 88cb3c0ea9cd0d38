"""A store that does not deliver is refused where somebody subscribes, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Session,
    command_handler,
    open_event_store,
    subscribes,
)
from cqrs_celery.app.delivery import check_delivery
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.errors import InvalidSetting
from cqrs_celery.store.stream import StreamName


class Mailed(Event, name="post.mailed"):
    pass


class Weighed(Event, name="post.weighed"):
    pass


class Parcel(Aggregate, name="PostParcel"):
    pass


class Mail(Command, name="post.mail", aggregate=Parcel, key="id"):
    id: str
    is_weighed: bool = False


@command_handler(Mail)
def mail(command: Mail, session: Session) -> None:
    parcel = Parcel(command.id)
    parcel.record(Weighed() if command.is_weighed else Mailed())
    session.add(parcel)


class Narrow:
    """A wrapper that has the port's methods alone."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def append(self, appends: Any, **options: Any) -> Any:
        return self.store.append(appends, **options)

    def read_stream(self, stream: Any, **options: Any) -> Any:
        return self.store.read_stream(stream, **options)

    def read_all(self, **options: Any) -> Any:
        return self.store.read_all(**options)

    def find_command(self, command_id: str) -> Any:
        return self.store.find_command(command_id)

    def close(self) -> None:
        self.store.close()


class Forwarding(Narrow):
    """A wrapper that has whatever the store in it has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class WithMeansOfItsOwn(Narrow):
    delivers = True


def application(store: Any) -> CQRS:
    return CQRS(Celery("post", broker="memory://", set_as_current=False), store=store)


def subscribe() -> None:
    @subscribes(Mailed)
    def tell_recipient(event: Mailed) -> None: ...


EXPECTED = (
    r"CQRS\(app, store=…\) was given a {name} that does not deliver: it has neither register and"
    r" unregister, as a store that delivers within its append, nor an outbox and leadership, for a"
    r" relay\. tests\.unit\.test_undelivered\.subscribe\.<locals>\.tell_recipient"
    r" \(\S*test_undelivered\.py:\d+\) subscribes to events, and would never get one\. Let a"
    r" wrapper forward capabilities, or these, to the store in it; in place of a store in memory,"
    r" set"
    r" cqrs_event_store = 'memory://'; a store that reaches subscribers by means of its own has"
    r" delivers = True\."
)

SILENT = {
    "in memory": MemoryEventStore,
    "by its URL": lambda: open_event_store("memory://"),
    "wrapped": lambda: Narrow(open_event_store("sqlite:///unused.db")),
}


@pytest.fixture(params=SILENT, ids=lambda name: name)
def silent(request: pytest.FixtureRequest) -> Any:
    return SILENT[request.param]()


def test_the_first_commit_that_has_a_subscriber_is_refused(silent: Any) -> None:
    # given a store that does not deliver, and a subscriber
    subscribe()
    cqrs = application(silent)
    # when an event that nobody takes is committed, then it is
    if isinstance(silent, MemoryEventStore):
        assert cqrs.execute(Mail(id="1", is_weighed=True)).position == 1
    # when one is that the subscriber takes
    with pytest.raises(InvalidSetting) as refused:
        cqrs.execute(Mail(id="2"))
    # then the commit is refused, by what the store lacks, and nothing is written
    assert re.fullmatch(EXPECTED.format(name=type(silent).__name__), str(refused.value))
    assert refused.value.setting == "store"
    if isinstance(silent, MemoryEventStore):
        assert not silent.read_stream(StreamName("post", "PostParcel", "2"))


def test_a_worker_is_refused_at_its_start(silent: Any) -> None:
    subscribe()
    with pytest.raises(InvalidSetting) as refused:
        application(silent).check_handlers()
    assert re.match(
        r"CQRS\(app, store=…\) was given a \w+ that does not deliver", str(refused.value)
    )


def test_a_process_without_subscribers_is_not_refused(
    silent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given nobody who subscribes
    monkeypatch.setattr("cqrs_celery.app.delivery.definitions.all", list)
    cqrs = application(silent)
    # then a worker starts, and a command is sent
    cqrs.check_handlers()
    assert Mail(id="1").__registered__.name == "post.mail"
    assert cqrs.send_command(Mail(id="1")).id


@pytest.mark.parametrize(
    "store",
    [
        MemoryEventStore(on_commit=lambda events: None),
        Forwarding(MemoryEventStore(on_commit=lambda events: None)),
        Forwarding(open_event_store("sqlite:///unused.db")),
        WithMeansOfItsOwn(MemoryEventStore()),
    ],
    ids=["told whom to call", "wrapped whole", "wrapped whole, for a relay", "by its own means"],
)
def test_a_store_that_delivers_is_not_refused(store: Any) -> None:
    subscribe()
    cqrs = application(store)
    check_delivery(cqrs.store)
    assert cqrs.runtime.bus.repository._check is None


def test_the_store_that_a_setting_names_delivers() -> None:
    app = Celery("post", changes={"cqrs_event_store": "memory://"}, set_as_current=False)
    subscribe()
    assert CQRS(app).execute(Mail(id="1")).position == 1
