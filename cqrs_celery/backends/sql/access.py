"""Access to a SQL database: its engines, retries, and the choice between primary and replica.

A statement is retried here if the database aborted it in favour of another transaction, or if it
met a pooled connection that was lost.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

from sqlalchemy import CompoundSelect, Connection, Engine, Select, TextClause
from sqlalchemy.pool import Pool

from ...errors import StoreUnavailable
from ...store.reading import replica_may_answer
from ...store.stream import StreamName
from .batch import beaten_repeatedly
from .connecting import age, connect
from .engine import where
from .failures import AlreadyThere, TransactionBeaten, reaching
from .rules import SqlRules

R = TypeVar("R")

#: How often a transaction or a statement is tried that the database ends for the sake of another
#: transaction, or that meets another one's row.
ATTEMPTS: Final = 5

#: Seconds for which a stream that was written here, or found changed, is not read from a replica.
FRESH_S: Final = 10.0

#: Streams of which that is remembered.
FRESH_STREAMS: Final = 10_000


class SqlAccess:
    """Access to one SQL database, and to a replica of it if there is one.

    Args:
        engine: connects to the database; it may be the application's own.
        read_engine: connects to a replica, for reading.
        is_own_engine: the engine was made for this store alone, so its connections may be kept.

    Attributes:
        rules: what differs between SQL engines.
        engine: as given.
        reader: connects to the replica; without one, to the primary.
        primary_reader: connects to the primary, for single statements that read.
        has_replica: whether there is a replica.
        is_own_engine: as given.
        where: names the database in errors, without credentials.
    """

    rules: SqlRules

    #: How often `attempt` tries.
    attempts = ATTEMPTS

    def __init__(
        self, engine: Engine, *, read_engine: Engine | None = None, is_own_engine: bool = False
    ) -> None:
        self.engine = engine
        self.is_own_engine = is_own_engine
        self.where = where(engine.url)
        self.reader = self._reading(read_engine or engine)
        self.has_replica = read_engine is not None
        self.primary_reader = self._reading(engine)
        self._committing = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._fresh: dict[StreamName, float] = {}
        _all_stores.add(self)

    def _reading(self, engine: Engine) -> Engine:
        """Return an engine whose connections are for single statements that read."""
        if self.rules.reads_in_autocommit:
            return engine.execution_options(isolation_level="AUTOCOMMIT")
        return engine

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"

    def serves(self, connection: Any) -> bool:
        """Return whether the server serves a connection of the driver's, and lets it write."""
        return self.rules.serves(connection, self.engine.dialect)

    def forget_lost(self) -> None:
        """Replace each connection made before now at its next use: one of them was lost."""
        age(self.engine)
        age(self.reader)
        self.forget_known()

    def forget_known(self) -> None:
        """Forget what is known of the database, which may be another one now, or an older copy."""

    def forget_lost_replica(self) -> None:
        """Replace each connection to the replica made before now at its next use."""
        age(self.reader)

    def check_kept(self, connection: Any) -> None:
        """Check that a connection's commits are in the database that others see.

        Raises:
            StoreUnavailable: it is lost.
        """

    def transact(self, what: str, work: Callable[[Connection], R]) -> R:
        """Run a function in a transaction of its own; retry it if other transactions conflict.

        Args:
            what: is being done: "register shop.till".
            work: does it, on the connection that it is given.

        Returns:
            What `work` does, once that is committed.

        Raises:
            StoreUnavailable: the server does not answer.
            SchemaError: the tables are missing or of another version.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """

        def do() -> R:
            with connect(self) as connection:
                with connection.begin():
                    self.rules.on_begin(connection)
                    done = work(connection)
                self.check_kept(connection)
                return done

        return self.attempt(what, do)

    def run_each(self, what: str, work: Callable[[Connection], R]) -> R:
        """Run statements that each commit by themselves; retry them if other transactions conflict.

        Unlike in a transaction, a process that is frozen between two of them has nothing locked.

        Args:
            what: is being done: "delete expired commands".
            work: does it, on the connection that it is given; it may be repeated.

        Returns:
            What `work` does.

        Raises:
            StoreUnavailable: the server does not answer.
            SchemaError: the tables are missing or of another version.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """

        def do() -> R:
            with self._committing.connect() as connection:
                return work(connection)

        return self.attempt_anew(what, do)

    def rows(
        self,
        statement: Select[Any] | CompoundSelect[Any] | TextClause,
        what: str,
        reader: Engine | None = None,
        **parameters: Any,
    ) -> Sequence[Any]:
        """Run a statement that reads. A lost connection of the pool is replaced once.

        Args:
            statement: what to run.
            what: is being done: "read Order-42".
            reader: connects to the primary, which is the default, or to the replica.
            parameters: of the statement.
        """
        reader = reader or self.primary_reader

        def read() -> Sequence[Any]:
            with reader.connect() as connection:
                return connection.execute(statement, parameters).all()

        is_replica = self.has_replica and reader is self.reader
        return self.attempt_anew(what, read, is_replica=is_replica)

    def attempt_anew(self, what: str, do: Callable[[], R], *, is_replica: bool = False) -> R:
        """Do as `attempt`, and once more if a pooled connection was lost. It must be repeatable.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """
        try:
            return self.attempt(what, do, is_replica=is_replica)
        except StoreUnavailable:
            return self.attempt(what, do, is_replica=is_replica)

    def attempt(self, what: str, do: Callable[[], R], *, is_replica: bool = False) -> R:
        """Run a function; retry it while the database aborts it in favour of other transactions.

        Args:
            what: is being done: "read Order-42".
            do: does it, all or nothing.
            is_replica: whether the replica is asked, which errors then name.

        Returns:
            What `do` does.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                with self.reach(what, is_replica=is_replica):
                    return do()
            except (AlreadyThere, TransactionBeaten) as error:
                reason = error
                time.sleep(0.001 * attempt)
        raise beaten_repeatedly(what, self.where, self.attempts, reason) from reason

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours for as long as something is done; see `reaching`."""
        # The replica's URL may name another driver.
        engine = self.reader if is_replica else self.engine
        replica = where(engine.url) if is_replica else None
        return reaching(self, what, engine.dialect.loaded_dbapi.Error, replica=replica)

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Limit how long this thread waits for each answer; None removes the limit.

        That is for PostgreSQL. Elsewhere the driver's own limits hold.
        """
        return nullcontext()

    def read_from_primary(self, *streams: StreamName) -> None:
        """Read streams from the primary for a while: the replica may lag behind."""
        if not self.has_replica:
            return
        until = time.monotonic() + FRESH_S
        if len(self._fresh) > FRESH_STREAMS:
            self._fresh.clear()
        self._fresh.update(dict.fromkeys(streams, until))

    def may_ask_replica(self, stream: StreamName | None = None) -> bool:
        """Return whether the replica may answer the next read: of a stream, or of all events."""
        if not self.has_replica:
            return False
        if stream is not None and self._fresh.get(stream, 0.0) > time.monotonic():
            return False
        return replica_may_answer()

    def reader_of(self, stream: StreamName) -> Engine:
        """Return the engine that a stream is read on: the replica's or the primary's."""
        return self.reader if self.may_ask_replica(stream) else self.primary_reader

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""
        self.engine.dispose()
        self.reader.dispose()
        self.forget_known()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        # Kept, since the garbage collector would close them, which is the parent's to do.
        _of_parent.extend((self.engine.pool, self.reader.pool))
        self.engine.dispose(close=False)
        self.reader.dispose(close=False)


#: The stores of this process. After a fork their connections are the parent's.
_all_stores: weakref.WeakSet[SqlAccess] = weakref.WeakSet()

#: The pools of the parent process, where this one is a fork.
_of_parent: list[Pool] = []


def _leave_connections_to_the_parent() -> None:
    for store in list(_all_stores):
        store.forget_connections()


os.register_at_fork(after_in_child=_leave_connections_to_the_parent)
