"""Four things that look like a conflict, told apart; only a lost race repeats a handler."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Session,
    applies,
    command_handler,
    subscribes,
)
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.errors import (
    ConcurrencyError,
    DuplicateInstance,
    StaleVersion,
    SubscriptionFailed,
)
from cqrs_celery.store.capabilities import Capabilities
from cqrs_celery.store.stream import StreamName
from cqrs_celery.testing.scenario import Scenario, in_memory


class PageTurned(Event, name="shelf.page_turned"):
    pass


class PageTorn(Event, name="shelf.page_torn"):
    pass


class Book(Aggregate, name="ShelfBook"):
    page: int = 0

    @applies(PageTurned)
    def _turned(self, event: PageTurned) -> None:
        self.page += 1


class TurnPage(Command, name="shelf.turn_page", aggregate=Book, key="id"):
    id: str = "it"
    expected_version: int | None = None


class TurnPageSoon(TurnPage, name="shelf.turn_page_soon", aggregate=Book, key="id"):
    pass


class AddTwice(Command, name="shelf.add_twice", aggregate=Book, key="id"):
    id: str = "it"


class TearPage(Command, name="shelf.tear_page", aggregate=Book, key="id"):
    id: str = "it"


#: How often a handler ran, what happens meanwhile, and what subscribers have got.
seen = SimpleNamespace(runs=0, meanwhile=None, torn=[])


def turn(command: TurnPage, session: Session) -> int:
    seen.runs += 1
    book = session.get(Book, command.id, command.expected_version)
    if seen.meanwhile:
        seen.meanwhile()
    book.record(PageTurned())
    return book.page


@command_handler(TurnPage, retry_on=ConcurrencyError)
def turn_page(command: TurnPage, session: Session) -> int:
    return turn(command, session)


@command_handler(TurnPageSoon)
async def turn_page_soon(command: TurnPageSoon, session: Session) -> int:
    return turn(command, session)


@command_handler(AddTwice)
def add_twice(command: AddTwice, session: Session) -> None:
    seen.runs += 1
    session.get(Book, command.id)
    session.add(Book(command.id))


@command_handler(TearPage)
def tear_page(command: TearPage, session: Session) -> None:
    seen.runs += 1
    session.get(Book, command.id).record(PageTorn())


@subscribes(PageTorn)
def glue_page(event: PageTorn, session: Session) -> None:
    raise ConcurrencyError("no glue", stream="glue", expected=1, found=2)


@subscribes(PageTorn)
def note_page(event: PageTorn) -> None:
    seen.torn.append("noted")


@subscribes(PageTorn)
def count_page(event: PageTorn) -> None:
    raise ValueError("no fingers")


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application with a book that has two events."""
    seen.__dict__.update(runs=0, meanwhile=None, torn=[])
    app = Celery("shelf", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://", task_always_eager=True)
    cqrs = CQRS(app)
    with cqrs.session() as session:
        book = Book("it")
        session.add(book)
        book.record(PageTurned())
        book.record(PageTurned())
    yield cqrs
    app.close()


def run(cqrs: CQRS, command: Command, how: str) -> Any:
    if how == "execute":
        return cqrs.execute(command).value
    if how == "execute_async":
        return asyncio.run(cqrs.execute_async(command)).value
    return cqrs.send_command(command).get()["value"]


everyhow = pytest.mark.parametrize("how", ["execute", "execute_async", "delay"])


def history(cqrs: CQRS) -> list[str]:
    stream = StreamName("shelf", "ShelfBook", "it")
    return [stored.event.type for stored in cqrs.store.read_stream(stream)]


@everyhow
@pytest.mark.parametrize("cls", [TurnPage, TurnPageSoon])
@pytest.mark.parametrize("expected", [1, 5])
def test_a_version_that_the_caller_chose_wrongly_never_repeats_the_handler(
    cqrs: CQRS, how: str, cls: Any, expected: int
) -> None:
    with pytest.raises(StaleVersion, match=f"expected_version is {expected}: .*can't help") as it:
        run(cqrs, cls(expected_version=expected), how)
    error = it.value
    assert (error.stream, error.expected, error.found) == ("ShelfBook-it", expected, 2)
    assert seen.runs == 1
    assert len(history(cqrs)) == 2


def test_a_version_that_a_replica_does_not_have_yet_is_looked_for_in_the_primary() -> None:
    # given a store whose replica lags behind, and somebody who has seen the newest version
    class Lagging(MemoryEventStore):
        lag = 0

        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, replica=self)

        def read_stream(self, stream: StreamName, **options: Any) -> Any:
            found = super().read_stream(stream, **options)
            return found[: len(found) - self.lag]

        def read_from_primary(self, *streams: StreamName) -> None:
            self.lag = 0

        def check_replica(self) -> None: ...

    store = Lagging()
    cqrs = CQRS(Celery("shelf", set_as_current=False, broker="memory://"), store=store)
    with cqrs.session() as session:
        book = Book("it")
        session.add(book)
        book.record(PageTurned())
        book.record(PageTurned())
    store.lag = 1
    # when a command expects that version, then it finds it
    seen.meanwhile = None
    assert cqrs.execute(TurnPage(expected_version=2)).value == 3


