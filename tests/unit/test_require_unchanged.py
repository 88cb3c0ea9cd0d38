"""An aggregate that only decides what others record must be unchanged when they are committed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import text

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
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.errors import ConcurrencyError, SessionError
from cqrs_celery.store.capabilities import Capabilities


class AccountClosed(Event, name="till.account_closed"):
    pass


class AccountOpened(Event, name="till.account_opened"):
    pass


class Account(Aggregate, name="TillAccount"):
    is_open = False

    @applies(AccountOpened)
    def _opened(self, event: AccountOpened) -> None:
        self.is_open = True

    @applies(AccountClosed)
    def _closed(self, event: AccountClosed) -> None:
        self.is_open = False


class OrderPlaced(Event, name="till.order_placed"):
    pass


class Order(Aggregate, name="TillOrder"):
    pass


class PlaceOrder(Command, name="till.place_order", aggregate=Order, key="id"):
    """Place an order, while others close the account so many times."""

    id: str
    rivals: int = 0


class IsOpen(Query[bool], name="till.is_open"):
    pass


#: How many rivals have been there.
closed: list[str] = []


@command_handler(PlaceOrder)
def place_order(command: PlaceOrder, session: Session) -> bool:
    account = session.get(Account, "a")
    session.require_unchanged(account)
    if len(closed) < command.rivals:
        closed.append(command.id)
        with current[0].session() as other:
            other.get(Account, "a").record(AccountClosed())
    if account.is_open:
        session.get_or_create(Order, command.id).record(OrderPlaced())
    return account.is_open


@query_handler(IsOpen)
def is_open(query: IsOpen, session: Session) -> bool:
    account = session.get(Account, "a")
    session.require_unchanged(account)
    return account.is_open


current: list[CQRS] = []


@pytest.fixture(params=["memory", "sqlite"])
def cqrs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CQRS]:
    """Give an application with an open account."""
    closed.clear()
    store: Any = MemoryEventStore()
    if request.param == "sqlite":
        store = open_event_store(f"sqlite:///{tmp_path}/events.db")
        assert isinstance(store, SqliteEventStore)
        create_schema(store)
        with store.engine.begin() as connection:
            connection.execute(text("CREATE TABLE visits (name TEXT)"))
    app = Celery("till", set_as_current=False)
    current[:] = [CQRS(app, store=store)]
    with current[0].session() as session:
        session.get_or_create(Account, "a").record(AccountOpened())
    yield current[0]
    current.clear()
    store.close()


def orders(cqrs: CQRS) -> list[str]:
    stored = cqrs.store.read_all()
    return [one.stream.aggregate_id for one in stored if one.event.type == "till.order_placed"]


def test_a_handler_whose_reading_was_overtaken_decides_anew(cqrs: CQRS) -> None:
    # given an order, while the account is closed by another writer
    result = cqrs.execute(PlaceOrder(id="1", rivals=1))
    # then the handler is repeated, and decides by the account as it is
    assert result.value is False
    assert orders(cqrs) == []
    assert closed == ["1"]


def test_what_was_read_and_not_required_may_change(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.get(Account, "a")
        with cqrs.session() as other:
            other.get(Account, "a").record(AccountClosed())
        session.get_or_create(Order, "1").record(OrderPlaced())
    assert orders(cqrs) == ["1"]


def test_an_unchanged_aggregate_stays_at_its_version(cqrs: CQRS) -> None:
    assert cqrs.execute(PlaceOrder(id="1")).value is True
    assert cqrs.execute(PlaceOrder(id="1")).value is True
    assert orders(cqrs) == ["1", "1"]
    with cqrs.session() as session:
        assert session.get(Account, "a").version == 1


def test_a_session_that_was_overtaken_is_refused_and_writes_nothing(cqrs: CQRS) -> None:
    session = cqrs.session()
    session.require_unchanged(session.get(Account, "a"))
    session.get_or_create(Order, "1").record(OrderPlaced())
    with cqrs.session() as other:
        other.get(Account, "a").record(AccountClosed())
    with pytest.raises(ConcurrencyError, match="TillAccount-a is at version 2") as error:
        session.commit()
    session.close()
    assert (error.value.stream, error.value.expected, error.value.found) == ("TillAccount-a", 1, 2)
    assert orders(cqrs) == []


def test_one_that_records_too_is_checked_once(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        account = session.get(Account, "a")
        session.require_unchanged(account)
        session.require_unchanged(account)
        account.record(AccountClosed())
        session.get_or_create(Order, "1").record(OrderPlaced())
    assert orders(cqrs) == ["1"]


def test_a_commit_that_writes_nothing_checks_nothing(cqrs: CQRS) -> None:
    with cqrs.session() as session:
        session.require_unchanged(session.get(Account, "a"))
        with cqrs.session() as other:
            other.get(Account, "a").record(AccountClosed())


def test_the_next_commit_of_a_session_requires_nothing_of_the_first(cqrs: CQRS) -> None:
    session = cqrs.session()
    session.require_unchanged(session.get(Account, "a"))
    session.get_or_create(Order, "1").record(OrderPlaced())
    session.commit()
    with cqrs.session() as other:
        other.get(Account, "a").record(AccountClosed())
    session.get_or_create(Order, "2").record(OrderPlaced())
    session.commit()
    session.close()
    assert orders(cqrs) == ["1", "2"]


@pytest.mark.parametrize("cqrs", ["sqlite"], indirect=True)
def test_rows_alone_are_committed_if_what_decided_is_unchanged(cqrs: CQRS) -> None:
    def visit(*, is_overtaken: bool) -> None:
        with cqrs.session() as session:
            session.require_unchanged(session.get(Account, "a"))
            if is_overtaken:
                with cqrs.session() as other:
                    other.get(Account, "a").record(AccountClosed())
            session.connection.execute(text("INSERT INTO visits VALUES ('ann')"))

    visit(is_overtaken=False)
    with pytest.raises(ConcurrencyError, match="TillAccount-a is at version 2, expected 1"):
        visit(is_overtaken=True)
    with cqrs.session() as session:
        found = session.connection.execute(text("SELECT name FROM visits")).all()
    assert found == [("ann",)]


def test_what_can_not_be_checked_is_refused_where_it_is_asked_for(cqrs: CQRS) -> None:
    session = cqrs.session()
    with cqrs.session() as other:
        foreign = other.get(Account, "a")
        for aggregate in (foreign, Account("new"), session.get_or_create(Order, "new")):
            with pytest.raises(SessionError, match=r"which this session has not read; expected"):
                session.require_unchanged(aggregate)
    account = session.get(Account, "a")
    session.close()
    with pytest.raises(SessionError, match="the session has ended"):
        session.require_unchanged(account)
    with pytest.raises(SessionError, match="A query only reads: leave it out"):
        cqrs.query(IsOpen())


class Careless(MemoryEventStore):
    """A store of a user's own, which does not check what it writes no events to."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, checks_versions=False)


def test_a_store_that_does_not_declare_it_is_refused() -> None:
    cqrs = CQRS(Celery("till", set_as_current=False), store=Careless())
    with cqrs.session() as session:
        session.get_or_create(Account, "a").record(AccountOpened())
    with cqrs.session() as session:
        account = session.get(Account, "a")
        with pytest.raises(SessionError, match=r"does not declare .*Careless.* checks_versions"):
            session.require_unchanged(account)
