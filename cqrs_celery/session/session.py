"""The unit of work: what a handler loads and changes is committed once, whole or not at all.

A session is for one thread, or one coroutine, and one piece of work. It tracks every aggregate that
it gave out or was given, so that one aggregate is one instance; a commit ends the tracking, and the
next `get` reads the store again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.lifecycle import attach, detach
from ..domain.watching import Watching
from ..errors import AggregateNotFound, ConcurrencyError, SessionError, SubscriptionFailed
from ..messages.metadata import NO_METADATA, Metadata
from ..store.events import CommandRecord, Committed, Lease
from ..store.ports import StoreTransaction
from ..store.refusals import exists_already, stale_version
from ..store.stream import NO_STREAM, StreamName
from .off_loop import off_loop
from .repository import Repository, two_instances

A = TypeVar("A", bound=Aggregate)


class Session:
    """Be a unit of work.

        with Session(repository) as session:
            session.get(InventoryItem, "42").check_in(5)

    Left without an exception, the block commits; left with one, nothing is written. Either way the
    session has ended then. What records something in the block, and is in no session, is an error.

    Args:
        repository: where aggregates come from and go to.
        metadata: of every event that the session commits.
    """

    #: Where what records something is watched, as errors name it.
    _place = "`with` block"
    _watching: Watching | None = None

    def __init__(self, repository: Repository, *, metadata: Metadata = NO_METADATA) -> None:
        self._repository = repository
        self._metadata = metadata
        self._tracked: dict[StreamName, Aggregate] = {}
        self._missed: set[StreamName] = set()
        self._transaction: StoreTransaction | None = None
        self._is_closed = False

    def get(self, cls: type[A], id: str, expected_version: int | None = None) -> A:
        """Return an aggregate; the same instance whenever it is asked for again.

        Args:
            cls: its class.
            id: its id.
            expected_version: at which it must be, committed events counted; None for any.

        Raises:
            AggregateNotFound: it has no events, and was not added.
            StaleVersion: it is at another version.
            SessionError: the session has ended, or tracks it under another class.
            CQRSError: its history can't be replayed; see `Repository.find`.
        """
        aggregate = self._tracked_as(cls, id)
        if aggregate is None:
            aggregate = self._read(cls, id, expected_version)
        stream = self._repository.stream_of(cls, id)
        if expected_version not in (None, aggregate.version):
            raise stale_version(stream, expected=expected_version, found=aggregate.version)
        self._tracked[stream] = aggregate
        return aggregate

    def find(self, cls: type[A], id: str) -> A | None:
        """Return an aggregate, or None if it has no events and was not added.

        Raises:
            SessionError: the session has ended, or tracks it under another class.
            CQRSError: its history can't be replayed; see `Repository.find`.
        """
        aggregate = self._tracked_as(cls, id)
        if aggregate is None:
            aggregate = self._repository.find(cls, id)
        stream = self._repository.stream_of(cls, id)
        if aggregate is not None:
            self._tracked[stream] = aggregate
        else:
            self._missed.add(stream)
        return aggregate

    async def get_async(self, cls: type[A], id: str, expected_version: int | None = None) -> A:
        """Return an aggregate as `get` does, without blocking the event loop.

        Raises:
            CQRSError: as `get` does.
        """
        if self._tracked_as(cls, id) is None:
            self._track(cls, id, await off_loop(self._read, cls, id, expected_version))
        return self.get(cls, id, expected_version)

    async def find_async(self, cls: type[A], id: str) -> A | None:
        """Return an aggregate as `find` does, without blocking the event loop.

        Raises:
            CQRSError: as `find` does.
        """
        if self._tracked_as(cls, id) is None:
            found = await off_loop(self._repository.find, cls, id)
            if found is None:
                self._missed.add(self._repository.stream_of(cls, id))
                # Unless it was added meanwhile.
                return self._tracked_as(cls, id)
            self._track(cls, id, found)
        return self.find(cls, id)

    def _track(self, cls: type[A], id: str, aggregate: A) -> None:
        """Track what was read, unless it was read or added meanwhile."""
        if self._tracked_as(cls, id) is None:
            self._tracked[self._repository.stream_of(cls, id)] = aggregate

    def _read(self, cls: type[A], id: str, expected_version: int | None) -> A:
        try:
            aggregate = self._repository.get(cls, id)
        except AggregateNotFound:
            self._missed.add(self._repository.stream_of(cls, id))
            raise
        if expected_version is not None and aggregate.version < expected_version:
            aggregate = self._repository.get_newest(cls, id)
        return aggregate

    def add(self, aggregate: Aggregate) -> None:
        """Track an aggregate that was made outside the session, so that it is committed.

        Raises:
            DuplicateInstance: another instance of it is tracked.
            SessionError: the session has ended.
            TypeError: it is no aggregate.
        """
        self._check_open()
        if not isinstance(aggregate, Aggregate):
            raise TypeError(
                f"session.add was given {aggregate!r}; expected an aggregate. An event is recorded"
                " by one, aggregate.record(event), and stored with it"
            )
        stream = self._repository.stream_of(type(aggregate), aggregate.id)
        tracked = self._tracked.setdefault(stream, aggregate)
        if tracked is not aggregate:
            raise two_instances(stream, tracked, aggregate)
        attach(aggregate)

    @property
    def connection(self) -> Any:
        """A connection to the event store's database: what it writes commits with the events.

            session.connection.execute(insert(orders).values(id=command.id))

        It is SQLAlchemy's, in a transaction that begins at the first use and ends with the
        session's commit, or is rolled back with everything else. Of a store in Django's database it
        is Django's, and what Django's models write belongs to the transaction, too. Only a SQL
        event store has one.

        Raises:
            SessionError: the event store is in no SQL database, or the session has ended.
            StoreUnavailable: the server does not answer.
        """
        self._check_open()
        if self._transaction is None:
            self._transaction = self._repository.begin()
        return self._transaction.connection

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Write what all tracked aggregates have pending, all or none, and track nothing.

        What they would record afterwards is refused, until they are loaded or added again.

        What was written through `connection` is part of it. After an error the session is as it was
        before; it has ended if it had a `connection`, whose rows are gone.

        Args:
            command: recorded with the events, refused if it was recorded before.
            lease: the worker's hold on its message; refused if it was lost.

        Returns:
            Where the commit ended; None if nothing was pending, and nothing was written.

        Raises:
            ConcurrencyError: another writer committed first; nothing was written.
            AggregateExists: one was added as new that exists, without a look; nothing was written.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            UnwritableMessage: an event is too large; nothing was written.
            StoreUnavailable: the store's server does not answer. The commit may be repeated.
            SessionError: the session has ended, or it is a handler's.
            SubscriptionFailed: it is committed, in memory, and a subscription's function failed.
        """
        self._check_open()
        try:
            committed = self._repository.save(
                *self._tracked.values(),
                metadata=self._metadata,
                command=command,
                lease=lease,
                transaction=self._transaction,
            )
        except SubscriptionFailed:
            self._untrack()
            raise
        except BaseException as error:  # noqa: BLE001  raised again
            if self._transaction is not None:
                self.close()
            raise self._explained(error) from error.__cause__
        self._transaction = None
        self._untrack()
        if self._watching is not None:
            self._watching.found[:] = self._forgotten()
        return committed

    def close(self) -> None:
        """Forget what is tracked, and end; a second time does nothing.

        What was written through `connection` and not committed is rolled back.
        """
        self._untrack()
        self._is_closed = True
        if self._transaction is not None:
            self._transaction.rollback()
            self._transaction = None

    def __enter__(self) -> Self:
        self._check_open()
        self._watching = Watching()
        self._watching.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._watching is not None:
                self._watching.__exit__()
                if self._watching.outer is not None:
                    # Whoever is around this may add it yet, or has it in a session of its own.
                    self._watching.outer.extend(self._forgotten())
                elif kind is None:
                    self._check_added()
            if kind is None:
                self.commit()
        finally:
            self.close()

    def _forgotten(self) -> list[Aggregate]:
        """Return what has recorded something meanwhile, and is neither tracked nor committed."""
        if self._watching is None or not self._watching.found:
            return []
        known = set(map(id, self._tracked.values()))
        return [
            aggregate
            for aggregate in self._watching.found
            if aggregate.pending_events and id(aggregate) not in known
        ]

    def _check_added(self) -> None:
        """Check that nothing is forgotten.

        Raises:
            SessionError: an aggregate was made, and not added: its events would be lost.
        """
        for aggregate in self._forgotten():
            events = [pending.type.__qualname__ for pending in aggregate.pending_events]
            stream = self._repository.stream_of(type(aggregate), aggregate.id)
            raise SessionError(
                f"{stream} recorded {', '.join(events)} in a {self._place}, and is not in its"
                f" session, so that would be lost. Add what the {self._place} makes:"
                " session.add(aggregate); and use what session.get returns. Nothing was committed."
            )

    def _tracked_as(self, cls: type[A], id: str) -> A | None:
        self._check_open()
        stream = self._repository.stream_of(cls, id)
        tracked = self._tracked.get(stream)
        if tracked is not None and not isinstance(tracked, cls):
            raise SessionError(
                f"{stream} is tracked as {type(tracked).__qualname__}, and was asked for as"
                f" {cls.__qualname__}: a session has one instance of an aggregate, of one class."
                " Use the class by which it was got first."
            )
        return tracked

    def _explained(self, error: BaseException) -> BaseException:
        """Return a commit's error as what it is: no lost race where nobody has looked."""
        if type(error) is ConcurrencyError and error.expected == NO_STREAM:
            for stream in self._tracked:
                if str(stream) == error.stream and stream not in self._missed:
                    return exists_already(stream, found=error.found)
        return error

    def _untrack(self) -> None:
        for aggregate in self._tracked.values():
            detach(aggregate)
        self._tracked.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SessionError(
                "the session has ended: it was committed on leaving its block or handler, or"
                " closed. Use a new one."
            )


