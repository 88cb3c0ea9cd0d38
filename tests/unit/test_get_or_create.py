"""session.get_or_create: what is there is loaded, what is not is made and added."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, assert_type

import pytest
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Query,
    Session,
    applies,
    command_handler,
    open_event_store,
    query_handler,
)
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.errors import (
    AggregateExists,
    AggregateNotConstructible,
    AggregateNotFound,
    ConcurrencyError,
    SessionError,
)


class Opened(Event, name="jars.opened"):
    label: str


class Filled(Event, name="jars.filled"):
    spoons: int


class Jar(Aggregate, name="JarsJar"):
    label: str = ""
    spoons: int = 0

    @classmethod
    def labelled(cls, id: str, label: str = "plum") -> Jar:
        jar = cls(id)
        jar.record(Opened(label=label))
        return jar

    def fill(self, spoons: int = 1) -> None:
        self.record(Filled(spoons=spoons))

    def __len__(self) -> int:
        return 0  # so it counts as false

    @applies(Opened)
    def _opened(self, event: Opened) -> None:
        self.label = event.label

    @applies(Filled)
    def _filled(self, event: Filled) -> None:
        self.spoons += event.spoons


class BigJar(Jar, name="JarsBigJar"):
    pass


class Bottle(Aggregate, name="JarsBottle"):
    def __init__(self, id: str, litres: int) -> None:
        super().__init__(id)
        self.litres = litres


class FillJar(Command, name="jars.fill", aggregate=Jar, key="id"):
    id: str


class FillJarAsync(Command, name="jars.fill_async", aggregate=Jar, key="id"):
    id: str


class JarSpoons(Query):
    id: str


class JarSpoonsAsync(Query):
    id: str


#: Called by the handlers after they have got the aggregate.
between: list[Callable[[], None]] = []


@command_handler(FillJar)
def fill(command: FillJar, session: Session) -> int:
    jar = session.get_or_create(Jar, command.id, Jar.labelled)
    while between:
        between.pop()()
    jar.fill()
    return jar.spoons


@command_handler(FillJarAsync)
async def fill_async(command: FillJarAsync, session: Session) -> int:
    jar = await session.get_or_create_async(Jar, command.id, Jar.labelled)
    jar.fill()
    return jar.spoons


@query_handler(JarSpoons)
def spoons(query: JarSpoons, session: Session) -> int:
    return session.get_or_create(Jar, query.id).spoons


@query_handler(JarSpoonsAsync)
async def spoons_async(query: JarSpoonsAsync, session: Session) -> int:
    return (await session.get_or_create_async(Jar, query.id)).spoons


def sqlite(tmp_path: Path) -> SqlEventStore:
    store = open_event_store(f"sqlite:///{tmp_path}/events.db")
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    return store


@pytest.fixture(params=["memory", "sqlite"])
def cqrs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CQRS]:
    store: Any = MemoryEventStore() if request.param == "memory" else sqlite(tmp_path)
    app = Celery("jars", broker="memory://", set_as_current=False)
    yield CQRS(app, store=store)
    store.close()


def events_of(cqrs: CQRS) -> list[str]:
    return [stored.event.type for stored in cqrs.store.read_all()]


def test_what_is_not_there_is_made_and_what_is_there_is_loaded(cqrs: CQRS) -> None:
    # when it is not there, then the class makes it, and the session commits what it records
    with cqrs.session() as session:
        jar = session.get_or_create(Jar, "1")
        assert_type(jar, Jar)
        assert (jar.id, jar.version) == ("1", 0)
        assert session.get_or_create(Jar, "1") is session.get(Jar, "1") is jar
        jar.fill(2)
    # and it is loaded from then on, whoever would make it
    with cqrs.session() as session:
        again = session.get_or_create(Jar, "1", Jar.labelled)
        assert (again.version, again.spoons, again.label) == (1, 2, "")
        again.fill()
    assert events_of(cqrs) == ["jars.filled", "jars.filled"]


def test_a_function_makes_it(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.get_or_create(Jar, "1", lambda name: Jar.labelled(name, "quince")).fill()
    with cqrs.session() as session:
        assert session.get(Jar, "1").label == "quince"


def test_nothing_is_stored_of_one_that_records_nothing(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.get_or_create(Jar, "1")
    with cqrs.session() as session, pytest.raises(AggregateNotFound):
        session.get(Jar, "1")
    assert events_of(cqrs) == []


def test_one_that_was_added_is_returned(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        jar = Jar("1")
        session.add(jar)
        assert session.get_or_create(Jar, "1", Jar.labelled) is jar
        assert not jar.pending_events


def test_of_two_sessions_that_make_the_same_one_the_first_wins(cqrs: CQRS) -> None:
    # given two sessions that have both found nothing
    first, second = cqrs.session(), cqrs.session()
    for session in (first, second):
        session.get_or_create(Jar, "1", Jar.labelled).fill()
    # when both commit
    first.commit()
    with pytest.raises(ConcurrencyError) as refused:
        second.commit()
    # then the second has written nothing, and lost a race: it had looked
    assert not isinstance(refused.value, AggregateExists)
    assert (refused.value.expected, refused.value.found) == (0, 2)
    assert events_of(cqrs) == ["jars.opened", "jars.filled"]


def test_a_handler_that_lost_the_race_is_repeated_and_gets_the_one_that_is_there(
    cqrs: CQRS,
) -> None:
    between.append(lambda: _fill_elsewhere(cqrs))
    assert cqrs.execute(FillJar(id="1")).value == 6
    assert events_of(cqrs) == ["jars.filled", "jars.filled"]


def _fill_elsewhere(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.get_or_create(Jar, "1").fill(5)


def test_an_async_handler_awaits_it(cqrs: CQRS) -> None:
    async def twice() -> list[int]:
        return [(await cqrs.execute_async(FillJarAsync(id="1"))).value for _ in range(2)]

    assert asyncio.run(twice()) == [1, 2]
    assert events_of(cqrs) == ["jars.opened", "jars.filled", "jars.filled"]


def test_coroutines_that_share_a_session_get_one_instance(cqrs: CQRS) -> None:
    async def both() -> list[Jar]:
        session = cqrs.session()
        return list(
            await asyncio.gather(*(session.get_or_create_async(Jar, "1") for _ in range(2)))
        )

    one, other = asyncio.run(both())
    assert one is other


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda name: None, TypeError, "get_or_create(Jar, '1') made None; expected `make` to"),
        (lambda name: Bottle(name, 1), TypeError, "expected `make` to return an instance of Jar"),
        (
            lambda name: Jar("2"),
            ValueError,
            "made an aggregate with the id '2'; expected `make` to use the",
        ),
    ],
    ids=["nothing", "another class", "another id"],
)
def test_what_is_made_must_be_what_was_asked_for(
    cqrs: CQRS, make: Any, error: type[Exception], text: str
) -> None:
    session = cqrs.session()
    with pytest.raises(error, match=re.escape(text)):
        session.get_or_create(Jar, "1", make)
    assert session.find(Jar, "1") is None


def test_a_class_below_whose_events_are_elsewhere_is_refused(cqrs: CQRS) -> None:
    """It would be made anew each time: what is looked for is never there."""
    session = cqrs.session()
    with pytest.raises(TypeError) as raised:
        session.get_or_create(Jar, "1", BigJar)
    assert str(raised.value) == (
        "get_or_create(Jar, '1') made <JarsBigJar-1 at version 0, 0 pending>, whose events are in"
        " the stream JarsBigJar-1; expected one of JarsJar-1. Ask for BigJar"
    )
    assert session.find(BigJar, "1") is None
    assert session.get_or_create(BigJar, "1").id == "1"


@pytest.mark.parametrize("make", [None, lambda name: Bottle(name, 1)])
def test_a_class_that_takes_more_than_an_id_is_refused(make: Any) -> None:
    cqrs = CQRS(Celery("jars", set_as_current=False), store=MemoryEventStore())
    with pytest.raises(AggregateNotConstructible, match="can't be built from just an id"):
        cqrs.session().get_or_create(Bottle, "1", make)


def test_a_query_is_refused_whether_it_is_there_or_not(cqrs: CQRS) -> None:
    expected = re.escape(
        "a query's handler called get_or_create(Jar, '1'), which adds a missing aggregate to the"
        " session. A query only reads: use get or find."
    )
    for _ in range(2):
        with pytest.raises(SessionError, match=f"^{expected}$"):
            cqrs.query(JarSpoons(id="1"))
        with pytest.raises(SessionError, match=f"^{expected}$"):
            asyncio.run(cqrs.query_async(JarSpoonsAsync(id="1")))
        _fill_elsewhere(cqrs)


def test_a_session_that_has_ended_refuses_it(cqrs: CQRS) -> None:
    session = cqrs.session()
    session.close()
    with pytest.raises(SessionError, match="the session has ended"):
        session.get_or_create(Jar, "1")
