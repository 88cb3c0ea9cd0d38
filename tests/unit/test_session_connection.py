"""session.connection: a row beside the events, in one transaction; and what it is not for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Session,
    applies,
    command_handler,
    open_event_store,
    subscribes,
)
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.dispatch.bus import CommandResult
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.envelope import pack_event
from cqrs_celery.dispatch.handler import task_of
from cqrs_celery.errors import ConcurrencyError, SessionError


class SeatTaken(Event):
    by: str


class Seat(Aggregate):
    by: str = ""

    def take(self, by: str) -> None:
        self.record(SeatTaken(by=by))

    @applies(SeatTaken)
    def _taken(self, event: SeatTaken) -> None:
        self.by = event.by


class TakeSeat(Command, aggregate=Seat, key="id"):
    id: str
    by: str


class NoteVisitor(Command):
    name: str


@command_handler(TakeSeat)
def take_seat(command: TakeSeat, session: Session) -> str:
    insert(session, command.by)
    seat = session.find(Seat, command.id) or Seat(command.id)
    session.add(seat)
    seat.take(command.by)
    if command.by == "rival":
        raise ValueError("no rivals")
    return command.by


@command_handler(NoteVisitor)
def note_visitor(command: NoteVisitor, session: Session) -> None:
    insert(session, command.name)


@subscribes(SeatTaken, subscription="theatre.seated")
def seated(event: SeatTaken, session: Session) -> None:
    insert(session, f"seated {event.by}")


def insert(session: Session, name: str) -> None:
    session.connection.execute(text("INSERT INTO visitors VALUES (:name)"), {"name": name})


def visitors(cqrs: CQRS) -> list[str]:
    assert isinstance(cqrs.store, SqliteEventStore)
    with cqrs.store.engine.connect() as connection:
        return list(connection.execute(text("SELECT name FROM visitors")).scalars())


@pytest.fixture
def cqrs(tmp_path: Path) -> Iterator[CQRS]:
    store = open_event_store(f"sqlite:///{tmp_path}/events.db")
    assert isinstance(store, SqliteEventStore)
    create_schema(store)
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE visitors (name TEXT)"))
    app = Celery("theatre", broker="memory://")
    yield CQRS(app, store=store)
    store.close()
    app.close()


def test_a_row_and_the_events_are_committed_together(cqrs: CQRS) -> None:
    assert cqrs.execute(TakeSeat(id="1", by="ann")) == CommandResult(value="ann", position=1)
    assert visitors(cqrs) == ["ann"]
    assert len(cqrs.store.read_all()) == 1


def test_a_handler_that_raises_writes_neither(cqrs: CQRS) -> None:
    with pytest.raises(ValueError, match="no rivals"):
        cqrs.execute(TakeSeat(id="1", by="rival"))
    assert visitors(cqrs) == []
    assert list(cqrs.store.read_all()) == []


def test_a_row_without_an_event_is_written_once_for_its_command(cqrs: CQRS) -> None:
    first = cqrs.execute(NoteVisitor(name="ann"), idempotency_key="c-1")
    again = cqrs.execute(NoteVisitor(name="ann"), idempotency_key="c-1")
    assert (first.position, again.position, again.is_repeated) == (None, None, True)
    assert visitors(cqrs) == ["ann"]


def test_a_row_without_an_event_is_written_once_for_a_command_that_was_sent(cqrs: CQRS) -> None:
    # given a command whose message comes twice
    definition = definitions.handler_of(NoteVisitor)
    assert definition is not None
    task = task_of(cqrs.app, definition)
    for is_repeated in (False, True):
        result = task.apply((NoteVisitor(name="ann"),), task_id="task-1").get()
        assert result["is_repeated"] is is_repeated
    assert visitors(cqrs) == ["ann"]


def test_a_subscription_s_row_is_written_once_for_each_event(cqrs: CQRS) -> None:
    # given two events, each of which comes twice
    for by in ("ann", "bob"):
        cqrs.execute(TakeSeat(id="1", by=by))
    [definition] = definitions.subscribers_of(SeatTaken)
    for stored in [*cqrs.store.read_all()] * 2:
        task_of(cqrs.app, definition).apply((pack_event(stored),)).get()
    assert visitors(cqrs) == ["ann", "bob", "seated ann", "seated bob"]


def test_a_session_that_fails_to_commit_has_ended_with_its_rows(cqrs: CQRS) -> None:
    # given a session with a row, and a seat that somebody else takes
    session = cqrs.session()
    session.add(seat := Seat("1"))
    seat.take("ann")
    cqrs.execute(TakeSeat(id="1", by="bob"))
    insert(session, "ann")
    # when it commits
    with pytest.raises(ConcurrencyError):
        session.commit()
    # then nothing of it is there, and it can't be repeated without its row
    assert visitors(cqrs) == ["bob"]
    with pytest.raises(SessionError, match="has ended"):
        session.commit()


def test_a_statement_that_the_database_does_not_understand_is_no_outage(cqrs: CQRS) -> None:
    with pytest.raises(OperationalError, match="syntax error"), cqrs.session() as session:
        session.connection.execute(text("INSERT VALUES"))


def test_a_session_that_is_left_by_an_error_rolls_its_rows_back(cqrs: CQRS) -> None:
    def fail(session: Session) -> None:
        insert(session, "ann")
        raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"), cqrs.session() as session:
        fail(session)
    assert visitors(cqrs) == []


def test_a_session_without_a_sql_store_has_no_connection() -> None:
    app = Celery("theatre", broker="memory://")
    cqrs = CQRS(app, store=open_event_store("memory://"))
    with (
        pytest.raises(SessionError, match="the event store is not in a SQL database"),
        cqrs.session() as session,
    ):
        session.connection  # noqa: B018
    app.close()