class HandlerSession(Session):
    """Be the session that a command's handler gets; whoever runs the handler commits it.

        session = HandlerSession(repository, metadata=metadata)
        try:
            result = handler(command, session)
            committed = session.commit_on_return(command=record, lease=lease)
        finally:
            session.close()

    A handler that commits by itself could commit twice, of which only one commit can be recorded
    as the command's: so it may not.
    """

    _place = "handler"

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Refuse: the commit happens when the handler returns.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            "a command handler tried to commit its session: it is committed, once, when the handler"
            " returns. Remove the commit (or the `with`); to write nothing, raise an exception."
        )

    def __enter__(self) -> Self:
        self.commit()
        return self

    def watching(self) -> Watching:
        """Return the context in which the handler is called: what it records must come here."""
        self._watching = Watching()
        return self._watching

    def enclose(self) -> None:
        """Begin the transaction before the handler is called, if the store's is to enclose it.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        if self._repository.encloses_handlers:
            self._transaction = self._repository.begin(is_enclosing=True)

    def commit_on_return(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Commit as `Session.commit` does, for whoever ran the handler, and end the session.

        Ended it is only if the commit succeeded: after StoreUnavailable it may be repeated.

        Raises:
            SessionError: an aggregate that the handler made, and that recorded something, was not
                added.
            CQRSError: as `Session.commit` does.
        """
        self._check_added()
        committed = super().commit(command=command, lease=lease)
        self.close()
        return committed


class QuerySession(Session):
    """The session that a query's handler gets: it reads, and nothing of it is committed."""

    def add(self, aggregate: Aggregate) -> NoReturn:
        """Refuse: a query changes nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            f"a query's handler added {aggregate!r} to its session, which commits nothing: a query"
            " only reads. What changes something is a command."
        )

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> NoReturn:
        """Refuse: a query changes nothing.

        Raises:
            SessionError: always.
        """
        raise SessionError(
            "a query's handler tried to commit its session, or to end it by `with`: a query only"
            " reads, and whoever asks it ends the session. What changes something is a command."
        )

    def __enter__(self) -> Self:
        self.commit()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Return the context in which the handler is called; the session ends with it.

        Raises:
            SessionError: an aggregate recorded something inside: nobody would write that.
        """
        watching = Watching()
        try:
            with watching:
                yield
        finally:
            self.close()
        for aggregate in watching.found:
            if aggregate.pending_events:
                events = [pending.type.__qualname__ for pending in aggregate.pending_events]
                raise SessionError(
                    f"{aggregate!r} recorded {', '.join(events)} in a query's handler, which"
                    " commits nothing: a query only reads. What changes something is a command."
                )
