"""Keep events in a database of Django's, in the transactions in which its models are written.

    with transaction.atomic():
        Invoice.objects.create(order_id="7", amount=30)
        with cqrs.session() as session:
            session.get(Order, "7").place(30)

Where a transaction of Django's is open in this thread, all is read and written in it: an append
takes part, and is committed or rolled back with it. Elsewhere the store is as any other, on
connections of its own to the same database. So is the relay, which is woken by Django's commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from django.db import Error as DjangoError
from django.db import connections, transaction
from sqlalchemy import Engine

from ...store.capabilities import Capabilities
from ...store.events import (
    CommandRecord,
    Committed,
    Lease,
    StoredEvent,
    StreamAppend,
)
from ...store.relay_ports import LeaseCheck
from ..postgresql.event_store import PostgresqlEventStore
from ..postgresql.gaps import NOT_SETTLED, Gaps, Settled
from ..postgresql.prepared import Statement, run_once
from ..postgresql.rules import PostgresqlRules
from ..sql.batch import Batch
from ..sql.event_store import SqlEventStore
from ..sqlite.event_store import SqliteEventStore
from .connections import file_of, is_in_transaction, lending_engine, own_engine, vendor_of
from .transaction import DjangoTransaction

#: How a URL begins that names a database of Django's.
SCHEME: Final = "django"


def open_django_store(url: str, *, lease_check: LeaseCheck | None = None) -> SqlEventStore:
    """Return the store in a database of Django's; `open_event_store` says more.

    Args:
        url: django://default, or with another alias.
        lease_check: tells whether a worker still holds its message.

    Raises:
        InvalidSetting: Django has no such database, or it is of another kind.
    """
    alias = url.partition("://")[2] or "default"
    vendor = vendor_of(alias)
    store: SqlEventStore = _STORES[vendor](alias, vendor, lease_check=lease_check)
    return store


class _Reaching:
    """A store that reads an error of Django's as the driver's error behind it."""

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors, and Django's, into ours for as long as something is done."""
        return _reaching(super().reach(what, is_replica=is_replica))  # type: ignore[misc]


@contextmanager
def _reaching(driver: AbstractContextManager[None]) -> Iterator[None]:
    with driver:
        try:
            yield
        except DjangoError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error