@everyhow
def test_two_instances_of_one_aggregate_never_repeat_the_handler(cqrs: CQRS, how: str) -> None:
    with pytest.raises(DuplicateInstance, match="Use the instance that get returns") as it:
        run(cqrs, AddTwice(), how)
    assert (it.value.stream, it.value.expected, it.value.found) == ("ShelfBook-it", 2, 0)
    assert seen.runs == 1


@everyhow
@pytest.mark.parametrize("cls", [TurnPage, TurnPageSoon])
def test_a_lost_race_repeats_the_handler_and_so_does_one_under_an_expected_version_once(
    cqrs: CQRS, how: str, cls: Any
) -> None:
    # given somebody who commits first, once
    def interfere() -> None:
        seen.meanwhile = None
        with cqrs.session() as session:
            session.get(Book, "it").record(PageTurned())

    seen.meanwhile = interfere
    # when a command that expects nothing is carried out, then it is repeated
    assert run(cqrs, cls(), how) == 4
    assert seen.runs == 2
    # and one that expects the version that was there finds it gone, and is not
    seen.meanwhile = interfere
    with pytest.raises(StaleVersion) as it:
        run(cqrs, cls(expected_version=4), how)
    assert (it.value.expected, it.value.found) == (4, 5)
    assert seen.runs == 4
    assert len(history(cqrs)) == 5


@everyhow
def test_a_subscriptions_failure_in_memory_repeats_nothing_and_names_it(
    cqrs: CQRS, how: str
) -> None:
    # when a command is carried out whose event two of three functions fail at
    with pytest.raises(SubscriptionFailed, match=r"position 3, but .*shelf\.glue_page") as it:
        run(cqrs, TearPage(), how)
    # then it has run and committed once, and the third function has got it
    error = it.value
    assert seen.runs == 1
    assert history(cqrs)[2:] == ["shelf.page_torn"]
    assert seen.torn == ["noted"]
    # and the error says what failed, and why
    assert (error.subscription, error.stream, error.version) == (
        "shelf.glue_page", "ShelfBook-it", 3
    )  # fmt: skip
    assert (error.position, error.failures) == (3, 2)
    assert isinstance(error.__cause__, ConcurrencyError)
    assert not isinstance(error, ConcurrencyError)


def test_what_was_committed_while_a_subscription_failed_is_not_committed_again(
    cqrs: CQRS,
) -> None:
    # given a session whose commit a subscription fails at
    session = cqrs.session()
    book = session.get(Book, "it")
    book.record(PageTorn())
    with pytest.raises(SubscriptionFailed):
        session.commit()
    # then the aggregate has its new version, and nothing is pending
    assert (book.version, book.pending_events) == (3, ())
    # and the session goes on
    session.get(Book, "it").record(PageTurned())
    session.commit()
    assert history(cqrs)[2:] == ["shelf.page_torn", "shelf.page_turned"]


def test_a_scenario_tells_what_the_subscriptions_function_raised() -> None:
    with in_memory("shelf") as cqrs:
        scenario = Scenario(cqrs).given(Book, "it", PageTurned())
        scenario.when(TearPage()).raises(ConcurrencyError, match="no glue")


@pytest.mark.parametrize(
    "error",
    [
        StaleVersion("it", stream="a-1", expected=1, found=2),
        DuplicateInstance("it", stream="a-1", expected=1, found=2),
        SubscriptionFailed("it", subscription="s", stream="a-1", version=1, position=2, failures=3),
    ],
)
def test_they_survive_pickling_with_their_fields(error: Any) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), "it", vars(error))
