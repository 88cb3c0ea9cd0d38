"""A query's handler reads aggregates of the application that asks, and can change nothing."""

from __future__ import annotations

import asyncio

import pytest
from celery import current_app

from cqrs_celery import Aggregate, Event, Query, Session, applies, query_handler
from cqrs_celery.errors import SessionError
from cqrs_celery.testing.scenario import Scenario, in_memory


class Lent(Event, name="reading.lent"):
    to: str


class Copy(Aggregate, name="ReadingCopy"):
    lent_to: str | None = None

    @applies(Lent)
    def _lent(self, event: Lent) -> None:
        self.lent_to = event.to


class Reader(Query, name="reading.reader"):
    id: str
    how: str = "read"


class ReaderSoon(Query, name="reading.reader_soon"):
    id: str


#: The sessions that the handlers got.
sessions: list[Session] = []


@query_handler(Reader)
def reader(query: Reader, session: Session) -> str | None:
    sessions.append(session)
    copy = session.find(Copy, query.id)
    if copy is None:
        return None
    if query.how == "record":
        copy.record(Lent(to="nobody"))
    elif query.how == "make":
        Copy("another").record(Lent(to="nobody"))
    elif query.how == "add":
        session.add(Copy("another"))
    elif query.how == "commit":
        session.commit()
    elif query.how == "elsewhere":
        with current_app.cqrs.session() as other:
            made = Copy("another")
            made.record(Lent(to="Eve"))
            other.add(made)
    elif query.how == "with":
        with session:
            pass
    return copy.lent_to


@query_handler(ReaderSoon)
async def reader_soon(query: ReaderSoon, session: Session) -> str | None:
    sessions.append(session)
    copy = await session.find_async(Copy, query.id)
    return copy.lent_to if copy else None


@pytest.fixture
def cqrs_application() -> str:
    return "reading"


@pytest.fixture
def library(scenario: Scenario) -> Scenario:
    sessions.clear()
    # an application that is newer, as a module's own is where a test imports it late
    with in_memory("another"):
        pass
    return scenario.given(Copy, "dune", Lent(to="Ada"))


@pytest.mark.parametrize("query", [Reader(id="dune"), ReaderSoon(id="dune")])
def test_a_query_reads_the_aggregates_of_the_application_that_asks(
    library: Scenario, query: Query
) -> None:
    library.when(query).returns("Ada").then()
    assert asyncio.run(library.cqrs.query_async(query)) == "Ada"
    # and its session has ended then
    for session in sessions:
        with pytest.raises(SessionError, match="has ended"):
            session.find(Copy, "dune")


def test_what_is_not_there_is_not_there_for_a_query(library: Scenario) -> None:
    library.when(Reader(id="ubik")).returns(None)


WHY = "a query only reads"
HOWS = {
    "record": "ReadingCopy-dune at version 1, 1 pending> recorded Lent in a query's handler",
    "make": "ReadingCopy-another at version 0, 1 pending> recorded Lent in a query's handler",
    "add": "a query's handler added <ReadingCopy-another at version 0",
    "commit": "a query's handler tried to commit its session",
    "with": "a query's handler tried to commit its session, or to end it by `with`",
}


@pytest.mark.parametrize("how", HOWS)
def test_a_query_that_changes_something_is_refused(library: Scenario, how: str) -> None:
    before = len(library.cqrs.store.read_all())
    error = library.when(Reader(id="dune", how=how)).raises(SessionError, match=WHY)
    assert HOWS[how] in str(error)
    assert str(error).endswith("Use a command to change something.")
    assert len(library.cqrs.store.read_all()) == before


def test_what_a_unit_of_work_of_its_own_commits_is_not_taken_for_forgotten(
    library: Scenario,
) -> None:
    library.when(Reader(id="dune", how="elsewhere")).returns("Ada").then(Lent(to="Eve"))