class _Inside(_Reaching, SqlEventStore):
    """The store on the thread's connection of Django's, while a transaction is open there.

    Args:
        outer: the store that asks.
        engine: lends that connection.
    """

    def __init__(self, outer: DjangoEventStore, engine: Engine) -> None:
        self._outer = outer
        super().__init__(engine)
        self.where = outer.where

    # What the database ends is the whole transaction, which is not ours to repeat.
    attempts = 1

    def check_lease(self, lease: Lease | None) -> None:
        self._outer.check_lease(lease)

    def committed(self, batch: Batch) -> None:
        self._outer.committed(batch)

    def _append_in_own_transaction(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        # A refusal shall cost no more than the append: the transaction can go on.
        with transaction.atomic(using=self._outer.alias), self.engine.connect() as connection:
            committed = self.write(connection, batch, command)
            self.check_lease(lease)
        return committed


class _InsideSqlite(_Inside, SqliteEventStore):
    def _watch_file(self) -> None:
        # The connection is Django's, and so is what becomes of it.
        pass


class _LentRules(PostgresqlRules):
    """PostgreSQL's rules on a connection of Django's, which stays in its transaction."""

    reads_in_autocommit = False


class _GapsOfThread(Gaps):
    """What a thread knows of gaps, from its own transaction, which others do not see."""

    def __init__(self, store: SqlEventStore) -> None:
        self._local = threading.local()
        super().__init__(store)

    @property
    def settled(self) -> Settled:
        """Up to where no number that is missing can appear, as this thread sees it."""
        return getattr(self._local, "settled", NOT_SETTLED)

    @settled.setter
    def settled(self, settled: Settled) -> None:
        self._local.settled = settled


class _InsidePostgresql(_Inside, PostgresqlEventStore):
    rules = _LentRules()

    def __init__(self, outer: DjangoEventStore, engine: Engine) -> None:
        super().__init__(outer, engine)
        lent: Any = _LentStatements(outer.alias)
        self.kept = self.kept_to_read = lent
        self.gaps = _GapsOfThread(self)


class _LentStatements:
    """Statements on the thread's connection of Django's; see `KeptConnections`."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def run(self, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        return run_once(connections[self._alias].connection, statement, arguments)

    def close(self) -> None:
        pass

    def forget(self) -> None:
        pass


class DjangoEventStore(_Reaching, SqlEventStore):
    """A store in a database of Django's.

    Args:
        alias: the database's.
        vendor: what it is.
        options: as an event store takes them.

    Attributes:
        alias: as given.
        inside: the store on the thread's connection of Django's.
    """

    #: A handler that takes the session runs in a transaction of Django's, as its rows shall too.
    encloses_handlers = True

    _inside: type[_Inside]
    inside: _Inside

    def __init__(self, alias: str, vendor: str, **options: Any) -> None:
        super().__init__(own_engine(alias, vendor), **options)
        self.alias = alias
        self.where = f"{SCHEME}://{alias}"
        self.inside = self._inside(self, lending_engine(alias, vendor))

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do in addition to the port."""
        return replace(super().capabilities, enclosing=self)

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction of Django's is open in this thread: what is read may not last."""
        return is_in_transaction(self.alias)

    def begin(self, *, is_enclosing: bool = False) -> DjangoTransaction:
        """Begin a transaction of Django's, or take part in the one that is open.

        Args:
            is_enclosing: a handler is called in it, so that all of it is rolled back with that, be
                there another transaction around it or not.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        return DjangoTransaction(self, self.inside, self.alias, is_enclosing=is_enclosing)

    def committed(self, batch: Batch) -> None:
        """Do what follows a commit; after Django's, if that is still to come."""
        if self.on_commit is not None:
            if connections[self.alias].in_atomic_block:
                transaction.on_commit(self.on_commit, using=self.alias, robust=True)
            else:
                self.on_commit()

    # ------------------------------------------------------------ here or there

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams, all or none; see `EventStore.append`.

        In a transaction of Django's they are committed with it. A refusal leaves that open.
        """
        append = self.inside.append if self.is_in_transaction else super().append
        return append(appends, command=command, lease=lease)

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the store's events in the order of their positions; see `EventStore.read_all`."""
        read = self.inside.read_all if self.is_in_transaction else super().read_all
        return read(after_position=after_position, limit=limit)

    def rows(self, statement: Any, what: str, reader: Any = None, **parameters: Any) -> Any:
        """Run a statement that reads, in the transaction that is open here, if one is."""
        if self.is_in_transaction:
            return self.inside.rows(statement, what, **parameters)
        return super().rows(statement, what, reader, **parameters)


class DjangoPostgresqlEventStore(DjangoEventStore, PostgresqlEventStore):
    """An EventStore in a PostgreSQL database of Django's."""

    _inside = _InsidePostgresql
    inside: _InsidePostgresql

    def run_kept(self, kept: Any, what: str, statement: Statement, *arguments: Any) -> list[Any]:
        """Run a statement that reads, in the transaction that is open here, if one is."""
        if self.is_in_transaction:
            return self.inside.run_kept(self.inside.kept, what, statement, *arguments)
        return super().run_kept(kept, what, statement, *arguments)


class DjangoSqliteEventStore(DjangoEventStore, SqliteEventStore):
    """An EventStore in an SQLite database of Django's."""

    _inside = _InsideSqlite

    @property
    def file(self) -> Path:
        """The database's file, as Django knows it now."""
        return Path(file_of(self.alias))


_STORES: Final[dict[str, Any]] = {
    "postgresql": DjangoPostgresqlEventStore,
    "sqlite": DjangoSqliteEventStore,
}
