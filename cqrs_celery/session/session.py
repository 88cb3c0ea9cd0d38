"""The unit of work: what a handler loads and changes is committed once, as a whole or not at all.

A session is for one thread or coroutine, and one piece of work. It tracks every aggregate that it
returned or was given, so that each aggregate has one instance. A commit ends the tracking, and the
next `get` reads the store again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.lifecycle import attach, detach
from ..domain.watching import Watching
from ..errors import AggregateNotFound, ConcurrencyError, SessionError, SubscriptionFailed
from ..messages.metadata import NO_METADATA, Metadata
from ..store.events import CommandRecord, Committed, Lease
from ..store.ports import StoreTransaction
from ..store.refusals import exists_already, stale_version
from ..store.stream import NO_STREAM, StreamName
from .making import made
from .off_loop import off_loop
from .refusals import not_added, not_read, two_instances
from .repository import Repository

A = TypeVar("A", bound=Aggregate)


class Session:
    """A unit of work.

        with Session(repository) as session:
            session.get(InventoryItem, "42").check_in(5)

    If the block ends without an exception, the session commits; if an exception leaves it, nothing
    is written. In both cases the session has ended. If an aggregate records an event in the block
    and is in no session, that is an error.

    Args:
        repository: loads and saves the aggregates.
        metadata: of every event that the session commits.
    """

    #: The place in which aggregates that record events are watched, as errors name it.
    _place = "`with` block"
    _watching: Watching | None = None

    def __init__(self, repository: Repository, *, metadata: Metadata = NO_METADATA) -> None:
        self._repository = repository
        self._metadata = metadata
        self._tracked: dict[StreamName, Aggregate] = {}
        self._missed: set[StreamName] = set()
        self._unchanged: dict[StreamName, Aggregate] = {}
        self._transaction: StoreTransaction | None = None
        self._is_closed = False

    def get(self, cls: type[A], id: str, expected_version: int | None = None) -> A:
        """Return an aggregate; the same instance each time it is requested.

        Args:
            cls: the aggregate's class.
            id: the aggregate's id.
            expected_version: the version that it must have, counted in committed events; None for
                any.

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

    def get_or_create(self, cls: type[A], id: str, make: Callable[[str], A] | None = None) -> A:
        """Return an aggregate; if it has no events and was not added, make it and add it.

            cart = session.get_or_create(Cart, command.id)
            order = session.get_or_create(Order, command.id, lambda key: Order.place(key, "Ada"))

        A new aggregate is at version 0, and nothing is stored of it unless it records something. If
        two sessions make the same aggregate, the first commit wins, and the other raises
        ConcurrencyError. A handler is then repeated, and gets the existing aggregate.

        Args:
            cls: the aggregate's class.
            id: the aggregate's id.
            make: called with the id if the aggregate has to be made, and returns it; None to call
                the class itself.

        Raises:
            SessionError: the session has ended, is a query's, or tracks it under another class.
            TypeError: `make` did not return an instance of the class, or one of a class below it,
                whose events are elsewhere.
            ValueError: `make` returned an aggregate with another id.
            AggregateNotConstructible: the class takes more than an id, so it can't be replayed.
            CQRSError: its history can't be replayed; see `Repository.find`.
        """
        try:
            return self.get(cls, id)
        except AggregateNotFound:
            return self._create(cls, id, make)

    async def get_or_create_async(
        self, cls: type[A], id: str, make: Callable[[str], A] | None = None
    ) -> A:
        """Return an aggregate as `get_or_create` does, without blocking the event loop.

        Args:
            cls: the aggregate's class.
            id: the aggregate's id.
            make: as for `get_or_create`; it is called in the event loop.

        Raises:
            CQRSError, TypeError, ValueError: as `get_or_create` does.
        """
        try:
            return await self.get_async(cls, id)
        except AggregateNotFound:
            # Unless it was added meanwhile.
            tracked = self._tracked_as(cls, id)
            return self._create(cls, id, make) if tracked is None else tracked

    def _create(self, cls: type[A], id: str, make: Callable[[str], A] | None) -> A:
        aggregate = made(cls, id, make, stream_of=self._repository.stream_of)
        self.add(aggregate)
        return aggregate

    def _track(self, cls: type[A], id: str, aggregate: A) -> None:
        """Track an aggregate that was read, unless it was read or added meanwhile."""
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
                f"session.add was given {aggregate!r}; expected an aggregate. An aggregate records"
                " an event by aggregate.record(event), and the session stores both"
            )
        stream = self._repository.stream_of(type(aggregate), aggregate.id)
        tracked = self._tracked.setdefault(stream, aggregate)
        if tracked is not aggregate:
            raise two_instances(stream, tracked, aggregate)
        attach(aggregate)

    def require_unchanged(self, aggregate: Aggregate) -> None:
        """Commit only if an aggregate is still at the version that was read.

            account = session.get(Account, command.account_id)
            session.require_unchanged(account)
            if account.is_open:
                session.add(Order.place(command.id))

        If it was changed meanwhile, the commit raises ConcurrencyError, and a handler is repeated.
        An aggregate that records events is checked anyway; what writes nothing checks nothing.

        Args:
            aggregate: an aggregate that this session has returned.

        Raises:
            SessionError: the session has ended, is a query's, or has not read the aggregate; or the
                store can't check this.
        """
        self._check_open()
        self._repository.check_version_checks()
        stream = self._repository.stream_of(type(aggregate), aggregate.id)
        if self._tracked.get(stream) is not aggregate or aggregate.version == 0:
            raise not_read(aggregate)
        self._unchanged[stream] = aggregate

    @property
    def connection(self) -> Any:
        """A connection to the event store's database; what it writes is committed with the events.

            session.connection.execute(insert(orders).values(id=command.id))

        It is SQLAlchemy's. Its transaction begins at the first use and ends with the session's
        commit, or is rolled back with everything else. If the store is in Django's database, it is
        Django's connection, and what Django's models write belongs to the transaction, too. Only a
        SQL event store has one.

        Raises:
            SessionError: the event store is not in a SQL database, or the session has ended.
            StoreUnavailable: the server does not answer.
        """
        self._check_open()
        if self._transaction is None:
            self._transaction = self._repository.begin()
        return self._transaction.connection

    def commit(
        self, *, command: CommandRecord | None = None, lease: Lease | None = None
    ) -> Committed | None:
        """Write the pending events of all tracked aggregates, all or none, and end the tracking.

        Those aggregates refuse to record anything else until they are loaded or added again.

        What was written through `connection` is part of the commit. After an error the session is
        as it was before, unless it had a `connection`: then it has ended, and the rows are rolled
        back.

        Args:
            command: recorded with the events; the commit is refused if it was recorded before.
            lease: the worker's lease on its message; the commit is refused if it was lost.

        Returns:
            The end of the commit; None if nothing was pending, and nothing was written.

        Raises:
            ConcurrencyError: another writer committed first; nothing was written.
            AggregateExists: an aggregate added as new, unchecked, exists; nothing was written.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            UnwritableMessage: an event is too large; nothing was written.
            StoreUnavailable: the store's server does not answer. The commit may be repeated.
            SessionError: the session has ended, or it is a handler's.
            SubscriptionFailed: with events in memory, all was committed and a subscription failed.
        """
        self._check_open()
        try:
            committed = self._repository.save(
                *self._tracked.values(),
                metadata=self._metadata,
                command=command,
                lease=lease,
                transaction=self._transaction,
                unchanged=self._unchanged.values(),
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
        """End the session and its tracking; calling it again does nothing.

        Rows that were written through `connection` and not committed are rolled back.
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
                    # The block around this one may add it yet, or track it in its own session.
                    self._watching.outer.extend(self._forgotten())
                elif kind is None:
                    self._check_added()
            if kind is None:
                self.commit()
        finally:
            self.close()

    def _forgotten(self) -> list[Aggregate]:
        """Return the aggregates that recorded events and are neither tracked nor committed."""
        if self._watching is None or not self._watching.found:
            return []
        known = set(map(id, self._tracked.values()))
        return [
            aggregate
            for aggregate in self._watching.found
            if aggregate.pending_events and id(aggregate) not in known
        ]

    def _check_added(self) -> None:
        """Check that every aggregate that recorded events was added.

        Raises:
            SessionError: an aggregate was made and not added, so its events would be lost.
        """
        for aggregate in self._forgotten():
            events = [pending.type.__qualname__ for pending in aggregate.pending_events]
            stream = self._repository.stream_of(type(aggregate), aggregate.id)
            raise not_added(stream, events, place=self._place)

    def _tracked_as(self, cls: type[A], id: str) -> A | None:
        self._check_open()
        stream = self._repository.stream_of(cls, id)
        tracked = self._tracked.get(stream)
        if tracked is not None and not isinstance(tracked, cls):
            raise SessionError(
                f"{stream} is tracked as {type(tracked).__qualname__}, and was requested as"
                f" {cls.__qualname__}. A session has one instance of an aggregate, of one class."
                " Use the class that requested it first."
            )
        return tracked

    def _explained(self, error: BaseException) -> BaseException:
        """Return a commit's error; AggregateExists if nobody looked for the aggregate."""
        if type(error) is ConcurrencyError and error.expected == NO_STREAM:
            for stream in self._tracked:
                if str(stream) == error.stream and stream not in self._missed:
                    return exists_already(stream, found=error.found)
        return error

    def _untrack(self) -> None:
        for aggregate in self._tracked.values():
            detach(aggregate)
        self._tracked.clear()
        self._unchanged.clear()

    def _check_open(self) -> None:
        if self._is_closed:
            raise SessionError(
                "the session has ended: its block or handler was left, or it was closed. Use a new"
                " session."
            )
